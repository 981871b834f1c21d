// The backward pass: scores and shares of a block again, then the gradients of queries, keys and values.

#include <algorithm>

#include "attention.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

// What a thread keeps: one head of keys and one of its heads of queries, blocks of 64 tokens one after the other, in
// the forms in which they are multiplied.
struct Backward {
    std::int64_t size;                                    // of a block: 64 * channels
    Workspace<bf16> query, out;                           // `[64, channels]` a block; out: the gradient of it
    Workspace<std::uint32_t> query_columns, out_columns;  // `[channels, 32]`: pairs of queries
    Workspace<std::uint32_t> key_columns, value_columns;  // `[channels / 2, 64]`: pairs of channels
    Workspace<std::uint32_t> key_pairs;                   // `[32, channels]`: pairs of keys
    Workspace<float> of_query;                            // `[64, channels]` a block
    Workspace<float> of_key, of_value;                    // `[channels, 64]` a block
    Workspace<float> sums, deltas;                        // a query
    Workspace<bf16> row_shares;                           // gradients of scores, `[64 queries, 64 keys]`
    Workspace<std::uint32_t> shares, score_gradients;     // `[32, 64]`: pairs of queries
    Workspace<bf16> rows;                                 // a block on its way to another form
    Workspace<std::uint32_t> pairs;
    Workspace<float> turned;

    explicit Backward(const Attention& problem)
        : size(kBlock * problem.padded_channels()),
          query(problem.query_blocks() * size),
          out(problem.query_blocks() * size),
          query_columns(problem.query_blocks() * size / 2),
          out_columns(problem.query_blocks() * size / 2),
          key_columns(problem.key_blocks() * size / 2),
          value_columns(problem.key_blocks() * size / 2),
          key_pairs(problem.key_blocks() * size / 2),
          of_query(problem.query_blocks() * size),
          of_key(problem.key_blocks() * size),
          of_value(problem.key_blocks() * size),
          sums(problem.query_blocks() * kBlock),
          deltas(problem.query_blocks() * kBlock),
          row_shares(kBlock * kBlock),
          shares(kBlock * kBlock / 2),
          score_gradients(kBlock * kBlock / 2),
          rows(size),
          pairs(size / 2),
          turned(size) {}
};

MEGATRON_EXT_TARGET void pack_keys(Backward& work, const Attention& problem, const Operands& operands, std::int64_t b,
                                   std::int64_t n) {
    const std::int64_t padded = problem.padded_channels(), size = work.size;
    bf16* rows = work.rows.get();
    for (std::int64_t block = 0; block < problem.key_blocks(); ++block) {
        const std::int64_t place = block * size / 2;
        const auto* pairs = reinterpret_cast<const std::uint32_t*>(rows);
        pack_rows(rows, problem, operands.key, problem.keys, problem.rotation.keys, 0, b, n, block * kBlock, true);
        transpose(work.key_columns.get() + place, pairs, kBlock, padded / 2);
        pair_rows(work.key_pairs.get() + place, rows, kBlock, padded);
        pack_rows(rows, problem, operands.value, problem.keys, nullptr, 0, b, n, block * kBlock, false);
        transpose(work.value_columns.get() + place, pairs, kBlock, padded / 2);
    }
}

MEGATRON_EXT_TARGET float dot(const bf16* left, const bf16* right, std::int64_t size) {
    __m512 total = _mm512_setzero_ps();
    for (std::int64_t c = 0; c < size; c += kLanes) {
        total = _mm512_fmadd_ps(load(left + c, lanes(c, size)), load(right + c, lanes(c, size)), total);
    }
    return _mm512_reduce_add_ps(total);
}

