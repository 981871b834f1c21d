// CharacterCuts: how merges of a byte-level vocabulary can cross between two characters of a UTF-8 text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "join_filter.h"

namespace megatron_ext {

// The bytes of one character as a number, the first in the highest place.
struct CharacterBytes {
    std::uint64_t value;
    unsigned size;

    CharacterBytes(const std::uint8_t* begin, const std::uint8_t* end) : value(0), size(static_cast<unsigned>(end - begin)) {
        for (const std::uint8_t* at = begin; at < end; ++at) value = (value << 8) | *at;
    }
    std::uint64_t last(unsigned count) const { return value & ((std::uint64_t{1} << (8 * count)) - 1); }
    std::uint64_t first(unsigned count) const { return value >> (8 * (size - count)); }
};

// A merge that crosses from character A to character B makes a token that holds the last bytes of A and the first of B. The
// token may begin inside A and end inside B: tokens of a byte-level vocabulary can be parts of characters. So each place in
// a token where a character begins is noted with what the token knows of both sides: all of A or its last 1 to 3 bytes, all
// of B or its first 1 to 3 bytes. A and B may join if any of these 16 descriptions of them was noted.
class CharacterCuts {
public:
    enum Join {
        kNever,
        kWhole,   // only in tokens that hold all of both characters
        kInside,  // also in tokens that begin or end inside one of them
    };

    // tokens: the bytes of everything that merging can produce.
    explicit CharacterCuts(const std::vector<std::string>& tokens);

    // How a merge could cross between two neighbouring characters, at most.
    Join join(const CharacterBytes& left, const CharacterBytes& right) const {
        for (const Description& shape : shapes_) {
            if (shape.left >= left.size || shape.right >= right.size) continue;  // that would be all of it
            const std::uint64_t left_part = shape.left == 0 ? left.value : left.last(shape.left);
            const std::uint64_t right_part = shape.right == 0 ? right.value : right.first(shape.right);
            if (filter_.may_hold(key_of(shape, left_part, right_part))) return kInside;
        }
        return filter_.may_hold(key_of({0, 0}, left.value, right.value)) ? kWhole : kNever;
    }

private:
    struct Description {  // bytes known of each side; 0: the whole character
        unsigned left, right;
    };

    static std::uint64_t key_of(Description shape, std::uint64_t left, std::uint64_t right) {
        return ((left << 32) | right) + (shape.left * 4ULL + shape.right) * 0xD6E8FEB86659FD93ULL;
    }
    void note(const std::uint8_t* begin, const std::uint8_t* border, const std::uint8_t* end, std::vector<std::uint64_t>& keys);

    std::vector<Description> shapes_;  // those that occur, without the one of two whole characters
    JoinFilter filter_;
};

}  // namespace megatron_ext
