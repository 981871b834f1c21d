// MergeTable: which two neighbouring symbols may be joined, how early, and what they become.
//
// A byte-pair encoding starts from single symbols (bytes or characters) and joins, again and again, the adjacent pair
// of the best rank, the leftmost of equals, until no adjacent pair is in the table. Every scheme is brought to this form:
//   merge lists (tokenizer.json)      the pair's place in the list is its rank;
//   ranked pieces (SentencePiece, tiktoken)   each piece is cut in all ways whose halves are symbols; its rank is shared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace megatron_ext {

using Symbol = std::int32_t;

class MergeTable {
public:
    static constexpr std::int32_t kNoMerge = std::numeric_limits<std::int32_t>::max();

    struct Merge {
        std::int32_t rank;  // smaller is earlier; kNoMerge: the pair is not in the table
        Symbol joined;
    };
    struct Pair {
        Symbol left, right;
        Merge merge;
    };

    // lengths[s]: initial symbols in symbol s. Symbols are 0 .. lengths.size() - 1. A later pair replaces an earlier equal one.
    // Throws std::invalid_argument for symbols out of range, lengths that do not add up, and more than 2^21 symbols or merges.
    MergeTable(std::vector<std::int32_t> lengths, const std::vector<Pair>& pairs);

    Merge find(Symbol left, Symbol right) const {
        const std::uint64_t key = key_of(left, right);
        for (std::size_t slot = slot_of(key);; slot = (slot + 1) & mask_) {
            const std::uint64_t entry = entries_[slot];
            if ((entry & ~kPlaceMask) == key) return merges_[entry & kPlaceMask];
            if (entry == kEmpty) return {kNoMerge, -1};
        }
    }

    // The same, faster where both symbols are bytes (see `make_dense`).
    Merge find_initial(Symbol left, Symbol right) const {
        const auto row = static_cast<std::uint32_t>(left - dense_base_), column = static_cast<std::uint32_t>(right - dense_base_);
        return row < dense_size_ && column < dense_size_ ? dense_[row * dense_size_ + column] : find(left, right);
    }

    // Lay the pairs of the symbols from `base` on, as many as usually hold all bytes, out as a square.
    void make_dense(Symbol base);

    // Throws std::invalid_argument when there is no such symbol.
    void check(Symbol symbol) const;

    std::size_t num_symbols() const { return lengths_.size(); }
    std::int32_t length(Symbol symbol) const { return lengths_[static_cast<std::size_t>(symbol)]; }

    // Calls visit(pair) for every pair, in no particular order.
    template <typename Visit>
    void for_each(const Visit& visit) const {
        for (const std::uint64_t entry : entries_) {
            if (entry == kEmpty) continue;
            const auto left = static_cast<Symbol>(entry >> (kPlaceBits + kSymbolBits));
            visit(Pair{left, static_cast<Symbol>((entry >> kPlaceBits) & kSymbolMask), merges_[entry & kPlaceMask]});
        }
    }

private:
    // An entry is left symbol, right symbol, place in merges_. Eight bytes, because what counts is that most of the table stays
    // in the processor's cache; merges_ is in the order of the ranks, so that the frequent ones lie together.
    static constexpr int kSymbolBits = 21, kPlaceBits = 22;
    static constexpr std::uint64_t kPlaceMask = (std::uint64_t{1} << kPlaceBits) - 1, kSymbolMask = (std::uint64_t{1} << kSymbolBits) - 1;
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

    static std::uint64_t key_of(Symbol left, Symbol right) {
        return (static_cast<std::uint64_t>(left) << (kPlaceBits + kSymbolBits)) | (static_cast<std::uint64_t>(right) << kPlaceBits);
    }
    std::size_t slot_of(std::uint64_t key) const {
        return static_cast<std::size_t>(((key >> kPlaceBits) * 0x9E3779B97F4A7C15ULL) >> shift_);
    }
    void check(const Pair& pair) const;

    std::vector<std::int32_t> lengths_;
    std::vector<Merge> merges_;
    std::vector<std::uint64_t> entries_;  // open addressing with linear probing, at most two thirds full
    std::size_t mask_ = 0;
    int shift_ = 0;
    Symbol dense_base_ = 0;
    std::uint32_t dense_size_ = 0;
    std::vector<Merge> dense_;
};

}  // namespace megatron_ext
