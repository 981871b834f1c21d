// Reading the samples of a micro-batch out of a mapped dataset, straight into the rows of the batch.
#pragma once

#include <cstdint>

namespace megatron_ext {

// The integer types that tokens are stored in.
enum class TokenType { kUint8, kInt8, kInt16, kUint16, kInt32, kInt64 };

// int32 or int64 integers.
struct Integers {
    const void* data;
    bool wide;
    std::int64_t operator[](std::int64_t i) const {
        return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
    }
};

// What is read: all tokens of a dataset, and what is learned at each of them (null: all of them).
struct Stored {
    const void* tokens;
    TokenType type;
    std::int64_t num_tokens;
    const std::uint8_t* mask;
};

// Where it goes: sample i into row rows[i] of tokens int64 [height, width] and of mask uint8 [height, width] (or null).
struct Batch {
    std::int64_t* tokens;
    std::uint8_t* mask;
    const std::int64_t* rows;
    std::int64_t num_rows, height, width;
};

// What is asked about the ids on the way: the smallest and the largest, where `wanted`.
struct Extent {
    bool wanted;
    std::int64_t smallest, largest;
};

// What a sample that is shorter than its row is filled with; no pad is ever learned.
constexpr std::uint8_t kNotLearned = 0, kLearned = 1;

void gather_windows(const Stored& from, const std::int64_t* begins, const std::int64_t* ends, std::int64_t pad,
                    const Batch& to, Extent& extent);

// The documents of a drawing order, and where its samples begin in it.
struct DrawnDocuments {
    const std::int32_t* lengths;
    const std::int64_t* pointers;
    std::int64_t num_sequences, itemsize;
    Integers documents;
    std::int64_t num_documents;
    Integers index;
    std::int64_t num_samples;
};

void gather_documents(const Stored& from, const DrawnDocuments& drawn, const std::int64_t* samples, const Batch& to,
                      Extent& extent);

}  // namespace megatron_ext
