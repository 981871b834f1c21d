// Causal attention of bf16 heads, cut into blocks of 64 queries and 64 keys, as FlashAttention does (arXiv:2205.14135,
// arXiv:2307.08691): scores live in registers, the softmax is put together block by block, the backward pass computes
// the scores again from the sum of each row. What is multiplied is bf16, what is summed is fp32.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "avx512.h"

namespace megatron_ext::kernels {

constexpr std::int64_t kBlock = 64;

// `[s, b, n, hn]`, channels side by side; strides in elements.
template <typename T>
struct Heads {
    T* data;
    std::int64_t token, row, head;

    T* at(std::int64_t s, std::int64_t b, std::int64_t n) const { return data + s * token + b * row + n * head; }
};

// Rotation of the first 2 * half channels: channel d with d + half, by the place of its token.
struct Rotation {
    const float* cosines;  // `[places, half]`
    const float* sines;
    std::int64_t half;            // 0: none
    const std::int64_t* queries;  // `[b, queries]`, their places; null: first, first + 1, ...
    const std::int64_t* keys;     // `[b, keys]`; null: 0, 1, ...
};

// What is attended to. Query i stands at key first + i and sees the keys from its start to itself.
struct Attention {
    std::int64_t batch, heads, key_heads, queries, keys, channels, first;
    float scale;
    const float* slopes;         // `[heads]` of ALiBi: slope * (key - place of the query) is added to a score; or null
    const std::int64_t* starts;  // `[b, queries]`: the first key that a query sees; or null
    Rotation rotation;

    std::int64_t padded_channels() const { return (channels + 31) / 32 * 32; }
    std::int64_t query_blocks() const { return (queries + kBlock - 1) / kBlock; }
    std::int64_t key_blocks() const { return (keys + kBlock - 1) / kBlock; }
};

struct Operands {
    Heads<const bf16> query, key, value;
    Heads<const bf16> out;  // `[s, b, n, hn]`; written by the forward pass
    float* sums;            // fp32 `[b, n, queries]`: log2 of the sum of 2^score of a row; written by the forward pass
};

struct Gradients {
    Heads<const bf16> out;  // given
    Heads<bf16> query, key, value;
};

void attention_forward(const Attention& problem, const Operands& operands);
void attention_backward(const Attention& problem, const Operands& operands, const Gradients& gradients);

#if MEGATRON_EXT_KERNELS

// Memory of one thread, aligned to cache lines and not touched before that thread writes it.
template <typename T>
class Workspace {
public:
    explicit Workspace(std::int64_t size)
        : memory_(static_cast<T*>(::operator new[](static_cast<std::size_t>(size) * sizeof(T), kLine))) {}
    T* get() const { return memory_.get(); }

private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* memory) const { ::operator delete[](memory, kLine); }
    };
    std::unique_ptr<T[], Free> memory_;
};

// body(work, b, n) for every head n of keys of every row b of the batch, each as one thread's task: with all heads of
// queries that read it, so that nothing depends on how many threads there are. What a thread works in is made before
// any of them starts, where running out of memory is still an error that Python can see.
template <typename Work, typename Body>
void for_each_key_head(const Attention& problem, const Body& body) {
    const std::int64_t tasks = problem.batch * problem.key_heads;
    if (tasks == 0) return;
    const int threads = static_cast<int>(std::min<std::int64_t>(tasks, omp_get_max_threads()));
    std::vector<std::unique_ptr<Work>> works;
    for (int thread = 0; thread < threads; ++thread) works.push_back(std::make_unique<Work>(problem));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t task = 0; task < tasks; ++task) {
        body(*works[omp_get_thread_num()], task / problem.key_heads, task % problem.key_heads);
    }
}

// The blocks of keys that the queries of a block see.
struct Visible {
    std::int64_t first_block, end_block;
};

inline Visible visible_blocks(const Attention& problem, std::int64_t b, std::int64_t query_block) {
    const std::int64_t begin = query_block * kBlock;
    const std::int64_t end = begin + kBlock < problem.queries ? begin + kBlock : problem.queries;
    std::int64_t first = 0;
    if (problem.starts != nullptr) {
        const std::int64_t* starts = problem.starts + b * problem.queries;
        first = starts[begin];
        for (std::int64_t i = begin; i < end; ++i) first = starts[i] < first ? starts[i] : first;
    }
    return {first / kBlock, (problem.first + end + kBlock - 1) / kBlock};
}

