// Three ways to merge, one result: join the pair of the best rank, the leftmost of equals, until none is left.
//
//   scan      up to kScanLimit symbols: the best pair is found by vectorised minima of blocks. O(n) small steps.
//   heap      longer runs: a linked list and a heap of (rank, place). O(n log n).
//   windows   runs longer than the window: each window is merged alone and the results are joined. O(n).
//
// Why windows may be joined. Let p m q be a text, m not empty, BPE(p m) = P M and BPE(m q) = M Q for a run of tokens M that
// covers exactly m. Then BPE(p m q) = P M Q. Proof: merges on the two sides of a boundary that is never crossed do not
// influence each other, and among themselves are done in the same order whatever happens elsewhere. Take the first merge
// of p m q that crosses p|m or m|q, say p|m. Until then p, m and q were merged as each would be alone, so merging p m alone
// passes through the same state of p and m, finds the same pair across p|m, and finds it best there too, as it has fewer
// rivals. It would be joined there, against BPE(p m) = P M. The same holds for m|q with m q.
// Here m is one token that both windows contain at the same place. A window starts at a token boundary some tokens before
// the end of the text merged so far; when no token is in common, a longer window that starts earlier is tried, in the end
// the whole text.

#include "merger.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace megatron_ext {
namespace {

constexpr std::int32_t kNoMerge = MergeTable::kNoMerge;

// A run of at most kScanLimit symbols: ranks in blocks, with the smallest of each block at hand.
class ScannedRun {
public:
    ScannedRun(const MergeTable& table, Symbol* symbols, std::size_t count)
        : table_(table), symbols_(symbols), count_(count), blocks_((count + kBlock - 1) / kBlock) {
        std::fill(ranks_ + count - 1, ranks_ + blocks_ * kBlock, kNoMerge);
        for (std::size_t i = 0; i < count; ++i) {
            next_[i] = static_cast<std::uint8_t>(i + 1);
            previous_[i] = static_cast<std::uint8_t>(i - 1);
            if (i + 1 < count) note(i, table_.find_initial(symbols[i], symbols[i + 1]));
        }
        for (std::size_t block = 0; block < blocks_; ++block) find_smallest(block);
    }

    std::size_t merge() {
        for (;;) {
            std::size_t block = 0;
            for (std::size_t other = 1; other < blocks_; ++other) {
                if (smallest_[other] < smallest_[block]) block = other;
            }
            if (smallest_[block] == kNoMerge) return close_gaps();
            std::size_t at = block * kBlock;
            while (ranks_[at] != smallest_[block]) ++at;
            join(at);
        }
    }

private:
    static constexpr std::size_t kBlock = 16;

    void note(std::size_t at, MergeTable::Merge merge) {
        ranks_[at] = merge.rank;
        joined_[at] = merge.joined;
    }
    void look_up(std::size_t at) { note(at, table_.find(symbols_[at], symbols_[next_[at]])); }

    void find_smallest(std::size_t block) {
        const std::int32_t* ranks = ranks_ + block * kBlock;
        std::int32_t smallest = ranks[0];
        for (std::size_t i = 1; i < kBlock; ++i) smallest = std::min(smallest, ranks[i]);
        smallest_[block] = smallest;
    }

    void join(std::size_t at) {
        const std::size_t right = next_[at], after = next_[right];
        symbols_[at] = joined_[at];
        ranks_[right] = ranks_[at] = kNoMerge;
        next_[at] = static_cast<std::uint8_t>(after);
        if (after < count_) {
            previous_[after] = static_cast<std::uint8_t>(at);
            look_up(at);
        }
        if (right / kBlock != at / kBlock) find_smallest(right / kBlock);
        if (at > 0) {
            const std::size_t before = previous_[at];
            look_up(before);
            if (before / kBlock != at / kBlock) find_smallest(before / kBlock);
        }
        find_smallest(at / kBlock);
    }

    std::size_t close_gaps() {
        std::size_t left = 0;
        for (std::size_t at = 0; at < count_; at = next_[at]) symbols_[left++] = symbols_[at];
        return left;
    }

    const MergeTable& table_;
    Symbol* const symbols_;  // those that were joined into their left neighbour keep their place, skipped by next_
    const std::size_t count_, blocks_;
    alignas(64) std::int32_t ranks_[Merger::kScanLimit];  // of the pair that begins here
    Symbol joined_[Merger::kScanLimit];                   // what that pair becomes
    std::int32_t smallest_[Merger::kScanLimit / kBlock];
    std::uint8_t next_[Merger::kScanLimit], previous_[Merger::kScanLimit];
};

std::uint64_t heap_key(std::int32_t rank, std::size_t place) { return (static_cast<std::uint64_t>(rank) << 32) | place; }

}  // namespace

