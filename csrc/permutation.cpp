// permute: a keyed bijection of [0, n), evaluated per index; no array of size n exists anywhere.
//
// Formula: a balanced Feistel network of 8 rounds on 2h bits, h the smallest integer >= 1 with 4^h >= n. A value is a
// pair (left, right) of h-bit words; round r maps it to (right, left xor low_h(mix(right + k_r))), where
// k_r = mix(key + (r + 1) G). An image outside [0, n) is mapped again until it falls inside (cycle walking), which
// keeps the map a bijection of [0, n); fewer than 4 evaluations are expected.
// Shapes and types: key uint64, n int64 in [1, 2^62], indices int64 [k] each in [0, n) -> int64 [k].
// Python twin: megatron_ext/native_numpy.py, permute (the same values).
//
// Source: Luby and Rackoff 1988 (Feistel networks as permutations); Black and Rogaway 2002, "Ciphers with arbitrary
// finite domains" (cycle walking).

#include <stdexcept>

#include "operations.h"

namespace megatron_ext {
namespace {

constexpr int kRounds = 8;

}  // namespace

void permute(std::uint64_t key, std::int64_t size, const std::int64_t* indices, std::int64_t count, std::int64_t* out) {
    if (size < 1 || size > (std::int64_t{1} << 62)) throw std::invalid_argument("permute: size must be in [1, 2^62]");
    int half = 1;
    while (half < 31 && (std::int64_t{1} << (2 * half)) < size) ++half;
    const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
    std::uint64_t round_keys[kRounds];
    for (int r = 0; r < kRounds; ++r) round_keys[r] = mix64(key + static_cast<std::uint64_t>(r + 1) * kGolden);

    for (std::int64_t i = 0; i < count; ++i) {
        if (indices[i] < 0 || indices[i] >= size) throw std::out_of_range("permute: an index is outside [0, size)");
        std::uint64_t value = static_cast<std::uint64_t>(indices[i]);
        do {
            std::uint64_t left = value >> half, right = value & mask;
            for (int r = 0; r < kRounds; ++r) {
                const std::uint64_t next = left ^ (mix64(right + round_keys[r]) & mask);
                left = right;
                right = next;
            }
            value = (left << half) | right;
        } while (value >= static_cast<std::uint64_t>(size));
        out[i] = static_cast<std::int64_t>(value);
    }
}

}  // namespace megatron_ext
