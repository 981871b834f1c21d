// Word scanners: where the next pre-token of a text ends, for the patterns that byte-level tokenizers split by.
#pragma once

#include <cstdint>
#include <vector>

#include "utf8.h"

namespace megatron_ext {

// Bits of a code point's class. The table comes from Python (megatron_ext/tokenizer/unicode_classes.py has the same bits).
enum CharacterClass : std::uint8_t {
    kLetter = 1,        // \p{L}
    kNumber = 2,        // \p{N}
    kSpace = 4,         // \s
    kLineEnd = 8,       // \r \n
    kUpperOrMark = 16,  // \p{Lu} \p{Lt} \p{Lm} \p{Lo} \p{M}
    kLowerOrMark = 32,  // \p{Ll} \p{Lm} \p{Lo} \p{M}
    kUncertain = 64,    // its class depends on the version of Unicode
};

// How the alternatives of a pattern are set.
struct WordPattern {
    enum Family : std::uint8_t { kGpt2, kCl100k, kO200k };
    Family family = kGpt2;
    bool contractions = true;  // (?i:'s|'t|'re|'ve|'m|'ll|'d): in front (cl100k), behind a word (o200k)
    int max_digits = 1;        // \p{N}{1,max_digits}; not for gpt2, where numbers are runs
    bool slashes = false;      // symbols are followed by [\r\n/]*, else by [\r\n]*
    bool whole_ending = false;  // \s++$ before \s*[\r\n]: all spaces at the end of the text are one word
};

// Scans one text by one pattern; see pretokenize.cpp for the patterns.
class WordScanner {
public:
    WordScanner(const WordPattern& pattern, const std::vector<std::uint8_t>& classes) : pattern_(pattern), classes_(classes.data()) {}

    // The end of the word that begins at `at` < end; every byte of a text belongs to one word.
    const std::uint8_t* word_end(const std::uint8_t* at, const std::uint8_t* end) {
        switch (pattern_.family) {
            case WordPattern::kGpt2: return gpt2_end(at, end);
            case WordPattern::kCl100k: return cl100k_end(at, end);
            default: return o200k_end(at, end);
        }
    }

    // Whether a character of uncertain class was met.
    bool uncertain() const { return (seen_ & kUncertain) != 0; }

private:
    std::uint8_t class_of(const std::uint8_t*& at) {
        if (*at < 0x80) return classes_[*at++];
        const std::uint8_t found = classes_[next_code_point(at)];
        seen_ |= found;
        return found;
    }
    const std::uint8_t* run(const std::uint8_t* at, const std::uint8_t* end, std::uint8_t wanted);
    const std::uint8_t* symbols_run(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* digits(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* spaces_end(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* symbols_end(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* contraction_end(const std::uint8_t* at, const std::uint8_t* end, bool any_case) const;
    const std::uint8_t* cased_word_end(const std::uint8_t* at, const std::uint8_t* end, bool lower_needed);

    const std::uint8_t* gpt2_end(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* cl100k_end(const std::uint8_t* at, const std::uint8_t* end);
    const std::uint8_t* o200k_end(const std::uint8_t* at, const std::uint8_t* end);

    WordPattern pattern_;
    const std::uint8_t* classes_;  // of 0x110000 code points
    std::uint8_t seen_ = 0;
};

}  // namespace megatron_ext