Merger::Merger(const MergeTable& table, std::size_t window) : table_(table), window_(window) {
    if (window < 2 || window > (std::size_t{1} << 30)) throw std::invalid_argument("the window must be in [2, 2^30] symbols");
}

std::size_t Merger::merge(Symbol* symbols, std::size_t count) {
    if (count <= window_) return merge_whole(symbols, count);
    merge_by_windows(symbols, count);
    std::copy(tokens_.begin(), tokens_.end(), symbols);
    return tokens_.size();
}

std::size_t Merger::merge_whole(Symbol* symbols, std::size_t count) {
    return count <= kScanLimit ? merge_by_scan(symbols, count) : merge_by_heap(symbols, count);
}

std::size_t Merger::merge_by_scan(Symbol* symbols, std::size_t count) const {
    return count < 2 ? count : ScannedRun(table_, symbols, count).merge();
}

std::size_t Merger::merge_by_heap(Symbol* symbols, std::size_t count) {
    ranks_.assign(count, kNoMerge);
    next_.resize(count);
    previous_.resize(count);
    heap_.clear();
    for (std::size_t i = 0; i < count; ++i) {
        next_[i] = static_cast<std::uint32_t>(i + 1);
        previous_[i] = static_cast<std::uint32_t>(i) - 1;
        if (i + 1 < count) ranks_[i] = table_.find_initial(symbols[i], symbols[i + 1]).rank;
        if (ranks_[i] != kNoMerge) heap_.push_back(heap_key(ranks_[i], i));
    }
    const auto later = std::greater<std::uint64_t>();
    std::make_heap(heap_.begin(), heap_.end(), later);
    const auto rank_again = [&](std::size_t place) {
        ranks_[place] = next_[place] < count ? table_.find(symbols[place], symbols[next_[place]]).rank : kNoMerge;
        if (ranks_[place] == kNoMerge) return;
        heap_.push_back(heap_key(ranks_[place], place));
        std::push_heap(heap_.begin(), heap_.end(), later);
    };
    while (!heap_.empty()) {
        const std::uint64_t best = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end(), later);
        heap_.pop_back();
        const std::size_t place = best & 0xFFFFFFFFU;
        if (ranks_[place] != static_cast<std::int32_t>(best >> 32)) continue;  // the pair has changed since
        const std::size_t right = next_[place];
        symbols[place] = table_.find(symbols[place], symbols[right]).joined;
        ranks_[right] = kNoMerge;
        next_[place] = next_[right];
        if (next_[place] < count) previous_[next_[place]] = static_cast<std::uint32_t>(place);
        rank_again(place);
        if (place > 0) rank_again(previous_[place]);
    }
    std::size_t left = 0;
    for (std::size_t place = 0; place < count; place = next_[place]) symbols[left++] = symbols[place];
    return left;
}

void Merger::merge_by_windows(const Symbol* symbols, std::size_t count) {
    std::size_t end = window_;  // tokens_ is BPE(symbols[0 .. end))
    window_input_.clear();
    merge_window(symbols, end);
    tokens_ = window_tokens_;
    while (end < count) {
        for (std::size_t overlap = std::max<std::size_t>(window_ / 4, 1);; overlap *= 2) {
            std::size_t first_token = tokens_.size(), start = end;
            while (first_token > 0 && end - start < overlap) start -= table_.length(tokens_[--first_token]);
            const std::size_t stop = std::min(count, std::max(start + window_, end + (end - start)));
            merge_window(symbols + start, stop - start);
            if (!join_window(first_token, start)) continue;
            end = stop;
            break;
        }
    }
}

// window_tokens_ = BPE(symbols[0 .. count)), taken from the last window when that had the same symbols.
void Merger::merge_window(const Symbol* symbols, std::size_t count) {
    if (count == window_input_.size() && std::equal(symbols, symbols + count, window_input_.begin())) return;
    window_input_.assign(symbols, symbols + count);
    window_tokens_ = window_input_;
    window_tokens_.resize(merge_whole(window_tokens_.data(), count));
}

// Join the window that starts at symbol `start`, where tokens_[first_token] starts; false: they have no token in common.
bool Merger::join_window(std::size_t first_token, std::size_t start) {
    if (start == 0) {
        tokens_ = window_tokens_;
        return true;
    }
    std::size_t i = first_token, j = 0, i_start = start, j_start = start;
    while (i < tokens_.size() && j < window_tokens_.size()) {
        if (i_start == j_start && tokens_[i] == window_tokens_[j]) {
            tokens_.resize(i);
            tokens_.insert(tokens_.end(), window_tokens_.begin() + static_cast<std::ptrdiff_t>(j), window_tokens_.end());
            return true;
        }
        const bool step_i = i_start <= j_start, step_j = j_start <= i_start;
        if (step_i) i_start += table_.length(tokens_[i++]);
        if (step_j) j_start += table_.length(window_tokens_[j++]);
    }
    return false;
}

}  // namespace megatron_ext
