// SentencePiece BPE without a pre-tokenizer made fast: the text is cut where no merge can cross.
//
// The library's steps, restated from its documented behaviour and checked against it id for id:
//   1. Normalise: drop leading spaces and all but one of each run (remove_extra_whitespaces), put a space in front or behind
//      (add_dummy_prefix), write spaces as the mark U+2581 (escape_whitespaces), drop trailing marks.
//   2. Match user-defined pieces, the longest first; they are never merged. Every other character is a symbol.
//   3. Join the adjacent pair whose joined text is the piece of the highest score, the leftmost of equals.
//   4. A symbol that is no piece is unknown: its UTF-8 bytes' pieces (byte fallback), or one unknown id for a run of them.
//
// Inside this file a space stands for the mark (when spaces are escaped): pieces are translated once, and a text needs no
// three-byte marks. Two neighbouring characters that stand side by side in no piece can never end up in one symbol, so
// the text is cut between them, exactly. Words and short Chinese phrases come out as segments, most of them seen before.

#include "sentencepiece_bpe.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "utf8.h"

namespace megatron_ext {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";

}  // namespace

SentencePieceBpe::SentencePieceBpe(const std::vector<std::string_view>& pieces, const std::vector<std::int32_t>& ranks,
                                   const std::vector<std::uint8_t>& kinds, SentencePieceSettings settings, BpeTuning tuning)
    : settings_(std::move(settings)),
      tuning_(tuning),
      num_pieces_(static_cast<std::int32_t>(pieces.size())),
      characters_(static_cast<Symbol>(pieces.size())) {
    if (ranks.size() != pieces.size() || kinds.size() != pieces.size()) throw std::invalid_argument("one rank and kind a piece");
    if (!settings_.byte_ids.empty() && settings_.byte_ids.size() != 256) throw std::invalid_argument("256 byte ids or none");

    SymbolsByText symbols;
    std::vector<std::int32_t> units(pieces.size(), 1);
    std::vector<RankedPiece> ranked;
    pieces_.reserve(pieces.size());  // views into the strings stay valid
    byte_lengths_.assign(pieces.size(), 0);
    for (std::size_t id = 0; id < pieces.size(); ++id) {
        const std::string& text = pieces_.emplace_back(spaced(pieces[id]));
        if (text.empty()) throw std::invalid_argument("an empty piece");
        if (kinds[id] == kUserDefined) user_defined_.insert(text, static_cast<std::int32_t>(id));
        if (kinds[id] == kReserved && utf8_length(bytes_of(text)[0]) == text.size()) {
            throw std::invalid_argument("a reserved piece is a single character");
        }
        if (kinds[id] != kNormal) continue;
        if (text.size() > std::numeric_limits<std::uint8_t>::max()) throw std::invalid_argument("a piece of 256 bytes or more");
        if (!symbols.emplace(text, static_cast<Symbol>(id)).second) throw std::invalid_argument("two equal pieces");
        ranked.push_back({text, static_cast<Symbol>(id), ranks[id]});
        byte_lengths_[id] = static_cast<std::uint8_t>(text.size());
    }
    units.push_back(1);  // of the characters that occur in no piece
    for (const RankedPiece& piece : ranked) units[static_cast<std::size_t>(piece.symbol)] = add_characters(piece.text, symbols, units);

    std::vector<std::uint64_t> neighbours;
    for (const RankedPiece& piece : ranked) note_neighbours(piece.text, neighbours);
    neighbours_ = JoinFilter(std::move(neighbours));
    table_ = std::make_unique<MergeTable>(merges_of_pieces(ranked, symbols, std::move(units), true));
}

std::string SentencePieceBpe::spaced(std::string_view piece) const {
    std::string text(piece);
    if (!settings_.escape_whitespaces) return text;
    if (text.find(' ') != std::string::npos) throw std::invalid_argument("a piece with a space where marks are used");
    for (std::size_t at = text.find(kMark); at != std::string::npos; at = text.find(kMark, at)) text.replace(at, kMark.size(), " ");
    return text;
}

// Give every character of a piece a symbol: its own piece, or a new one that only stands for itself. Returns how many
// characters there are.
std::int32_t SentencePieceBpe::add_characters(std::string_view text, SymbolsByText& symbols, std::vector<std::int32_t>& units) {
    const std::uint8_t *at = bytes_of(text), *end = at + text.size();
    std::int32_t count = 0;
    while (at < end) {
        const std::uint8_t* begin = at;
        const std::uint32_t code = next_code_point(at);
        const std::string_view character = text.substr(static_cast<std::size_t>(begin - bytes_of(text)), static_cast<std::size_t>(at - begin));
        const auto [entry, is_new] = symbols.emplace(character, static_cast<Symbol>(units.size()));
        if (is_new) units.push_back(1);
        characters_.set(code, entry->second);
        ++count;
    }
    return count;
}

