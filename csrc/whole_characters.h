// WholeCharacters: the characters that byte-level merging may begin with as one symbol, with the result of beginning with
// their bytes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "code_point_map.h"
#include "merge_table.h"

namespace megatron_ext {

// Where no token can begin or end inside a character (CharacterCuts tells), bytes of different characters are only joined
// when both characters are whole, so each character is first merged alone. Its bytes become one symbol, by merges of at most
// some rank. If every merge across a border between characters that its symbol takes part in comes later than that, it makes
// no difference to begin with the symbol: the first merge across a border that would then come out otherwise joins symbols
// of which one is not complete yet when merging from bytes; but the merge that is still missing there is earlier, so it
// would have been done before.
class WholeCharacters {
public:
    // texts: the bytes of each symbol, empty for those that merging cannot produce.
    WholeCharacters(const MergeTable& table, const std::array<Symbol, 256>& byte_symbols, const std::vector<std::string>& texts);

    // The symbol of a character beyond ASCII; -1: begin with its bytes.
    Symbol symbol(std::uint32_t code) const { return symbols_[code]; }

private:
    struct Completed {
        Symbol symbol;
        std::int32_t rank;  // of the latest merge that makes it
    };

    static Completed merge_alone(const MergeTable& table, std::vector<Symbol> symbols);
    static void drop_hurried(const std::string& text, std::int32_t rank, std::unordered_map<std::uint32_t, Completed>& found);

    CodePointMap symbols_;
};

}  // namespace megatron_ext
