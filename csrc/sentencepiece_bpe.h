// SentencePieceBpe: texts to ids as the SentencePiece library does it with a BPE model and the identity normaliser.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe_workspace.h"
#include "code_point_map.h"
#include "join_filter.h"
#include "prefix_tree.h"
#include "ranked_pieces.h"

namespace megatron_ext {

struct SentencePieceSettings {
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    bool escape_whitespaces = true;
    bool whitespace_as_suffix = false;
    std::int32_t unknown_id = 0;
    std::vector<std::int32_t> byte_ids;  // 256 ids with byte fallback, else none
};

class SentencePieceBpe {
public:
    enum Kind : std::uint8_t { kNormal = 0, kUserDefined = 1, kReserved = 2 };  // reserved: unknown, control and byte pieces

    // Piece i has id i. ranks: smaller is earlier, only those of normal pieces matter.
    // Throws std::invalid_argument for a model that this class would encode otherwise than the library.
    SentencePieceBpe(const std::vector<std::string_view>& pieces, const std::vector<std::int32_t>& ranks,
                     const std::vector<std::uint8_t>& kinds, SentencePieceSettings settings, BpeTuning tuning);

    // Appends the ids of one valid UTF-8 text. Every text can be encoded: always true.
    bool encode(std::string_view text, BpeWorkspace& workspace, IdBuffer& ids) const;

    std::unique_ptr<BpeWorkspace> take_workspace() { return keeper_.take(*table_, tuning_); }
    void give_back(std::unique_ptr<BpeWorkspace> workspace) { keeper_.give_back(std::move(workspace)); }

private:
    std::string spaced(std::string_view piece) const;
    std::int32_t add_characters(std::string_view text, SymbolsByText& symbols, std::vector<std::int32_t>& units);
    void note_neighbours(std::string_view text, std::vector<std::uint64_t>& keys) const;
    static std::uint64_t pair_of(Symbol left, Symbol right) {
        return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
    }

    void normalize(std::string_view text, std::vector<std::uint8_t>& out) const;
    // Both take the segment whose characters are the first `count` of workspace.symbols.
    void append_segment(const TextSegment& segment, std::size_t count, BpeWorkspace& workspace, IdBuffer& ids) const;
    void append_merged(const TextSegment& segment, std::size_t count, BpeWorkspace& workspace, IdBuffer& ids) const;
    void append_unknown(const std::uint8_t* text, std::size_t length, IdBuffer& ids) const;

    SentencePieceSettings settings_;
    BpeTuning tuning_;
    std::vector<std::string> pieces_;        // as they are matched: with spaces for marks
    std::int32_t num_pieces_;
    CodePointMap characters_;                // all that occur in no piece share one symbol, the first behind the pieces
    JoinFilter neighbours_;                  // characters that stand side by side in a piece
    std::vector<std::uint8_t> byte_lengths_;  // of pieces, as far as they are produced by merging
    PrefixTree user_defined_;
    std::unique_ptr<MergeTable> table_;
    WorkspaceKeeper keeper_;
};

}  // namespace megatron_ext
