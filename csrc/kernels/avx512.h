// What the CPU kernels share: bf16 in memory, fp32 in registers, AVX-512 with its bf16 products.
//
// Every function here and every caller is compiled for AVX-512 by a function target, and `supported()` says at run
// time whether this machine has it: the module can be loaded anywhere.

#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MEGATRON_EXT_KERNELS 1
#include <immintrin.h>
#else
#define MEGATRON_EXT_KERNELS 0
#endif

#define MEGATRON_EXT_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define MEGATRON_EXT_INLINE MEGATRON_EXT_TARGET inline __attribute__((always_inline))

namespace megatron_ext::kernels {

using bf16 = std::uint16_t;
constexpr std::int64_t kLanes = 16;

// Whether this machine can run the kernels.
inline bool supported() {
#if MEGATRON_EXT_KERNELS
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

#if MEGATRON_EXT_KERNELS

MEGATRON_EXT_INLINE __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// 16 numbers; those outside of `mask` are 0 and not read.
MEGATRON_EXT_INLINE __m512 load(const bf16* from, __mmask16 mask = 0xffff) {
    return widen(_mm256_maskz_loadu_epi16(mask, from));
}

// To nearest, ties to even; subnormal numbers become 0.
MEGATRON_EXT_INLINE __m256i narrow(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

MEGATRON_EXT_INLINE void store(bf16* to, __m512 values, __mmask16 mask = 0xffff) {
    _mm256_mask_storeu_epi16(to, mask, narrow(values));
}

// The lanes of a row of `columns` that begin at `first`: all 16, fewer at the end of the row.
MEGATRON_EXT_INLINE __mmask16 lanes(std::int64_t first, std::int64_t columns) {
    const std::int64_t left = columns - first;
    return left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

// 2^x: exact powers of two times a polynomial of degree 5 (relative error below 3e-7); 0 for x < -150, inf above 128.
MEGATRON_EXT_INLINE __m512 exp2(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 value = _mm512_set1_ps(1.33335581e-3f);
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(9.61812911e-3f));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(5.55041087e-2f));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(2.40226507e-1f));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(6.93147181e-1f));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(value, whole);
}

constexpr float kLog2E = 1.44269504f;

#endif

}  // namespace megatron_ext::kernels
