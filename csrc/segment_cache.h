// SegmentCache: the ids of short segments met before, in a table of fixed size: the memory is constant whatever the text.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

namespace megatron_ext {

static_assert(sizeof(void*) == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys are masked as 64-bit little-endian words");

// Up to 8 * Words - 1 bytes of text as words, zero behind the text, its length and kind in the last byte.
template <int Words>
struct SegmentKey {
    static constexpr std::size_t kMaxBytes = 8 * Words - 1;

    std::array<std::uint64_t, Words> words{};

    // `readable`: bytes that may be read from `text` on, at least `length`. Segments of other `kind` (0 to 3) are others.
    SegmentKey(const std::uint8_t* text, std::size_t length, std::size_t readable, unsigned kind) {
        if (readable >= 8 * Words) {
            std::memcpy(words.data(), text, 8 * Words);
            for (int i = 0; i < Words; ++i) words[i] &= mask(length, i);
        } else {
            std::memcpy(words.data(), text, length);
        }
        words[Words - 1] |= static_cast<std::uint64_t>(length | kind << 6) << 56;
    }

    std::uint64_t hash() const {
        std::uint64_t state = 0x9E3779B97F4A7C15ULL;
        for (const std::uint64_t word : words) {
            state = (state ^ word) * 0xBF58476D1CE4E5B9ULL;
            state ^= state >> 32;
        }
        return state * 0x94D049BB133111EBULL;
    }

private:
    static std::uint64_t mask(std::size_t length, int word) {
        const std::size_t begin = 8 * static_cast<std::size_t>(word);
        if (length >= begin + 8) return ~std::uint64_t{0};
        return length <= begin ? 0 : (std::uint64_t{1} << (8 * (length - begin))) - 1;
    }
};

// Two places for each key, in one cache line where the entries are small: a new segment takes the second, and moves to the
// first when it is met again, so that one-time segments do not push out frequent ones.
template <int Words, int MaxIds>
class SegmentCache {
public:
    using Key = SegmentKey<Words>;
    static constexpr std::size_t kMaxIds = MaxIds;

    struct Entry {
        std::array<std::uint64_t, Words> words{};
        std::array<std::int32_t, MaxIds> ids{};  // -1 behind the last

        std::size_t count() const {
            std::size_t held = 0;
            for (const std::int32_t id : ids) held += id >= 0;
            return held;
        }
        bool holds(const Key& key) const {
            std::uint64_t difference = 0;
            for (int i = 0; i < Words; ++i) difference |= words[i] ^ key.words[i];
            return difference == 0;
        }
    };

    explicit SegmentCache(int bits) : shift_(64 - bits) {
        if (bits < 1 || bits > 24) throw std::invalid_argument("the cache must have 2^1 to 2^24 pairs of entries");
        pairs_.resize(std::size_t{1} << bits);
    }

    // The entry of `key`, or nullptr when it is not held.
    const Entry* find(const Key& key) {
        Pair& pair = pairs_[key.hash() >> shift_];
        if (pair.first.holds(key)) return &pair.first;
        if (!pair.second.holds(key)) return nullptr;
        std::swap(pair.first, pair.second);
        return &pair.first;
    }

    // Hold ids[0 .. count) for `key` unless they are too many.
    void store(const Key& key, const std::int32_t* ids, std::size_t count) {
        if (count > MaxIds) return;
        Entry& entry = pairs_[key.hash() >> shift_].second;
        entry.words = key.words;
        std::fill(std::copy(ids, ids + count, entry.ids.begin()), entry.ids.end(), -1);
    }

private:
    struct alignas(64) Pair {
        Entry first, second;
    };

    std::vector<Pair> pairs_;
    int shift_;
};

}  // namespace megatron_ext