MEGATRON_EXT_TARGET void pack_queries(Backward& work, const Attention& problem, const Operands& operands,
                                      const Gradients& gradients, std::int64_t b, std::int64_t n) {
    const std::int64_t padded = problem.padded_channels(), size = work.size;
    for (std::int64_t block = 0; block < problem.query_blocks(); ++block) {
        bf16 *query = work.query.get() + block * size, *out = work.out.get() + block * size;
        pack_rows(query, problem, operands.query, problem.queries, problem.rotation.queries, problem.first, b, n,
                  block * kBlock, true);
        pack_rows(out, problem, gradients.out, problem.queries, nullptr, 0, b, n, block * kBlock, false);
        pair_rows(work.pairs.get(), query, kBlock, padded);
        transpose(work.query_columns.get() + block * size / 2, work.pairs.get(), kBlock / 2, padded);
        pair_rows(work.pairs.get(), out, kBlock, padded);
        transpose(work.out_columns.get() + block * size / 2, work.pairs.get(), kBlock / 2, padded);
        const float* sums = operands.sums + (b * problem.heads + n) * problem.queries;
        for (std::int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
            const bool real = i < problem.queries;
            work.sums.get()[i] = real ? sums[i] : 0.0f;
            work.deltas.get()[i] =
                real ? dot(gradients.out.at(i, b, n), operands.out.at(i, b, n), problem.channels) : 0.0f;
        }
    }
}

// 2^(score - sum of its row) of one row and 64 keys: its share of the softmax.
MEGATRON_EXT_INLINE void take_shares(__m512 (&row)[4], const Attention& problem, float slope, float distance,
                                     std::uint64_t seen, float sum) {
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int v = 0; v < 4; ++v) {
        const __m512 from = _mm512_add_ps(steps, _mm512_set1_ps(distance + static_cast<float>(v * kLanes)));
        const __m512 bias = _mm512_fmsub_ps(from, _mm512_set1_ps(slope), _mm512_set1_ps(sum));
        const __m512 share = exp2(_mm512_fmadd_ps(row[v], _mm512_set1_ps(problem.scale * kLog2E), bias));
        row[v] = _mm512_maskz_mov_ps(static_cast<__mmask16>(seen >> (v * kLanes)), share);
    }
}

// Shares of 64 queries and 64 keys, and the gradients of their scores.
MEGATRON_EXT_TARGET void take_scores(Backward& work, const Attention& problem, std::int64_t b, float slope,
                                     std::int64_t query_block, std::int64_t key_block) {
    const std::int64_t padded = problem.padded_channels(), size = work.size;
    const bf16 *query = work.query.get() + query_block * size, *out = work.out.get() + query_block * size;
    for (std::int64_t r = 0; r < kBlock; r += 4) {
        __m512 shares[4][4], scores[4][4];
        clear(shares);
        multiply<4>(shares, query + r * padded, padded, work.key_columns.get() + key_block * size / 2, kBlock,
                    padded / 2);
        for (int m = 0; m < 4; ++m) {
            const std::int64_t i = query_block * kBlock + r + m;
            const auto distance = static_cast<float>(key_block * kBlock - problem.first - i);
            take_shares(shares[m], problem, slope, distance, visible_keys(problem, b, i, key_block),
                        work.sums.get()[i]);
        }
        for (int m = 0; m < 4; m += 2) {
            std::uint32_t* pairs = work.shares.get() + (r + m) / 2 * kBlock;
            for (int v = 0; v < 4; ++v)
                _mm512_store_si512(pairs + v * kLanes, interleave(shares[m][v], shares[m + 1][v]));
        }
        clear(scores);
        multiply<4>(scores, out + r * padded, padded, work.value_columns.get() + key_block * size / 2, kBlock,
                    padded / 2);
        for (int m = 0; m < 4; ++m) {
            const __m512 delta = _mm512_set1_ps(work.deltas.get()[query_block * kBlock + r + m]);
            for (int v = 0; v < 4; ++v) {
                scores[m][v] = _mm512_mul_ps(_mm512_sub_ps(scores[m][v], delta), shares[m][v]);
                store(work.row_shares.get() + (r + m) * kBlock + v * kLanes, scores[m][v]);
            }
        }
        for (int m = 0; m < 4; m += 2) {
            std::uint32_t* pairs = work.score_gradients.get() + (r + m) / 2 * kBlock;
            for (int v = 0; v < 4; ++v)
                _mm512_store_si512(pairs + v * kLanes, interleave(scores[m][v], scores[m + 1][v]));
        }
    }
}

