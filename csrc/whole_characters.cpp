// Finds the characters that can stand for their bytes from the start.

#include "whole_characters.h"

#include <algorithm>
#include <cstddef>

#include "utf8.h"

namespace megatron_ext {
namespace {

bool continues(char byte) { return (static_cast<std::uint8_t>(byte) & 0xC0U) == 0x80U; }

}  // namespace

WholeCharacters::WholeCharacters(const MergeTable& table, const std::array<Symbol, 256>& byte_symbols,
                                 const std::vector<std::string>& texts)
    : symbols_(-1) {
    std::unordered_map<std::uint32_t, Completed> found;
    for (const std::string& text : texts) {
        if (text.size() < 2 || continues(text[0]) || text.size() != utf8_length(bytes_of(text)[0])) continue;
        if (!std::all_of(text.begin() + 1, text.end(), continues)) continue;
        std::vector<Symbol> symbols;
        for (const char byte : text) symbols.push_back(byte_symbols[static_cast<std::uint8_t>(byte)]);
        const std::uint8_t* at = bytes_of(text);
        const Completed completed = merge_alone(table, std::move(symbols));
        if (completed.symbol >= 0) found.emplace(next_code_point(at), completed);
    }
    table.for_each([&](const MergeTable::Pair& pair) {
        const std::string &left = texts[static_cast<std::size_t>(pair.left)], &right = texts[static_cast<std::size_t>(pair.right)];
        if (left.empty() || right.empty() || continues(right[0])) return;
        drop_hurried(left + right, pair.merge.rank, found);
    });
    for (const auto& [code, completed] : found) symbols_.set(code, completed.symbol);
}

// Merges a few symbols by the definition; symbol -1 when more than one is left.
WholeCharacters::Completed WholeCharacters::merge_alone(const MergeTable& table, std::vector<Symbol> symbols) {
    std::int32_t latest = -1;
    while (symbols.size() > 1) {
        std::size_t best = 0;
        const auto merge_at = [&](std::size_t i) { return table.find(symbols[i], symbols[i + 1]); };
        for (std::size_t i = 1; i + 1 < symbols.size(); ++i) {
            if (merge_at(i).rank < merge_at(best).rank) best = i;
        }
        const MergeTable::Merge merge = merge_at(best);
        if (merge.rank == MergeTable::kNoMerge) return {-1, latest};
        latest = std::max(latest, merge.rank);
        symbols[best] = merge.joined;
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    return {symbols[0], latest};
}

// A merge of `rank` across a border makes `text`: take out its characters that are not complete by then.
void WholeCharacters::drop_hurried(const std::string& text, std::int32_t rank,
                                   std::unordered_map<std::uint32_t, Completed>& found) {
    const std::uint8_t *at = bytes_of(text), *const end = at + text.size();
    while (at < end && (*at & 0xC0U) == 0x80U) ++at;
    while (at < end && at + utf8_length(*at) <= end) {
        const auto character = found.find(next_code_point(at));
        if (character != found.end() && character->second.rank >= rank) found.erase(character);
    }
}

}  // namespace megatron_ext
