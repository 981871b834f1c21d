// The merges that a set of ranked pieces stands for.

#include "ranked_pieces.h"

#include <utility>

namespace megatron_ext {

MergeTable merges_of_pieces(const std::vector<RankedPiece>& pieces, const SymbolsByText& symbols,
                            std::vector<std::int32_t> units, bool whole_characters) {
    std::vector<MergeTable::Pair> pairs;
    for (const RankedPiece& piece : pieces) {
        for (std::size_t cut = 1; cut < piece.text.size(); ++cut) {
            const bool inside_character = (static_cast<unsigned char>(piece.text[cut]) & 0xC0U) == 0x80U;
            if (whole_characters && inside_character) continue;
            const auto left = symbols.find(piece.text.substr(0, cut));
            if (left == symbols.end()) continue;
            const auto right = symbols.find(piece.text.substr(cut));
            if (right != symbols.end()) pairs.push_back({left->second, right->second, {piece.rank, piece.symbol}});
        }
    }
    return MergeTable(std::move(units), pairs);
}

}  // namespace megatron_ext