// What 64 queries and 64 keys add to each other's gradients.
MEGATRON_EXT_TARGET void add_block(Backward& work, const Attention& problem, std::int64_t query_block,
                                   std::int64_t key_block) {
    const std::int64_t padded = problem.padded_channels(), size = work.size;
    const auto* of_out = reinterpret_cast<const bf16*>(work.out_columns.get() + query_block * size / 2);
    const auto* query = reinterpret_cast<const bf16*>(work.query_columns.get() + query_block * size / 2);
    float *of_key = work.of_key.get() + key_block * size, *of_value = work.of_value.get() + key_block * size;
    for (std::int64_t c = 0; c < padded; c += 4) {
        multiply_into<4>(of_value + c * kBlock, kBlock, nullptr, of_out + c * kBlock, kBlock, work.shares.get(), kBlock,
                         kBlock / 2);
        multiply_into<4>(of_key + c * kBlock, kBlock, nullptr, query + c * kBlock, kBlock, work.score_gradients.get(),
                         kBlock, kBlock / 2);
    }
    for (std::int64_t r = 0; r < kBlock; r += 4) {
        multiply_rows(work.of_query.get() + query_block * size + r * padded, padded, nullptr,
                      work.row_shares.get() + r * kBlock, kBlock, work.key_pairs.get() + key_block * size / 2, padded,
                      kBlock / 2, padded);
    }
}

MEGATRON_EXT_TARGET void head_gradients(Backward& work, const Attention& problem, const Operands& operands,
                                        const Gradients& gradients, std::int64_t b, std::int64_t n) {
    const float slope = problem.slopes == nullptr ? 0.0f : problem.slopes[n] * kLog2E;
    pack_queries(work, problem, operands, gradients, b, n);
    std::fill_n(work.of_query.get(), problem.query_blocks() * work.size, 0.0f);
    for (std::int64_t keys = 0; keys < problem.key_blocks(); ++keys) {
        for (std::int64_t block = 0; block < problem.query_blocks(); ++block) {
            const Visible visible = visible_blocks(problem, b, block);
            if (keys < visible.first_block || keys >= visible.end_block) continue;
            take_scores(work, problem, b, slope, block, keys);
            add_block(work, problem, block, keys);
        }
    }
    for (std::int64_t block = 0; block < problem.query_blocks(); ++block) {
        unpack_rows(gradients.query, problem, work.of_query.get() + block * work.size, problem.queries,
                    problem.rotation.queries, problem.first, b, n, block * kBlock, problem.scale, true);
    }
}

MEGATRON_EXT_TARGET void write_keys(Backward& work, const Attention& problem, const Gradients& gradients,
                                    std::int64_t b, std::int64_t n) {
    const std::int64_t padded = problem.padded_channels();
    auto* turned = reinterpret_cast<std::uint32_t*>(work.turned.get());
    for (std::int64_t block = 0; block < problem.key_blocks(); ++block) {
        const std::int64_t place = block * work.size;
        transpose(turned, reinterpret_cast<const std::uint32_t*>(work.of_key.get() + place), padded, kBlock);
        unpack_rows(gradients.key, problem, work.turned.get(), problem.keys, problem.rotation.keys, 0, b, n,
                    block * kBlock, problem.scale, true);
        transpose(turned, reinterpret_cast<const std::uint32_t*>(work.of_value.get() + place), padded, kBlock);
        unpack_rows(gradients.value, problem, work.turned.get(), problem.keys, nullptr, 0, b, n, block * kBlock, 1.0f,
                    false);
    }
}

}  // namespace

void attention_backward(const Attention& problem, const Operands& operands, const Gradients& gradients) {
    const std::int64_t group = problem.heads / problem.key_heads;
    for_each_key_head<Backward>(problem, [&](Backward& work, std::int64_t b, std::int64_t n) {
        pack_keys(work, problem, operands, b, n);
        std::fill_n(work.of_key.get(), problem.key_blocks() * work.size, 0.0f);
        std::fill_n(work.of_value.get(), problem.key_blocks() * work.size, 0.0f);
        for (std::int64_t i = 0; i < group; ++i) {
            head_gradients(work, problem, operands, gradients, b, n * group + i);
        }
        write_keys(work, problem, gradients, b, n);
    });
}

#else

void attention_backward(const Attention&, const Operands&, const Gradients&) {}

#endif

}  // namespace megatron_ext::kernels
