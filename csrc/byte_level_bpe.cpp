// Byte-level BPE: special tokens are cut out, the rest is split into words by a pattern, each word's bytes are merged.
//
// A word is a run of letters, and where a script has no spaces that is a phrase met only once. Words with other characters
// than ASCII are therefore cut once more where no merge can cross (character_cuts.h), and the parts are mostly known ones.

#include "byte_level_bpe.h"

#include <algorithm>
#include <stdexcept>

namespace megatron_ext {
namespace {

constexpr std::ptrdiff_t kShortWord = 6;  // bytes; no shorter word is cut
constexpr unsigned kPart = 1;             // the kind of segments that are not whole words

}  // namespace

ByteLevelBpe::ByteLevelBpe(MergeTable table, ByteLevelSettings settings, const std::vector<Token>& words,
                           const std::array<std::vector<Token>, 2>& special, BpeTuning tuning)
    : table_(std::move(table)),
      settings_(std::move(settings)),
      texts_(texts_of(table_, settings_.byte_symbols)),
      cuts_(texts_),
      characters_(table_, settings_.byte_symbols, texts_),
      tuning_(tuning) {
    if (settings_.classes.size() != 0x110000) throw std::invalid_argument("one class a code point is needed");
    for (std::size_t set = 0; set < special.size(); ++set) {
        for (const Token& token : special[set]) special_[set].insert(token.first, token.second);
    }
    table_.make_dense(*std::min_element(settings_.byte_symbols.begin(), settings_.byte_symbols.end()));
    keep_exceptional(words);
}

// The bytes of every symbol that merging can produce; empty for the others.
std::vector<std::string> ByteLevelBpe::texts_of(const MergeTable& table, const std::array<Symbol, 256>& byte_symbols) {
    std::vector<std::string> texts(table.num_symbols());
    for (std::size_t byte = 0; byte < 256; ++byte) {
        table.check(byte_symbols[byte]);
        texts[static_cast<std::size_t>(byte_symbols[byte])] = static_cast<char>(byte);
    }
    for (bool is_new = true; is_new;) {
        is_new = false;
        table.for_each([&](const MergeTable::Pair& pair) {
            const std::string& first = texts[static_cast<std::size_t>(pair.left)];
            const std::string& second = texts[static_cast<std::size_t>(pair.right)];
            std::string& text = texts[static_cast<std::size_t>(pair.merge.joined)];
            if (!text.empty() || first.empty() || second.empty()) return;
            text = first + second;
            is_new = true;
        });
    }
    return texts;
}

// Of the words that are tokens whatever the merges say, remember only those for which the merges say something else.
void ByteLevelBpe::keep_exceptional(const std::vector<Token>& words) {
    BpeWorkspace workspace(table_, tuning_);
    for (const auto& [text, id] : words) {
        IdBuffer merged;
        append_merged(bytes_of(text), bytes_of(text) + text.size(), workspace, merged);
        if (merged.size() == 1 && merged.data()[0] == id) continue;
        exceptional_.emplace(text, id);
        longest_exceptional_ = std::max(longest_exceptional_, text.size());
    }
}

bool ByteLevelBpe::encode(std::string_view text, BpeWorkspace& workspace, IdBuffer& ids) const {
    const std::size_t first_id = ids.size();
    WordScanner scanner(settings_.pattern, settings_.classes);
    const Bytes begin = bytes_of(text), end = begin + text.size();
    split_special({begin, end, end}, 0, scanner, workspace, ids);
    if (scanner.uncertain()) ids.truncate(first_id);
    return !scanner.uncertain();
}

void ByteLevelBpe::split_special(const TextSegment& text, std::size_t set, WordScanner& scanner, BpeWorkspace& workspace,
                                 IdBuffer& ids) const {
    if (set == special_.size()) return append_words(text, scanner, workspace, ids);
    const PrefixTree& tokens = special_[set];
    Bytes begin = text.begin, at = tokens.empty() ? text.end : text.begin;
    while (at < text.end) {
        const PrefixTree::Match match = tokens.may_begin(*at) ? tokens.longest(at, text.end) : PrefixTree::Match{0, -1};
        if (match.length == 0) {
            ++at;
            continue;
        }
        split_special({begin, at, text.readable_end}, set + 1, scanner, workspace, ids);
        ids.append(match.value);
        at += match.length;
        begin = at;
    }
    split_special({begin, text.end, text.readable_end}, set + 1, scanner, workspace, ids);
}

void ByteLevelBpe::append_words(TextSegment text, WordScanner& scanner, BpeWorkspace& workspace, IdBuffer& ids) const {
    if (text.begin == text.end) return;
    if (settings_.add_prefix_space && *text.begin != ' ') {
        workspace.text.assign(1, ' ');
        workspace.text.insert(workspace.text.end(), text.begin, text.end);
        text.begin = workspace.text.data();
        text.readable_end = text.end = text.begin + workspace.text.size();
    }
    for (Bytes at = text.begin; at < text.end;) {
        const Bytes begin = at;
        at = scanner.word_end(begin, text.end);
        const TextSegment word{begin, at, text.readable_end};
        if (at - begin > kShortWord && ((begin[0] | begin[1] | at[-1]) & 0x80U) != 0) {
            append_in_parts(word, workspace, ids);
            continue;
        }
        workspace.append_segment(word, ids, [&](IdBuffer& out) {
            if (!append_exceptional(begin, at, out)) append_merged(begin, at, workspace, out);
        });
    }
}

// A word with other characters than ASCII: cut where no merge can cross.
void ByteLevelBpe::append_in_parts(const TextSegment& word, BpeWorkspace& workspace, IdBuffer& ids) const {
    if (append_exceptional(word.begin, word.end, ids)) return;
    TextSegment part = word;
    part.kind = exceptional_.empty() ? 0 : kPart;
    bool whole = true;  // no token can begin or end inside a character of the part
    const auto finish = [&](Bytes end) {
        part.end = end;
        if (!append_character(part, ids)) {
            workspace.append_segment(part, ids, [&](IdBuffer& out) {
                whole ? append_merged_characters(part.begin, end, workspace, out) : append_merged(part.begin, end, workspace, out);
            });
        }
        part.begin = end;
        whole = true;
    };
    Bytes border = word.begin + utf8_length(*word.begin);
    CharacterBytes left(word.begin, border);
    while (border < word.end) {
        const Bytes right_end = border + utf8_length(*border);
        const CharacterBytes right(border, right_end);
        const bool both_ascii = left.size == 1 && right.size == 1;
        const CharacterCuts::Join join = both_ascii ? CharacterCuts::kWhole : cuts_.join(left, right);
        if (join == CharacterCuts::kNever) finish(border);
        whole = whole && join != CharacterCuts::kInside;
        left = right;
        border = right_end;
    }
    finish(word.end);
}

// False: the part is more than one character, or one of several tokens.
bool ByteLevelBpe::append_character(const TextSegment& part, IdBuffer& ids) const {
    Bytes at = part.begin;
    if (at + utf8_length(*at) != part.end) return false;
    const std::uint32_t code = next_code_point(at);
    const Symbol symbol = code < 0x80 ? settings_.byte_symbols[code] : characters_.symbol(code);
    if (symbol >= 0) ids.append(symbol);
    return symbol >= 0;
}

bool ByteLevelBpe::append_exceptional(Bytes begin, Bytes end, IdBuffer& ids) const {
    const auto count = static_cast<std::size_t>(end - begin);
    if (count > longest_exceptional_) return false;
    const auto word = exceptional_.find(std::string(reinterpret_cast<const char*>(begin), count));
    if (word == exceptional_.end()) return false;
    ids.append(word->second);
    return true;
}

void ByteLevelBpe::append_merged(Bytes begin, Bytes end, BpeWorkspace& workspace, IdBuffer& ids) const {
    const auto count = static_cast<std::size_t>(end - begin);
    std::vector<Symbol>& symbols = workspace.symbols;
    if (symbols.size() < count) symbols.resize(count);
    for (std::size_t i = 0; i < count; ++i) symbols[i] = settings_.byte_symbols[begin[i]];
    ids.append(symbols.data(), workspace.merger.merge(symbols.data(), count));
}

// The same where no token can begin or end inside a character: begin with whole characters.
void ByteLevelBpe::append_merged_characters(Bytes begin, Bytes end, BpeWorkspace& workspace, IdBuffer& ids) const {
    const auto most = static_cast<std::size_t>(end - begin);
    if (most > tuning_.window) return append_merged(begin, end, workspace, ids);  // windows are cut between bytes
    std::vector<Symbol>& symbols = workspace.symbols;
    if (symbols.size() < most) symbols.resize(most);
    std::size_t count = 0;
    for (Bytes at = begin; at < end;) {
        const Bytes character = at;
        const std::uint32_t code = next_code_point(at);
        const Symbol whole = code < 0x80 ? settings_.byte_symbols[code] : characters_.symbol(code);
        if (whole >= 0) {
            symbols[count++] = whole;
        } else {
            for (Bytes byte = character; byte < at; ++byte) symbols[count++] = settings_.byte_symbols[*byte];
        }
    }
    // Where windows are joined, places are counted in bytes: a long part begins with its bytes.
    if (count > workspace.merger.window()) return append_merged(begin, end, workspace, ids);
    ids.append(symbols.data(), workspace.merger.merge(symbols.data(), count));
}

}  // namespace megatron_ext
