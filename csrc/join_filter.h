// JoinFilter: which neighbours stand side by side in any token. Where two do not, no merge can ever cross between them, so a
// text may be cut there and the parts merged alone. A filter of bits: it may say yes wrongly, which costs time, not truth.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_ext {

class JoinFilter {
public:
    JoinFilter() : bits_(1, 0), shift_(58) {}

    // keys: one for each pair of neighbours, repetitions allowed.
    explicit JoinFilter(std::vector<std::uint64_t> keys) {
        std::sort(keys.begin(), keys.end());
        keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
        int log = 6;
        while (log < kMaxLog && (std::size_t{1} << log) < kBitsPerKey * keys.size()) ++log;
        shift_ = 64 - log;
        bits_.assign((std::size_t{1} << log) / 64, 0);
        for (const std::uint64_t key : keys) bits_[place(key) / 64] |= std::uint64_t{1} << (place(key) % 64);
    }

    bool may_hold(std::uint64_t key) const { return (bits_[place(key) / 64] >> (place(key) % 64)) & 1U; }

private:
    static constexpr std::size_t kBitsPerKey = 20;
    static constexpr int kMaxLog = 22;  // half a megabyte, so that it stays in the processor's cache

    std::size_t place(std::uint64_t key) const { return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ULL) >> shift_); }

    std::vector<std::uint64_t> bits_;
    int shift_;
};

}  // namespace megatron_ext