// Bit j: whether query i of the batch row sees key `block * 64 + j`. Rows that only pad a block are like the last one.
inline std::uint64_t visible_keys(const Attention& problem, std::int64_t b, std::int64_t i, std::int64_t block) {
    i = i < problem.queries ? i : problem.queries - 1;
    const std::int64_t low = problem.starts == nullptr ? 0 : problem.starts[b * problem.queries + i] - block * kBlock;
    const std::int64_t high = problem.first + i + 1 - block * kBlock;
    const std::uint64_t below_high = high >= kBlock ? ~0ull : high <= 0 ? 0 : (1ull << high) - 1;
    const std::uint64_t below_low = low >= kBlock ? ~0ull : low <= 0 ? 0 : (1ull << low) - 1;
    return below_high & ~below_low;
}

// acc += A B for 4 rows and 16 V columns. A: bf16 rows, `a_row` apart; B: pairs of rows side by side, `b_row` apart.
template <int V>
MEGATRON_EXT_INLINE void multiply(__m512 (&acc)[4][V], const bf16* a, std::int64_t a_row, const std::uint32_t* b,
                                  std::int64_t b_row, std::int64_t pairs) {
    for (std::int64_t p = 0; p < pairs; ++p) {
        __m512bh right[V];
        for (int v = 0; v < V; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + p * b_row + v * kLanes);
        for (int m = 0; m < 4; ++m) {
            const auto pair = *reinterpret_cast<const int*>(a + m * a_row + 2 * p);
            const auto left = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], left, right[v]);
        }
    }
}

template <int V>
MEGATRON_EXT_INLINE void clear(__m512 (&acc)[4][V]) {
    for (auto& row : acc) {
        for (auto& value : row) value = _mm512_setzero_ps();
    }
}

// C = C * (scale of its row) + A B for 4 rows and 16 V columns of fp32, `c_row` apart.
template <int V>
MEGATRON_EXT_INLINE void multiply_into(float* c, std::int64_t c_row, const float* scales, const bf16* a,
                                       std::int64_t a_row, const std::uint32_t* b, std::int64_t b_row,
                                       std::int64_t pairs) {
    __m512 acc[4][V];
    for (int m = 0; m < 4; ++m) {
        const __m512 scale = _mm512_set1_ps(scales == nullptr ? 1.0f : scales[m]);
        for (int v = 0; v < V; ++v) acc[m][v] = _mm512_mul_ps(_mm512_loadu_ps(c + m * c_row + v * kLanes), scale);
    }
    multiply<V>(acc, a, a_row, b, b_row, pairs);
    for (int m = 0; m < 4; ++m) {
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + m * c_row + v * kLanes, acc[m][v]);
    }
}

// The same for any multiple of 32 columns.
MEGATRON_EXT_INLINE void multiply_rows(float* c, std::int64_t c_row, const float* scales, const bf16* a,
                                       std::int64_t a_row, const std::uint32_t* b, std::int64_t b_row,
                                       std::int64_t pairs, std::int64_t columns) {
    std::int64_t column = 0;
    for (; column + 64 <= columns; column += 64) {
        multiply_into<4>(c + column, c_row, scales, a, a_row, b + column, b_row, pairs);
    }
    if (column < columns) multiply_into<2>(c + column, c_row, scales, a, a_row, b + column, b_row, pairs);
}

// Rows `first` to `first + 64` of a head as bf16 `[64, padded channels]`, rotated; 0 where there is no row or channel.
void pack_rows(bf16* to, const Attention& problem, const Heads<const bf16>& from, std::int64_t tokens,
               const std::int64_t* places, std::int64_t shift, std::int64_t b, std::int64_t n, std::int64_t first,
               bool rotate);

// fp32 `[64, padded channels]` times `scale`, turned back, to rows `first` to `first + 64` of a head.
void unpack_rows(const Heads<bf16>& to, const Attention& problem, const float* from, std::int64_t tokens,
                 const std::int64_t* places, std::int64_t shift, std::int64_t b, std::int64_t n, std::int64_t first,
                 float scale, bool rotate);

// `[rows, columns]` to `[columns, rows]` of 32-bit elements; both multiples of 16.
void transpose(std::uint32_t* to, const std::uint32_t* from, std::int64_t rows, std::int64_t columns);

// bf16 `[rows, columns]` to `[rows / 2, columns]` pairs: an element of an even row with the one below it.
void pair_rows(std::uint32_t* to, const bf16* from, std::int64_t rows, std::int64_t columns);

// 16 pairs of an element of `even` (low half) and one of `odd` (high half), rounded to bf16.
MEGATRON_EXT_INLINE __m512i interleave(__m512 even, __m512 odd) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}

#endif

}  // namespace megatron_ext::kernels
