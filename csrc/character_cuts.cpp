// Collects what the tokens of a vocabulary know of two neighbouring characters.

#include "character_cuts.h"

#include <algorithm>
#include <utility>

#include "utf8.h"

namespace megatron_ext {
namespace {

bool continues(std::uint8_t byte) { return (byte & 0xC0U) == 0x80U; }

}  // namespace

CharacterCuts::CharacterCuts(const std::vector<std::string>& tokens) {
    std::vector<std::uint64_t> keys;
    for (const std::string& token : tokens) {
        const std::uint8_t *const begin = bytes_of(token), *const end = begin + token.size();
        for (const std::uint8_t* border = begin + 1; border < end; ++border) {
            if (!continues(*border)) note(begin, border, end, keys);
        }
    }
    filter_ = JoinFilter(std::move(keys));
}

// Note the border between two characters inside the token [begin, end). What is no part of any valid text is left out.
void CharacterCuts::note(const std::uint8_t* begin, const std::uint8_t* border, const std::uint8_t* end,
                         std::vector<std::uint64_t>& keys) {
    const std::uint8_t* left = border - 1;
    while (left > begin && continues(*left)) --left;
    const auto left_size = static_cast<std::size_t>(border - left), right_size = utf8_length(*border);
    const bool cut_left = continues(*left);
    if (cut_left ? left_size > 3 : left_size != utf8_length(*left)) return;
    const bool cut_right = static_cast<std::size_t>(end - border) < right_size;
    const Description shape{cut_left ? static_cast<unsigned>(left_size) : 0, cut_right ? static_cast<unsigned>(end - border) : 0};
    const auto same = [&](Description other) { return other.left == shape.left && other.right == shape.right; };
    const bool is_partial = cut_left || cut_right;
    if (is_partial && std::none_of(shapes_.begin(), shapes_.end(), same)) shapes_.push_back(shape);
    const CharacterBytes left_part(left, border), right_part(border, cut_right ? end : border + right_size);
    keys.push_back(key_of(shape, left_part.value, right_part.value));
}

}  // namespace megatron_ext
