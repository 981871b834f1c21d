// Rows of heads to contiguous blocks and back, turned by RoPE on the way; transposition.

#include "attention.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

// Of a token in its sequence: as told, or counted from `shift`.
std::int64_t place_of(const std::int64_t* places, std::int64_t tokens, std::int64_t shift, std::int64_t b,
                      std::int64_t row) {
    return places == nullptr ? shift + row : places[b * tokens + row];
}

// The two halves of some rotated channels, turned by an angle; backwards with the sines' sign changed.
struct Pair {
    __m512 first, second;
};

MEGATRON_EXT_INLINE Pair turned(Pair x, __m512 cosines, __m512 sines) {
    return {_mm512_fnmadd_ps(x.second, sines, _mm512_mul_ps(x.first, cosines)),
            _mm512_fmadd_ps(x.first, sines, _mm512_mul_ps(x.second, cosines))};
}

MEGATRON_EXT_TARGET void pack_row(bf16* to, const bf16* from, std::int64_t channels, std::int64_t padded,
                                  const float* cosines, const float* sines, std::int64_t half) {
    for (std::int64_t c = 0; c < half; c += kLanes) {
        const __mmask16 mask = lanes(c, half);
        const Pair x = turned({load(from + c, mask), load(from + half + c, mask)},
                              _mm512_maskz_loadu_ps(mask, cosines + c), _mm512_maskz_loadu_ps(mask, sines + c));
        store(to + c, x.first, mask);
        store(to + half + c, x.second, mask);
    }
    for (std::int64_t c = 2 * half; c < padded; c += kLanes) {
        const __mmask16 inside = c < channels ? lanes(c, channels) : 0;
        _mm256_mask_storeu_epi16(to + c, lanes(c, padded), _mm256_maskz_loadu_epi16(inside, from + c));
    }
}

MEGATRON_EXT_TARGET void unpack_row(bf16* to, const float* from, std::int64_t channels, float scale,
                                    const float* cosines, const float* sines, std::int64_t half) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (std::int64_t c = 0; c < half; c += kLanes) {
        const __mmask16 mask = lanes(c, half);
        const __m512 back = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_maskz_loadu_ps(mask, sines + c));
        const Pair x = turned({_mm512_maskz_loadu_ps(mask, from + c), _mm512_maskz_loadu_ps(mask, from + half + c)},
                              _mm512_maskz_loadu_ps(mask, cosines + c), back);
        store(to + c, _mm512_mul_ps(x.first, factor), mask);
        store(to + half + c, _mm512_mul_ps(x.second, factor), mask);
    }
    for (std::int64_t c = 2 * half; c < channels; c += kLanes) {
        const __mmask16 mask = lanes(c, channels);
        store(to + c, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + c), factor), mask);
    }
}

MEGATRON_EXT_INLINE void transpose16(std::uint32_t* to, std::int64_t to_row, const std::uint32_t* from,
                                     std::int64_t from_row) {
    __m512i x[16], y[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        _mm512_storeu_si512(to + i * to_row, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * to_row, _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
    }
}

}  // namespace

MEGATRON_EXT_TARGET void pack_rows(bf16* to, const Attention& problem, const Heads<const bf16>& from,
                                   std::int64_t tokens, const std::int64_t* places, std::int64_t shift, std::int64_t b,
                                   std::int64_t n, std::int64_t first, bool rotate) {
    const std::int64_t padded = problem.padded_channels(), half = rotate ? problem.rotation.half : 0;
    for (std::int64_t row = 0; row < kBlock; ++row) {
        if (first + row >= tokens) {
            for (std::int64_t c = 0; c < padded; c += 32)
                _mm512_storeu_si512(to + row * padded + c, _mm512_setzero_si512());
            continue;
        }
        const std::int64_t angle = half == 0 ? 0 : half * place_of(places, tokens, shift, b, first + row);
        pack_row(to + row * padded, from.at(first + row, b, n), problem.channels, padded,
                 problem.rotation.cosines + angle, problem.rotation.sines + angle, half);
    }
}

MEGATRON_EXT_TARGET void unpack_rows(const Heads<bf16>& to, const Attention& problem, const float* from,
                                     std::int64_t tokens, const std::int64_t* places, std::int64_t shift,
                                     std::int64_t b, std::int64_t n, std::int64_t first, float scale, bool rotate) {
    const std::int64_t padded = problem.padded_channels(), half = rotate ? problem.rotation.half : 0;
    for (std::int64_t row = 0; row < kBlock && first + row < tokens; ++row) {
        const std::int64_t angle = half == 0 ? 0 : half * place_of(places, tokens, shift, b, first + row);
        unpack_row(to.at(first + row, b, n), from + row * padded, problem.channels, scale,
                   problem.rotation.cosines + angle, problem.rotation.sines + angle, half);
    }
}

MEGATRON_EXT_TARGET void transpose(std::uint32_t* to, const std::uint32_t* from, std::int64_t rows,
                                   std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; r += 16) {
        for (std::int64_t c = 0; c < columns; c += 16)
            transpose16(to + c * rows + r, rows, from + r * columns + c, columns);
    }
}

MEGATRON_EXT_TARGET void pair_rows(std::uint32_t* to, const bf16* from, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; r += 2) {
        for (std::int64_t c = 0; c < columns; c += kLanes) {
            const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + r * columns + c));
            const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + (r + 1) * columns + c));
            const __m512i pairs =
                _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
            _mm512_storeu_si512(to + r / 2 * columns + c, pairs);
        }
    }
}

#endif

}  // namespace megatron_ext::kernels
