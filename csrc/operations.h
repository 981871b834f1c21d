// What bindings.cpp binds: one function per data operation, plain pointers, no Python. Each .cpp states its formula.
#pragma once

#include <cstdint>

namespace megatron_ext {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

// splitmix64's finaliser: a bijection of 64-bit words.
inline std::uint64_t mix64(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

void counter_normal(std::uint64_t key, std::int64_t start, std::int64_t count, float* out);

void permute(std::uint64_t key, std::int64_t size, const std::int64_t* indices, std::int64_t count, std::int64_t* out);

void blend(const double* weights, std::int64_t num_datasets, std::int64_t start, std::int64_t count, std::int64_t* drawn,
           std::int16_t* dataset, std::int64_t* sample);

template <typename Token>
void gather_tokens(const Token* tokens, std::int64_t num_tokens, const std::int64_t* starts, const std::int64_t* ends,
                   std::int64_t num_documents, std::int64_t position, std::int64_t count, std::int64_t* out);

template <typename Token>
std::int64_t pack_tokens(const std::int32_t* ids, const std::int64_t* lengths, std::int64_t num_texts, std::int64_t eod,
                         Token* out, std::int64_t* document_lengths);

}  // namespace megatron_ext
