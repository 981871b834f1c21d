// The pair table of a byte-pair encoding: built once, then only read.

#include "merge_table.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace megatron_ext {
namespace {

constexpr std::uint32_t kDenseSize = 320;  // 256 bytes, and special tokens that have ids among them

}  // namespace

MergeTable::MergeTable(std::vector<std::int32_t> lengths, const std::vector<Pair>& pairs) : lengths_(std::move(lengths)) {
    if (lengths_.size() >= kSymbolMask) throw std::invalid_argument("a vocabulary of more than two million symbols");
    for (const Pair& pair : pairs) check(pair);
    const auto sort_key = [&](std::size_t i) { return std::make_pair(pairs[i].merge.rank, pairs[i].merge.joined); };
    std::vector<std::size_t> order(pairs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sort_key(a) < sort_key(b); });
    std::vector<std::uint64_t> places(pairs.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        if (i == 0 || sort_key(order[i]) != sort_key(order[i - 1])) merges_.push_back(pairs[order[i]].merge);
        places[order[i]] = merges_.size() - 1;
    }
    if (merges_.size() >= kPlaceMask) throw std::invalid_argument("more than four million merges");

    int bits = 4;
    while ((std::size_t{1} << bits) * 2 < pairs.size() * 3 + 2) ++bits;
    entries_.assign(std::size_t{1} << bits, kEmpty);
    mask_ = entries_.size() - 1;
    shift_ = 64 - bits;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const std::uint64_t key = key_of(pairs[i].left, pairs[i].right);
        std::size_t slot = slot_of(key);
        while (entries_[slot] != kEmpty && (entries_[slot] & ~kPlaceMask) != key) slot = (slot + 1) & mask_;
        entries_[slot] = key | places[i];
    }
}

void MergeTable::make_dense(Symbol base) {
    dense_base_ = base;
    dense_size_ = kDenseSize;
    dense_.assign(std::size_t{kDenseSize} * kDenseSize, Merge{kNoMerge, -1});
    for_each([&](const Pair& pair) {
        const auto row = static_cast<std::uint32_t>(pair.left - base), column = static_cast<std::uint32_t>(pair.right - base);
        if (row < kDenseSize && column < kDenseSize) dense_[row * kDenseSize + column] = pair.merge;
    });
}

void MergeTable::check(Symbol symbol) const {
    if (symbol < 0 || static_cast<std::size_t>(symbol) >= lengths_.size()) {
        throw std::invalid_argument("a merge names symbol " + std::to_string(symbol) + " of " + std::to_string(lengths_.size()));
    }
}

void MergeTable::check(const Pair& pair) const {
    for (const Symbol symbol : {pair.left, pair.right, pair.merge.joined}) check(symbol);
    if (pair.merge.rank < 0 || pair.merge.rank == kNoMerge) {
        throw std::invalid_argument("a merge has rank " + std::to_string(pair.merge.rank));
    }
    if (length(pair.left) < 1 || length(pair.right) < 1 || length(pair.left) + length(pair.right) != length(pair.merge.joined)) {
        throw std::invalid_argument("symbols " + std::to_string(pair.left) + " and " + std::to_string(pair.right) +
                                    " do not make symbol " + std::to_string(pair.merge.joined));
    }
}

}  // namespace megatron_ext
