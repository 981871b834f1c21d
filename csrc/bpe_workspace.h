// What a byte-pair encoder needs while it works: growing output, caches, buffers. One per thread at work.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "merger.h"
#include "segment_cache.h"

namespace megatron_ext {

// Ids of many texts laid end to end. Grows by doubling; its memory can be handed over.
class IdBuffer {
public:
    std::size_t size() const { return size_; }
    const std::int32_t* data() const { return data_.get(); }
    std::int32_t* data() { return data_.get(); }

    // Room for `count` more ids behind the last; what is written there counts after `advance`.
    std::int32_t* room(std::size_t count) {
        if (capacity_ - size_ < count) grow(count);
        return data_.get() + size_;
    }
    void advance(std::size_t count) { size_ += count; }
    void append(const std::int32_t* ids, std::size_t count) {
        if (count == 0) return;
        std::memcpy(room(count), ids, count * sizeof(std::int32_t));
        size_ += count;
    }
    void append(std::int32_t id) {
        *room(1) = id;
        ++size_;
    }
    void truncate(std::size_t size) { size_ = size; }
    std::int32_t* release() { return data_.release(); }  // to be freed with std::free

private:
    struct Free {
        void operator()(std::int32_t* memory) const { std::free(memory); }
    };

    void grow(std::size_t count) {
        const std::size_t capacity = capacity_ * 2 > size_ + count ? capacity_ * 2 : size_ + count + 256;
        void* memory = std::realloc(data_.get(), capacity * sizeof(std::int32_t));
        if (memory == nullptr) throw std::bad_alloc();
        data_.release();  // realloc has taken it
        data_.reset(static_cast<std::int32_t*>(memory));
        capacity_ = capacity;
    }

    std::unique_ptr<std::int32_t, Free> data_;
    std::size_t size_ = 0, capacity_ = 0;
};

// Sizes that change speed and memory, never the result; the tests make them tiny.
struct BpeTuning {
    std::size_t window = 96;  // symbols
    int cache_bits = 16;      // 2^(bits + 1) short segments are remembered, and a quarter as many longer ones
};

// A part of a text that is merged alone.
struct TextSegment {
    const std::uint8_t* begin;
    const std::uint8_t* end;
    const std::uint8_t* readable_end;  // bytes up to here may be read
    unsigned kind = 0;                 // 0 to 3: what else than its bytes determines its ids
};

class BpeWorkspace {
public:
    BpeWorkspace(const MergeTable& table, const BpeTuning& tuning)
        : merger(table, tuning.window), short_(tuning.cache_bits), long_(tuning.cache_bits > 2 ? tuning.cache_bits - 2 : 1) {}

    // Append the ids of a segment. They come from a cache or from `make(ids)`, which appends them; equal bytes of equal kind
    // must always give equal ids.
    template <typename Make>
    void append_segment(const TextSegment& segment, IdBuffer& ids, const Make& make) {
        const auto length = static_cast<std::size_t>(segment.end - segment.begin);
        const auto readable = static_cast<std::size_t>(segment.readable_end - segment.begin);
        if (length <= ShortCache::Key::kMaxBytes) {
            append_cached(short_, typename ShortCache::Key(segment.begin, length, readable, segment.kind), ids, make);
        } else if (length <= LongCache::Key::kMaxBytes) {
            append_cached(long_, typename LongCache::Key(segment.begin, length, readable, segment.kind), ids, make);
        } else {
            make(ids);
        }
    }

    Merger merger;
    std::vector<std::uint8_t> text;
    std::vector<Symbol> symbols;

private:
    using ShortCache = SegmentCache<2, 4>;  // 32 bytes an entry
    using LongCache = SegmentCache<4, 8>;   // 64 bytes an entry

    template <typename Cache, typename Make>
    static void append_cached(Cache& cache, const typename Cache::Key& key, IdBuffer& ids, const Make& make) {
        if (const auto* entry = cache.find(key)) {
            std::memcpy(ids.room(Cache::kMaxIds), entry->ids.data(), sizeof(entry->ids));
            ids.advance(entry->count());
            return;
        }
        const std::size_t before = ids.size();
        make(ids);
        cache.store(key, ids.data() + before, ids.size() - before);
    }

    ShortCache short_;
    LongCache long_;
};

// Keeps one workspace, with its warm caches, between calls. A second thread that calls at the same time gets a new one, so
// there is no lock that a fork could leave locked.
class WorkspaceKeeper {
public:
    WorkspaceKeeper() = default;
    WorkspaceKeeper(const WorkspaceKeeper&) = delete;
    WorkspaceKeeper& operator=(const WorkspaceKeeper&) = delete;
    ~WorkspaceKeeper() { delete idle_.load(); }

    std::unique_ptr<BpeWorkspace> take(const MergeTable& table, const BpeTuning& tuning) {
        std::unique_ptr<BpeWorkspace> workspace(idle_.exchange(nullptr));
        return workspace ? std::move(workspace) : std::make_unique<BpeWorkspace>(table, tuning);
    }
    void give_back(std::unique_ptr<BpeWorkspace> workspace) { delete idle_.exchange(workspace.release()); }

private:
    std::atomic<BpeWorkspace*> idle_{nullptr};
};

}  // namespace megatron_ext
