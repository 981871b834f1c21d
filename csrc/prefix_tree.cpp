// The tree of user-defined pieces and of special tokens: small sets, looked up only where a first byte fits.

#include "prefix_tree.h"

#include <stdexcept>

namespace megatron_ext {

void PrefixTree::insert(std::string_view text, std::int32_t value) {
    if (text.empty() || value < 0) throw std::invalid_argument("an empty token or a negative id");
    begins_[static_cast<std::uint8_t>(text[0])] = true;
    std::uint32_t node = 0;
    for (const char character : text) {
        const std::uint64_t step = std::uint64_t{node} * 256 + static_cast<std::uint8_t>(character);
        const auto [child, is_new] = children_.try_emplace(step, static_cast<std::uint32_t>(values_.size()));
        if (is_new) values_.push_back(-1);
        node = child->second;
    }
    values_[node] = value;
}

PrefixTree::Match PrefixTree::longest(const std::uint8_t* text, const std::uint8_t* end) const {
    Match best{0, -1};
    std::uint32_t node = 0;
    for (const std::uint8_t* at = text; at < end;) {
        const auto child = children_.find(std::uint64_t{node} * 256 + *at++);
        if (child == children_.end()) break;
        node = child->second;
        if (values_[node] >= 0) best = {static_cast<std::size_t>(at - text), values_[node]};
    }
    return best;
}

}  // namespace megatron_ext
