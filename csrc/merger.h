// Merger: joins the symbols of one segment by a MergeTable, in time linear in the segment's length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "merge_table.h"

namespace megatron_ext {

class Merger {
public:
    static constexpr std::size_t kScanLimit = 128;  // up to here a vectorised scan beats a heap

    // window: symbols that are merged at once, at least 2. The result does not depend on it.
    Merger(const MergeTable& table, std::size_t window);

    std::size_t window() const { return window_; }

    // Merges symbols[0 .. count) in place; returns how many symbols are left. More symbols than the window must be initial
    // ones, of length 1.
    std::size_t merge(Symbol* symbols, std::size_t count);

private:
    std::size_t merge_whole(Symbol* symbols, std::size_t count);
    std::size_t merge_by_scan(Symbol* symbols, std::size_t count) const;
    std::size_t merge_by_heap(Symbol* symbols, std::size_t count);
    void merge_by_windows(const Symbol* symbols, std::size_t count);
    void merge_window(const Symbol* symbols, std::size_t count);
    bool join_window(std::size_t first_token, std::size_t start);

    const MergeTable& table_;
    const std::size_t window_;
    std::vector<Symbol> tokens_;                // of the text up to the end of the last window
    std::vector<Symbol> window_input_, window_tokens_;  // the last window: a text that repeats itself repeats its windows
    std::vector<std::int32_t> ranks_;           // the heap's: rank of the pair that begins at each symbol
    std::vector<std::uint32_t> next_, previous_;
    std::vector<std::uint64_t> heap_;
};

}  // namespace megatron_ext
