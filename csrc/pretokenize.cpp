// The patterns of byte-level tokenizers as hand-written scanners. Alternatives are tried in the order of the pattern; within
// one, the greedy match with its backtracking is worked out by hand.
//
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   cl100k  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//           the first alternative only with `contractions`; \s*[\r\n] at the end means the same as \s*[\r\n]+
//   o200k   [^\r\n\p{L}\p{N}]?U*L+C|[^\r\n\p{L}\p{N}]?U+L*C|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
//           with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], L = [\p{Ll}\p{Lm}\p{Lo}\p{M}], C = the contractions, optional

#include "pretokenize.h"

namespace megatron_ext {
namespace {

constexpr std::uint8_t kNoSymbol = kLetter | kNumber | kSpace;
constexpr std::uint8_t kNoPrefix = kLetter | kNumber | kLineEnd;

}  // namespace

// The end of the run of characters with any bit of `wanted`.
const std::uint8_t* WordScanner::run(const std::uint8_t* at, const std::uint8_t* end, std::uint8_t wanted) {
    while (at < end) {
        const std::uint8_t* next = at;
        if ((class_of(next) & wanted) == 0) break;
        at = next;
    }
    return at;
}

const std::uint8_t* WordScanner::symbols_run(const std::uint8_t* at, const std::uint8_t* end) {
    while (at < end) {
        const std::uint8_t* next = at;
        if ((class_of(next) & kNoSymbol) != 0) break;
        at = next;
    }
    return at;
}

const std::uint8_t* WordScanner::digits(const std::uint8_t* at, const std::uint8_t* end) {
    for (int count = 0; at < end && count < pattern_.max_digits; ++count) {
        const std::uint8_t* next = at;
        if ((class_of(next) & kNumber) == 0) break;
        at = next;
    }
    return at;
}

// \s+(?!\S)|\s+ at a space, and before it \s*[\r\n]+ for the families that have it: up to the last line end of the run; else
// all of a run at the end of the text; else all but its last character; else its one character.
const std::uint8_t* WordScanner::spaces_end(const std::uint8_t* at, const std::uint8_t* end) {
    const std::uint8_t *last = at, *line_end = nullptr, *const begin = at;
    while (at < end) {
        const std::uint8_t* next = at;
        const std::uint8_t found = class_of(next);
        if ((found & kSpace) == 0) break;
        last = at;
        at = next;
        if ((found & kLineEnd) != 0) line_end = at;
    }
    if (at == end && pattern_.whole_ending) return at;
    if (line_end != nullptr && pattern_.family != WordPattern::kGpt2) return line_end;
    return at == end || last == begin ? at : last;
}

// [^\s\p{L}\p{N}]+[\r\n]* with its first character known to fit.
const std::uint8_t* WordScanner::symbols_end(const std::uint8_t* at, const std::uint8_t* end) {
    at = symbols_run(at, end);
    while (at < end && (*at == '\r' || *at == '\n' || (*at == '/' && pattern_.slashes))) ++at;
    return at;
}

// The end of 's|'t|'re|'ve|'m|'ll|'d at `at`; nullptr: there is none. In any case, s is also U+017F, the long s.
const std::uint8_t* WordScanner::contraction_end(const std::uint8_t* at, const std::uint8_t* end, bool any_case) const {
    if (end - at < 2 || *at != '\'') return nullptr;
    const auto letter = [&](std::ptrdiff_t place) {
        if (place >= end - at) return std::uint8_t{0};
        const std::uint8_t byte = at[place];
        return any_case && byte >= 'A' && byte <= 'Z' ? static_cast<std::uint8_t>(byte + 32) : byte;
    };
    const std::uint8_t first = letter(1), second = letter(2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) return at + 3;
    if (any_case && first == 0xC5 && second == 0xBF) return at + 3;
    return nullptr;
}

const std::uint8_t* WordScanner::gpt2_end(const std::uint8_t* at, const std::uint8_t* end) {
    if (const std::uint8_t* found = contraction_end(at, end, false)) return found;
    const std::uint8_t* next = at;
    std::uint8_t first = class_of(next);
    if (*at == ' ' && next < end) first = class_of(next);
    if ((first & kLetter) != 0) return run(next, end, kLetter);
    if ((first & kNumber) != 0) return run(next, end, kNumber);
    if ((first & kSpace) == 0) return symbols_run(next, end);
    return spaces_end(at, end);
}

const std::uint8_t* WordScanner::cl100k_end(const std::uint8_t* at, const std::uint8_t* end) {
    if (pattern_.contractions) {
        if (const std::uint8_t* found = contraction_end(at, end, true)) return found;
    }
    const std::uint8_t* next = at;
    const std::uint8_t first = class_of(next);
    if ((first & kLetter) != 0) return run(next, end, kLetter);
    if ((first & kNumber) != 0) return digits(at, end);
    std::uint8_t second = kSpace;
    const std::uint8_t* after = next;
    if (next < end) second = class_of(after);
    if ((first & kNoPrefix) == 0 && (second & kLetter) != 0) return run(after, end, kLetter);
    if ((first & kNoSymbol) == 0) return symbols_end(next, end);
    if (*at == ' ' && (second & kNoSymbol) == 0) return symbols_end(after, end);
    return spaces_end(at, end);
}

// U*L+ (lower_needed) or U+L* at `at`, and the contraction behind it; nullptr: it does not match.
const std::uint8_t* WordScanner::cased_word_end(const std::uint8_t* at, const std::uint8_t* end, bool lower_needed) {
    const std::uint8_t *const begin = at, *last_lower = nullptr;
    while (at < end) {
        const std::uint8_t* next = at;
        const std::uint8_t found = class_of(next);
        if ((found & kUpperOrMark) == 0) break;
        at = next;
        if ((found & kLowerOrMark) != 0) last_lower = at;
    }
    const std::uint8_t* word = run(at, end, kLowerOrMark);
    if (lower_needed && word == at) word = last_lower;  // U* gives back what L+ needs
    if (!lower_needed && at == begin) word = nullptr;
    if (word == nullptr || !pattern_.contractions) return word;
    const std::uint8_t* contraction = contraction_end(word, end, true);
    return contraction != nullptr ? contraction : word;
}

const std::uint8_t* WordScanner::o200k_end(const std::uint8_t* at, const std::uint8_t* end) {
    const std::uint8_t* next = at;
    const std::uint8_t first = class_of(next);
    for (const bool lower_needed : {true, false}) {
        if ((first & kNoPrefix) == 0) {
            if (const std::uint8_t* found = cased_word_end(next, end, lower_needed)) return found;
        }
        if (const std::uint8_t* found = cased_word_end(at, end, lower_needed)) return found;
    }
    if ((first & kNumber) != 0) return digits(at, end);
    if ((first & kNoSymbol) == 0) return symbols_end(next, end);
    if (*at == ' ' && next < end) {
        const std::uint8_t* after = next;
        if ((class_of(after) & kNoSymbol) == 0) return symbols_end(after, end);
    }
    return spaces_end(at, end);
}

}  // namespace megatron_ext
