// The scans of blend_scan.h: AVX-512 and AVX2 through function targets, chosen at run time, and plain C++.
// All of them round alike: one multiplication, one subtraction, never a fused one.

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "blend_scan.h"

#include <limits>
#include <stdexcept>

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGATRON_EXT_WIDE_SCANS 1
#include <immintrin.h>
#endif

namespace megatron_ext {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();

std::int64_t best_portable(const double* weights, const double* counts, std::int64_t size, double place) {
    std::int64_t best = 0;
    double best_error = kLowest;
    for (std::int64_t i = 0; i < size; ++i) {
        const double error = weights[i] * place - counts[i];
        if (error > best_error) {
            best_error = error;
            best = i;
        }
    }
    return best;
}

std::int64_t count_portable(const double* weights, const double* counts, std::int64_t size, double place,
                            double threshold) {
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; ++i) number += weights[i] * place - counts[i] >= threshold;
    return number;
}

std::int64_t collect_portable(const double* weights, const double* counts, std::int64_t size, double place,
                              double threshold, std::int64_t* found) {
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; ++i) {
        found[number] = i;
        number += weights[i] * place - counts[i] >= threshold;
    }
    return number;
}

#if MEGATRON_EXT_WIDE_SCANS

#define MEGATRON_EXT_AVX2 __attribute__((target("avx2")))
#define MEGATRON_EXT_AVX512 __attribute__((target("avx512f")))

MEGATRON_EXT_AVX2 inline __m256d errors4(const double* weights, const double* counts, __m256d place) {
    return _mm256_sub_pd(_mm256_mul_pd(_mm256_loadu_pd(weights), place), _mm256_loadu_pd(counts));
}

MEGATRON_EXT_AVX2 std::int64_t best_avx2(const double* weights, const double* counts, std::int64_t size, double place) {
    const __m256d at = _mm256_set1_pd(place);
    __m256d most[4];
    for (__m256d& lane : most) lane = _mm256_set1_pd(kLowest);
    for (std::int64_t i = 0; i < size; i += 16) {
        for (int j = 0; j < 4; ++j) most[j] = _mm256_max_pd(most[j], errors4(weights + i + 4 * j, counts + i + 4 * j, at));
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_max_pd(_mm256_max_pd(most[0], most[1]), _mm256_max_pd(most[2], most[3])));
    double largest = lanes[0];
    for (int j = 1; j < 4; ++j) largest = lanes[j] > largest ? lanes[j] : largest;
    const __m256d wanted = _mm256_set1_pd(largest);
    for (std::int64_t i = 0; i < size; i += 4) {  // the first of equal ones
        const int equal = _mm256_movemask_pd(_mm256_cmp_pd(errors4(weights + i, counts + i, at), wanted, _CMP_EQ_OQ));
        if (equal) return i + __builtin_ctz(static_cast<unsigned>(equal));
    }
    return 0;
}

MEGATRON_EXT_AVX2 std::int64_t count_avx2(const double* weights, const double* counts, std::int64_t size, double place,
                                          double threshold) {
    const __m256d at = _mm256_set1_pd(place), least = _mm256_set1_pd(threshold);
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; i += 4) {
        const __m256d errors = errors4(weights + i, counts + i, at);
        number += __builtin_popcount(static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(errors, least, _CMP_GE_OQ))));
    }
    return number;
}

MEGATRON_EXT_AVX2 std::int64_t collect_avx2(const double* weights, const double* counts, std::int64_t size, double place,
                                            double threshold, std::int64_t* found) {
    const __m256d at = _mm256_set1_pd(place), least = _mm256_set1_pd(threshold);
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; i += 4) {
        const __m256d errors = errors4(weights + i, counts + i, at);
        unsigned mask = static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(errors, least, _CMP_GE_OQ)));
        for (; mask; mask &= mask - 1) found[number++] = i + __builtin_ctz(mask);
    }
    return number;
}

MEGATRON_EXT_AVX512 inline __m512d errors8(const double* weights, const double* counts, __m512d place) {
    return _mm512_sub_pd(_mm512_mul_pd(_mm512_loadu_pd(weights), place), _mm512_loadu_pd(counts));
}

MEGATRON_EXT_AVX512 std::int64_t best_avx512(const double* weights, const double* counts, std::int64_t size,
                                             double place) {
    const __m512d at = _mm512_set1_pd(place);
    __m512d most[4];
    for (__m512d& lane : most) lane = _mm512_set1_pd(kLowest);
    for (std::int64_t i = 0; i < size; i += 32) {
        for (int j = 0; j < 4; ++j) most[j] = _mm512_max_pd(most[j], errors8(weights + i + 8 * j, counts + i + 8 * j, at));
    }
    const __m512d wanted = _mm512_set1_pd(
        _mm512_reduce_max_pd(_mm512_max_pd(_mm512_max_pd(most[0], most[1]), _mm512_max_pd(most[2], most[3]))));
    for (std::int64_t i = 0; i < size; i += 8) {  // the first of equal ones
        const __mmask8 equal = _mm512_cmp_pd_mask(errors8(weights + i, counts + i, at), wanted, _CMP_EQ_OQ);
        if (equal) return i + __builtin_ctz(equal);
    }
    return 0;
}

MEGATRON_EXT_AVX512 std::int64_t count_avx512(const double* weights, const double* counts, std::int64_t size,
                                              double place, double threshold) {
    const __m512d at = _mm512_set1_pd(place), least = _mm512_set1_pd(threshold);
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; i += 8) {
        number += __builtin_popcount(_mm512_cmp_pd_mask(errors8(weights + i, counts + i, at), least, _CMP_GE_OQ));
    }
    return number;
}

MEGATRON_EXT_AVX512 std::int64_t collect_avx512(const double* weights, const double* counts, std::int64_t size,
                                                double place, double threshold, std::int64_t* found) {
    const __m512d at = _mm512_set1_pd(place), least = _mm512_set1_pd(threshold);
    const __m512i eight = _mm512_set1_epi64(8);
    __m512i numbers = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < size; i += 8) {
        const __mmask8 mask = _mm512_cmp_pd_mask(errors8(weights + i, counts + i, at), least, _CMP_GE_OQ);
        // number <= i, so that eight more always have room
        _mm512_storeu_si512(found + number, _mm512_maskz_compress_epi64(mask, numbers));
        number += __builtin_popcount(mask);
        numbers = _mm512_add_epi64(numbers, eight);
    }
    return number;
}

#endif

std::vector<BlendScan> usable_scans() {
    std::vector<BlendScan> scans;
#if MEGATRON_EXT_WIDE_SCANS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) scans.push_back({"avx512", &best_avx512, &count_avx512, &collect_avx512});
    if (__builtin_cpu_supports("avx2")) scans.push_back({"avx2", &best_avx2, &count_avx2, &collect_avx2});
#endif
    scans.push_back({"portable", &best_portable, &count_portable, &collect_portable});
    return scans;
}

}  // namespace

const std::vector<BlendScan>& blend_scans() {
    static const std::vector<BlendScan> scans = usable_scans();
    return scans;
}

const BlendScan& blend_scan(const std::string& name) {
    for (const BlendScan& scan : blend_scans()) {
        if (name.empty() || name == scan.name) return scan;
    }
    throw std::invalid_argument("blend: this machine has no scan of that name");
}

}  // namespace megatron_ext
