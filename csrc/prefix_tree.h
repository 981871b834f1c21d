// PrefixTree: the longest of a set of strings that a text begins with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace megatron_ext {

class PrefixTree {
public:
    struct Match {
        std::size_t length;  // bytes; 0: no string of the set begins the text
        std::int32_t value;
    };

    // Throws std::invalid_argument for an empty string. A later equal string replaces an earlier one.
    void insert(std::string_view text, std::int32_t value);

    bool empty() const { return values_.size() == 1; }

    // Whether any string begins with this byte; asked before `longest` because almost always it is false.
    bool may_begin(std::uint8_t byte) const { return begins_[byte]; }

    Match longest(const std::uint8_t* text, const std::uint8_t* end) const;

private:
    std::array<bool, 256> begins_{};
    std::unordered_map<std::uint64_t, std::uint32_t> children_;  // node * 256 + byte -> node
    std::vector<std::int32_t> values_{-1};                       // of each node; -1: no string ends there
};

}  // namespace megatron_ext
