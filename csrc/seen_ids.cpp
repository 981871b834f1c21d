// misplaced_ids: the first id of an order that does not exist, and the first one that stood in it before.
//
// Formula: `outside` is the smallest place p with ids[p] outside [0, num_ids), else -1. Where there is none, `repeated` is
// the smallest place p with ids[p] = ids[q] for some q < p, else -1. With ids_at_once = 0 only `outside` is looked for.
// One bit per id says whether it was seen; only ids_at_once of them are remembered at a time, so that there is one reading
// of the ids for every ids_at_once of num_ids. Ids in random order would touch the bits at random, a cache miss for each.
// So a block of them is first dealt into ranges whose bits fit the cache, at twice the speed; that loses the places within
// a block, and ids that do hold one twice are gone through again, one by one.
// Shapes and types: ids int64 [k] -> two places. Memory: a bit for each id remembered, and half as much for the block.
// Python twin: megatron_ext/native_numpy.py, misplaced_ids (the same values).

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "operations.h"

namespace megatron_ext {
namespace {

constexpr int kRangeBits = 20;  // bits of 128 KiB
constexpr std::int64_t kSmallestBlock = std::int64_t{1} << 22, kLargestBlock = std::int64_t{1} << 26;
constexpr std::int64_t kBlocksPerReading = 64;  // every block goes through all bits once

// The first place in [first, last) of an id outside [0, num_ids), or `last`.
std::int64_t first_outside(const std::int64_t* ids, std::int64_t first, std::int64_t last, std::int64_t num_ids) {
    bool wrong = false;
    for (std::int64_t i = first; i < last; ++i) wrong |= ids[i] < 0 || ids[i] >= num_ids;
    if (!wrong) return last;
    return std::find_if(ids + first, ids + last, [&](std::int64_t id) { return id < 0 || id >= num_ids; }) - ids;
}

// One bit for each of the ids lowest .. lowest + size - 1.
class SeenIds {
  public:
    SeenIds(std::int64_t lowest, std::int64_t size)
        : lowest_(static_cast<std::uint64_t>(lowest)), size_(static_cast<std::uint64_t>(size)),
          words_(static_cast<std::uint64_t*>(std::calloc((size_ + 63) / 64, sizeof(std::uint64_t))), &std::free),
          ends_(static_cast<std::size_t>(size >> kRangeBits) + 1) {
        if (words_ == nullptr) throw std::bad_alloc();
    }

    // Marks all ids of a block; whether one of them was marked before.
    bool mark(const std::int64_t* ids, std::int64_t first, std::int64_t last) {
        deal(ids, first, last);
        std::uint64_t again = 0;
        std::size_t next = 0;
        for (std::size_t range = 0; range < ends_.size(); ++range) {
            std::uint64_t* words = words_.get() + (range << (kRangeBits - 6));
            for (; next < ends_[range]; ++next) {
                const std::uint64_t bit = std::uint64_t{1} << (dealt_[next] % 64);
                std::uint64_t& word = words[dealt_[next] / 64];
                again |= word & bit;
                word |= bit;
            }
        }
        return again != 0;
    }

    // Marks the ids of [0, last) one by one up to the first that was marked before: its place, or `last`.
    std::int64_t first_repeated(const std::int64_t* ids, std::int64_t last) {
        for (std::int64_t i = 0; i < last; ++i) {
            const std::uint64_t offset = offset_of(ids[i]), bit = std::uint64_t{1} << (offset % 64);
            if (offset >= size_) continue;
            if (words_[offset / 64] & bit) return i;
            words_[offset / 64] |= bit;
        }
        return last;
    }

  private:
    // Ids below the lowest become numbers beyond every size.
    std::uint64_t offset_of(std::int64_t id) const { return static_cast<std::uint64_t>(id) - lowest_; }

    // Places of the ids within their ranges, range after range, and where each range ends.
    void deal(const std::int64_t* ids, std::int64_t first, std::int64_t last) {
        dealt_.resize(std::max(dealt_.size(), static_cast<std::size_t>(last - first)));
        std::fill(ends_.begin(), ends_.end(), 0);
        for (std::int64_t i = first; i < last; ++i) {
            const std::uint64_t offset = offset_of(ids[i]);
            if (offset < size_) ++ends_[offset >> kRangeBits];
        }
        std::uint32_t begin = 0;
        for (std::uint32_t& end : ends_) {
            const std::uint32_t count = end;
            end = begin;
            begin += count;
        }
        for (std::int64_t i = first; i < last; ++i) {
            const std::uint64_t offset = offset_of(ids[i]);
            if (offset < size_) dealt_[ends_[offset >> kRangeBits]++] = offset & ((std::uint64_t{1} << kRangeBits) - 1);
        }
    }

    const std::uint64_t lowest_, size_;
    std::unique_ptr<std::uint64_t[], decltype(&std::free)> words_;  // what no id touches takes no memory
    std::vector<std::uint32_t> ends_, dealt_;
};

}  // namespace

MisplacedIds misplaced_ids(const std::int64_t* ids, std::int64_t count, std::int64_t num_ids, std::int64_t ids_at_once) {
    const std::int64_t outside = first_outside(ids, 0, count, num_ids);
    if (outside < count) return {outside, -1};
    std::int64_t end = count;  // of the ids before the first repeated one that is known
    for (std::int64_t lowest = 0; ids_at_once > 0 && lowest < num_ids; lowest += ids_at_once) {
        const std::int64_t size = std::min(ids_at_once, num_ids - lowest);
        const std::int64_t block = std::clamp(size / kBlocksPerReading, kSmallestBlock, kLargestBlock);
        SeenIds seen(lowest, size);
        for (std::int64_t first = 0; first < end; first += block) {
            const std::int64_t last = std::min(first + block, end);
            if (seen.mark(ids, first, last)) end = SeenIds(lowest, size).first_repeated(ids, last);
        }
    }
    return {-1, end < count ? end : -1};
}

}  // namespace megatron_ext