void SentencePieceBpe::note_neighbours(std::string_view text, std::vector<std::uint64_t>& keys) const {
    const std::uint8_t *at = bytes_of(text), *end = at + text.size();
    for (Symbol left = characters_[next_code_point(at)]; at < end;) {
        const Symbol right = characters_[next_code_point(at)];
        keys.push_back(pair_of(left, right));
        left = right;
    }
}

void SentencePieceBpe::normalize(std::string_view text, std::vector<std::uint8_t>& out) const {
    out.resize(text.size() + 2);
    std::uint8_t *const begin = out.data(), *to = begin;
    const std::uint8_t *from = bytes_of(text), *const end = from + text.size();
    const bool remove = settings_.remove_extra_whitespaces, escape = settings_.escape_whitespaces;
    while (remove && from < end && *from == ' ') ++from;
    if (from < end && settings_.add_dummy_prefix && !settings_.whitespace_as_suffix) *to++ = ' ';
    const bool has_text = from < end;
    bool after_space = false;  // and a space more is to be left out
    while (from < end) {
        const std::uint8_t byte = *from;
        if (byte == ' ') {
            if (!after_space) *to++ = ' ';
            after_space = remove;
            ++from;
            continue;
        }
        after_space = false;
        if (byte == 0xE2 && escape && end - from >= 3 && from[1] == 0x96 && from[2] == 0x81) {
            *to++ = ' ';
            from += 3;
        } else {
            *to++ = byte;
            ++from;
        }
    }
    while (remove && to > begin && to[-1] == ' ') --to;
    if (has_text && settings_.add_dummy_prefix && settings_.whitespace_as_suffix) *to++ = ' ';
    out.resize(static_cast<std::size_t>(to - begin));
}

bool SentencePieceBpe::encode(std::string_view text, BpeWorkspace& workspace, IdBuffer& ids) const {
    const std::size_t first_id = ids.size();
    normalize(text, workspace.text);
    const std::uint8_t *at = workspace.text.data(), *const end = at + workspace.text.size();
    std::vector<Symbol>& symbols = workspace.symbols;
    const bool has_user_defined = !user_defined_.empty();
    TextSegment segment{at, at, end};
    std::size_t count = 0;  // of the segment's characters
    const auto finish = [&](const std::uint8_t* next) {
        append_segment(segment, count, workspace, ids);
        segment.begin = next;
        count = 0;
    };
    for (Symbol previous = 0; at < end;) {
        segment.end = at;
        if (has_user_defined && user_defined_.may_begin(*at)) {
            if (const PrefixTree::Match match = user_defined_.longest(at, end); match.length > 0) {
                at += match.length;
                finish(at);
                ids.append(match.value);
                continue;
            }
        }
        const Symbol symbol = characters_[next_code_point(at)];
        if (count > 0 && !neighbours_.may_hold(pair_of(previous, symbol))) finish(segment.end);
        if (count == symbols.size()) symbols.resize(2 * count + 64);
        symbols[count++] = previous = symbol;
    }
    segment.end = end;
    finish(end);
    if (settings_.byte_ids.empty()) {  // neighbouring unknown pieces are one
        const std::int32_t unknown = settings_.unknown_id;
        const auto both = [unknown](std::int32_t left, std::int32_t right) { return left == unknown && right == unknown; };
        std::int32_t* const begin = ids.data() + first_id;
        ids.truncate(first_id + static_cast<std::size_t>(std::unique(begin, ids.data() + ids.size(), both) - begin));
    }
    return true;
}

void SentencePieceBpe::append_segment(const TextSegment& segment, std::size_t count, BpeWorkspace& workspace,
                                      IdBuffer& ids) const {
    if (count == 0) return;
    if (count == 1 && workspace.symbols[0] < num_pieces_) return ids.append(workspace.symbols[0]);
    workspace.append_segment(segment, ids, [&](IdBuffer& out) { append_merged(segment, count, workspace, out); });
}

void SentencePieceBpe::append_merged(const TextSegment& segment, std::size_t count, BpeWorkspace& workspace,
                                     IdBuffer& ids) const {
    count = workspace.merger.merge(workspace.symbols.data(), count);
    const std::uint8_t* at = segment.begin;
    for (std::size_t i = 0; i < count; ++i) {
        const Symbol symbol = workspace.symbols[i];
        std::size_t length;
        if (symbol < num_pieces_) {
            length = byte_lengths_[static_cast<std::size_t>(symbol)];
            ids.append(symbol);
        } else {
            length = utf8_length(*at);
            append_unknown(at, length, ids);
        }
        at += length;
    }
}

void SentencePieceBpe::append_unknown(const std::uint8_t* text, std::size_t length, IdBuffer& ids) const {
    if (settings_.byte_ids.empty()) return ids.append(settings_.unknown_id);
    const bool is_mark = settings_.escape_whitespaces && *text == ' ';
    const std::uint8_t* const bytes = is_mark ? bytes_of(kMark) : text;
    for (std::size_t i = 0; i < (is_mark ? kMark.size() : length); ++i) ids.append(settings_.byte_ids[bytes[i]]);
}

}  // namespace megatron_ext
