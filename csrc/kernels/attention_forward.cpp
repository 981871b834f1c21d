// The forward pass: outputs, and the sum of each row for the backward pass.

#include <cmath>

#include "attention.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

constexpr float kLowest = -1e30f;

// What a thread keeps: keys and values of a head, and of one block of queries the sums so far.
struct Forward {
    Workspace<bf16> rows, shares;
    Workspace<std::uint32_t> keys, values;
    Workspace<float> out;
    float largest[kBlock], total[kBlock];

    explicit Forward(const Attention& problem)
        : rows(kBlock * problem.padded_channels()),
          shares(kBlock * kBlock),
          keys(problem.key_blocks() * kBlock * problem.padded_channels() / 2),
          values(problem.key_blocks() * kBlock * problem.padded_channels() / 2),
          out(kBlock * problem.padded_channels()) {}
};

MEGATRON_EXT_TARGET void pack_keys(Forward& work, const Attention& problem, const Operands& operands, std::int64_t b,
                                   std::int64_t n) {
    const std::int64_t padded = problem.padded_channels(), size = kBlock * padded / 2;
    for (std::int64_t block = 0; block < problem.key_blocks(); ++block) {
        pack_rows(work.rows.get(), problem, operands.key, problem.keys, problem.rotation.keys, 0, b, n, block * kBlock,
                  true);
        transpose(work.keys.get() + block * size, reinterpret_cast<const std::uint32_t*>(work.rows.get()), kBlock,
                  padded / 2);
        pack_rows(work.rows.get(), problem, operands.value, problem.keys, nullptr, 0, b, n, block * kBlock, false);
        pair_rows(work.values.get() + block * size, work.rows.get(), kBlock, padded);
    }
}

// Scores of 4 queries and 64 keys, in units of log 2; -inf where the key is not seen.
struct Line {
    float scale, slope;  // both times log2(e)
    float distance;      // of the block's first key from the query
    std::uint64_t seen;
};

MEGATRON_EXT_INLINE void finish_scores(__m512 (&row)[4], const Line& line) {
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int v = 0; v < 4; ++v) {
        const __m512 distance = _mm512_add_ps(steps, _mm512_set1_ps(line.distance + static_cast<float>(v * kLanes)));
        const __m512 bias = _mm512_mul_ps(distance, _mm512_set1_ps(line.slope));
        const __m512 score = _mm512_fmadd_ps(row[v], _mm512_set1_ps(line.scale), bias);
        const auto mask = static_cast<__mmask16>(line.seen >> (v * kLanes));
        row[v] = _mm512_mask_blend_ps(mask, _mm512_set1_ps(-INFINITY), score);
    }
}

// One row of scores to shares relative to its largest score so far; returns what the sums so far shrink by.
MEGATRON_EXT_INLINE float take_shares(__m512 (&row)[4], float& largest, float& total) {
    const __m512 top = _mm512_max_ps(_mm512_max_ps(row[0], row[1]), _mm512_max_ps(row[2], row[3]));
    const float found = _mm512_reduce_max_ps(top), before = largest;
    largest = found > before ? found : before;
    const __m512 shift = _mm512_set1_ps(largest);
    for (auto& value : row) value = exp2(_mm512_sub_ps(value, shift));
    const float shrink = before == largest ? 1.0f : std::exp2(before - largest);
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(row[0], row[1]), _mm512_add_ps(row[2], row[3]));
    total = total * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

// 64 queries against 64 keys.
MEGATRON_EXT_TARGET void attend_block(Forward& work, const Attention& problem, std::int64_t b, float slope,
                                      std::int64_t query_block, std::int64_t key_block) {
    const std::int64_t padded = problem.padded_channels(), size = kBlock * padded / 2;
    for (std::int64_t r = 0; r < kBlock; r += 4) {
        __m512 scores[4][4];
        clear(scores);
        multiply<4>(scores, work.rows.get() + r * padded, padded, work.keys.get() + key_block * size, kBlock,
                    padded / 2);
        float shrink[4];
        for (int m = 0; m < 4; ++m) {
            const std::int64_t i = query_block * kBlock + r + m;
            const auto distance = static_cast<float>(key_block * kBlock - problem.first - i);
            finish_scores(scores[m], {problem.scale * kLog2E, slope, distance, visible_keys(problem, b, i, key_block)});
            shrink[m] = take_shares(scores[m], work.largest[r + m], work.total[r + m]);
            for (int v = 0; v < 4; ++v) store(work.shares.get() + m * kBlock + v * kLanes, scores[m][v]);
        }
        multiply_rows(work.out.get() + r * padded, padded, shrink, work.shares.get(), kBlock,
                      work.values.get() + key_block * size, padded, kBlock / 2, padded);
    }
}

MEGATRON_EXT_TARGET void write_block(Forward& work, const Attention& problem, const Operands& operands, std::int64_t b,
                                     std::int64_t n, std::int64_t query_block) {
    const std::int64_t padded = problem.padded_channels();
    float* sums = operands.sums + (b * problem.heads + n) * problem.queries;
    for (std::int64_t r = 0; r < kBlock && query_block * kBlock + r < problem.queries; ++r) {
        const std::int64_t i = query_block * kBlock + r;
        sums[i] = work.largest[r] + std::log2(work.total[r]);
        bf16* to = const_cast<bf16*>(operands.out.at(i, b, n));
        const __m512 factor = _mm512_set1_ps(1.0f / work.total[r]);
        for (std::int64_t c = 0; c < problem.channels; c += kLanes) {
            const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(work.out.get() + r * padded + c), factor);
            store(to + c, value, lanes(c, problem.channels));
        }
    }
}

MEGATRON_EXT_TARGET void attend_head(Forward& work, const Attention& problem, const Operands& operands, std::int64_t b,
                                     std::int64_t n) {
    const std::int64_t padded = problem.padded_channels();
    const float slope = problem.slopes == nullptr ? 0.0f : problem.slopes[n] * kLog2E;
    for (std::int64_t block = 0; block < problem.query_blocks(); ++block) {
        pack_rows(work.rows.get(), problem, operands.query, problem.queries, problem.rotation.queries, problem.first, b,
                  n, block * kBlock, true);
        std::fill_n(work.out.get(), kBlock * padded, 0.0f);
        std::fill_n(work.largest, kBlock, kLowest);
        std::fill_n(work.total, kBlock, 0.0f);
        const Visible visible = visible_blocks(problem, b, block);
        for (std::int64_t keys = visible.first_block; keys < visible.end_block; ++keys) {
            attend_block(work, problem, b, slope, block, keys);
        }
        write_block(work, problem, operands, b, n, block);
    }
}

}  // namespace

void attention_forward(const Attention& problem, const Operands& operands) {
    const std::int64_t group = problem.heads / problem.key_heads;
    for_each_key_head<Forward>(problem, [&](Forward& work, std::int64_t b, std::int64_t n) {
        pack_keys(work, problem, operands, b, n);
        for (std::int64_t i = 0; i < group; ++i) attend_head(work, problem, operands, b, n * group + i);
    });
}

#else

void attention_forward(const Attention&, const Operands&) {}

#endif

}  // namespace megatron_ext::kernels
