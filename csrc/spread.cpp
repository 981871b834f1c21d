// spread, spread_counts: mixtures without state; which dataset stands at place n, and how many of its samples came before.
//
// Formula, with B = 53 and place n in [0, 2^B]:
//     x(n) = the B bits of n in reverse order                  van der Corput's sequence in base 2, scaled by 2^B
//     d(n) = the i with t_i <= x(n) < t_(i+1)                  for thresholds 0 = t_0 <= t_1 <= ... <= t_k = 2^B
//     F(n, t) = number of places m < n with x(m) < t           what spread_counts gives
//     rank(n) = F(n, t_(d(n)+1)) - F(n, t_d(n))                samples of d(n) at places before n
// F needs no walk: the places below n are one block [n with bits 0..b zero, and 2^b more) for every set bit b of n. In a
// block the lower b bits run through everything, so that x runs through a regular grid of spacing 2^(B-b) that begins at
// the reversed upper bits r_b of n, and
//     F(n, t) = sum over set bits b of  floor(t / 2^(B-b)) + [r_b < t mod 2^(B-b)].
// An interval holds floor or ceil of its share of each grid, so after n places dataset i stands within popcount(n) samples
// of n (t_(i+1) - t_i) / 2^B.
// Shapes and types: thresholds int64 [k + 1], start, count -> dataset int16 [count], rank int64 [count];
// place, thresholds int64 [j] -> int64 [j].
// Python twins: megatron_ext/sampling_numpy.py, spread and spread_counts (the same values).
//
// Source: J. G. van der Corput 1935, "Verteilungsfunktionen"; H. Niederreiter 1992, "Random number generation and
// quasi-Monte Carlo methods", 3.1.

#include <algorithm>
#include <vector>

#include "operations.h"

namespace megatron_ext {
namespace {

constexpr int kBits = kSpreadBits;

std::int64_t reversed(std::int64_t n) {
    std::uint64_t x = static_cast<std::uint64_t>(n);
    x = ((x >> 1) & 0x5555555555555555ULL) | ((x & 0x5555555555555555ULL) << 1);
    x = ((x >> 2) & 0x3333333333333333ULL) | ((x & 0x3333333333333333ULL) << 2);
    x = ((x >> 4) & 0x0F0F0F0F0F0F0F0FULL) | ((x & 0x0F0F0F0F0F0F0F0FULL) << 4);
    x = ((x >> 8) & 0x00FF00FF00FF00FFULL) | ((x & 0x00FF00FF00FF00FFULL) << 8);
    x = ((x >> 16) & 0x0000FFFF0000FFFFULL) | ((x & 0x0000FFFF0000FFFFULL) << 16);
    x = (x >> 32) | (x << 32);
    return static_cast<std::int64_t>(x >> (64 - kBits));
}

std::int64_t count_below(std::int64_t place, std::int64_t threshold) {
    if (place >> kBits) return threshold;  // place 2^B, the only one with this bit: every point came once
    const std::int64_t upper = reversed(place);
    std::int64_t count = 0;
    for (int bit = 0; place >> bit; ++bit) {
        if (!((place >> bit) & 1)) continue;
        const int shift = kBits - bit;
        const std::int64_t begin = upper & ((std::int64_t{1} << (shift - 1)) - 1);
        count += (threshold >> shift) + (begin < (threshold & ((std::int64_t{1} << shift) - 1)));
    }
    return count;
}

}  // namespace

void spread_counts(std::int64_t place, const std::int64_t* thresholds, std::int64_t size, std::int64_t* counts) {
    for (std::int64_t i = 0; i < size; ++i) counts[i] = count_below(place, thresholds[i]);
}

void spread(const std::int64_t* thresholds, std::int64_t num_datasets, std::int64_t start, std::int64_t count,
            std::int16_t* dataset, std::int64_t* rank) {
    std::vector<std::int64_t> next(num_datasets, -1);  // the rank of a dataset's next sample, once it is known
    for (std::int64_t n = 0; n < count; ++n) {
        const std::int64_t* after = std::upper_bound(thresholds, thresholds + num_datasets, reversed(start + n));
        const std::int64_t i = after - thresholds - 1;
        if (next[i] < 0) next[i] = count_below(start + n, thresholds[i + 1]) - count_below(start + n, thresholds[i]);
        dataset[n] = static_cast<std::int16_t>(i);
        rank[n] = next[i]++;
    }
}

}  // namespace megatron_ext
