// What bindings.cpp binds: one function per data operation, plain pointers, no Python. Each .cpp states its formula.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace megatron_ext {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

// splitmix64's finaliser: a bijection of 64-bit words.
inline std::uint64_t mix64(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

// Element i of an array that may begin at any byte, as the arrays inside an index file do.
template <typename Value>
inline Value load(const Value* values, std::int64_t i) {
    Value value;
    std::memcpy(&value, reinterpret_cast<const char*>(values) + i * static_cast<std::int64_t>(sizeof(Value)), sizeof(Value));
    return value;
}

void counter_normal(std::uint64_t key, std::int64_t start, std::int64_t count, float* out);

void permute(std::uint64_t key, std::int64_t size, const std::int64_t* indices, std::int64_t count, std::int64_t* out);

// Places in an order, -1 for none: the first id that does not exist, and the first one that stood before.
struct MisplacedIds {
    std::int64_t outside, repeated;
};

MisplacedIds misplaced_ids(const std::int64_t* ids, std::int64_t count, std::int64_t num_ids, std::int64_t ids_at_once);

// `scan` names one of blend_scan.h; "" is the widest.
void blend(const double* weights, std::int64_t num_datasets, std::int64_t start, std::int64_t count, std::int64_t* drawn,
           std::int16_t* dataset, std::int64_t* sample, const std::string& scan);

void blend_all(const std::int64_t* sizes, std::int64_t num_datasets, std::int64_t start, std::int64_t count,
               std::int64_t* drawn, std::int16_t* dataset, std::int64_t* sample, const std::string& scan);

// Bits of the points and places of a spread mixture.
constexpr int kSpreadBits = 53;

void spread(const std::int64_t* thresholds, std::int64_t num_datasets, std::int64_t start, std::int64_t count,
            std::int16_t* dataset, std::int64_t* rank);

void spread_counts(std::int64_t place, const std::int64_t* thresholds, std::int64_t size, std::int64_t* counts);

// A block of documents: how many documents and tokens stand before it.
struct SamplePlace {
    std::int64_t document, token, seq_length;
};

// Tokens of the documents; throws where a document does not exist or has a negative length.
template <typename Document>
std::int64_t count_tokens(const std::int32_t* lengths, std::int64_t num_lengths, const Document* documents,
                          std::int64_t num_documents);

// The first sample, after sample 0, that can begin in the block, and how many rows the block has.
std::int64_t first_sample(const SamplePlace& from);
std::int64_t count_samples(const SamplePlace& from, std::int64_t tokens, std::int64_t num_documents);

template <typename Document, typename Index>
void sample_index(const std::int32_t* lengths, const Document* documents, std::int64_t num_documents,
                  const SamplePlace& from, Index* rows);

template <typename Token>
std::int64_t pack_tokens(const std::int32_t* ids, const std::int64_t* lengths, std::int64_t num_texts, std::int64_t eod,
                         Token* out, std::int64_t* document_lengths);

}  // namespace megatron_ext
