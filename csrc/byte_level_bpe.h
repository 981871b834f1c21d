// ByteLevelBpe: texts to ids as byte-level tokenizer.json files and tiktoken rank files define them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bpe_workspace.h"
#include "character_cuts.h"
#include "prefix_tree.h"
#include "pretokenize.h"
#include "whole_characters.h"

namespace megatron_ext {

struct ByteLevelSettings {
    WordPattern pattern;
    bool add_prefix_space = false;        // each stretch of text that begins with no space gets one
    std::vector<std::uint8_t> classes;    // CharacterClass bits of all 0x110000 code points
    std::array<Symbol, 256> byte_symbols{};
};

class ByteLevelBpe {
public:
    using Token = std::pair<std::string_view, std::int32_t>;

    // words: a word that is one of these is that token, however it would be merged. special: two sets of tokens that are cut out of texts before anything else, the
    // leftmost first and of those the longest; the second set only where the first left text over.
    ByteLevelBpe(MergeTable table, ByteLevelSettings settings, const std::vector<Token>& words,
                 const std::array<std::vector<Token>, 2>& special, BpeTuning tuning);

    // Appends the ids of one valid UTF-8 text. False, with nothing appended: a character of uncertain class is in it.
    bool encode(std::string_view text, BpeWorkspace& workspace, IdBuffer& ids) const;

    std::unique_ptr<BpeWorkspace> take_workspace() { return keeper_.take(table_, tuning_); }
    void give_back(std::unique_ptr<BpeWorkspace> workspace) { keeper_.give_back(std::move(workspace)); }

private:
    using Bytes = const std::uint8_t*;

    static std::vector<std::string> texts_of(const MergeTable& table, const std::array<Symbol, 256>& byte_symbols);
    void keep_exceptional(const std::vector<Token>& words);
    void split_special(const TextSegment& text, std::size_t set, WordScanner& scanner, BpeWorkspace& workspace, IdBuffer& ids) const;
    void append_words(TextSegment text, WordScanner& scanner, BpeWorkspace& workspace, IdBuffer& ids) const;
    void append_in_parts(const TextSegment& word, BpeWorkspace& workspace, IdBuffer& ids) const;
    bool append_character(const TextSegment& part, IdBuffer& ids) const;
    bool append_exceptional(Bytes begin, Bytes end, IdBuffer& ids) const;
    void append_merged(Bytes begin, Bytes end, BpeWorkspace& workspace, IdBuffer& ids) const;
    void append_merged_characters(Bytes begin, Bytes end, BpeWorkspace& workspace, IdBuffer& ids) const;

    MergeTable table_;
    ByteLevelSettings settings_;
    std::vector<std::string> texts_;  // of the symbols that merging can produce
    CharacterCuts cuts_;
    WholeCharacters characters_;
    std::unordered_map<std::string, std::int32_t> exceptional_;  // whole words that merging would not give
    std::size_t longest_exceptional_ = 0;                        // in bytes
    std::array<PrefixTree, 2> special_;
    BpeTuning tuning_;
    WorkspaceKeeper keeper_;
};

}  // namespace megatron_ext
