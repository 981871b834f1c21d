// From pieces with ranks (SentencePiece scores, tiktoken ranks) to a MergeTable.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "merge_table.h"

namespace megatron_ext {

// A piece that merging may end in: its text, its symbol, its rank (smaller is earlier, equal ranks are allowed).
struct RankedPiece {
    std::string_view text;
    Symbol symbol;
    std::int32_t rank;
};

using SymbolsByText = std::unordered_map<std::string_view, Symbol>;

// Such schemes join the adjacent pair whose joined text is the piece of the best rank. So each cut of a piece into two texts
// that are symbols themselves is a merge with the rank of the piece; all others can never meet.
//   symbols  every text that can stand as one symbol: the pieces, and single characters that are none.
//   units    initial symbols in each symbol; cuts are tried between characters when `whole_characters`, else at each byte.
MergeTable merges_of_pieces(const std::vector<RankedPiece>& pieces, const SymbolsByText& symbols,
                            std::vector<std::int32_t> units, bool whole_characters);

}  // namespace megatron_ext
