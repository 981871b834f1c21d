// sample_index: where the samples begin in a run of documents laid end to end in some drawing order.
//
// Formula: let document j of the drawing order have lengths[documents[j]] tokens and begin at token b_j; sample k
// begins at token k * seq_length. Row k is (j, k * seq_length - b_j) for the document j that holds that token; row 0
// is (0, 0) even if document 0 is empty. There is a row for each k whose token exists, so that n samples of
// seq_length + 1 tokens have n + 1 rows. This is megatron-core 0.16.1's index (helpers.cpp, build_sample_idx, whose
// last partial sample is dropped) in whole numbers, made restartable: a block of documents says how many documents
// and tokens stand before it, and the rows of the blocks in order are the rows of the whole.
// Shapes and types: lengths int32 [n], documents int32 or int64 [d], rows int32 or int64 [count_samples(...), 2].
// Python twin: megatron_ext/sampling_numpy.py, sample_index (the same values).

#include <stdexcept>

#include "operations.h"

namespace megatron_ext {

template <typename Document>
std::int64_t count_tokens(const std::int32_t* lengths, std::int64_t num_lengths, const Document* documents,
                          std::int64_t num_documents) {
    std::int64_t total = 0;
    for (std::int64_t j = 0; j < num_documents; ++j) {
        const std::int64_t document = documents[j];
        if (document < 0 || document >= num_lengths) throw std::out_of_range("sample_index: a document does not exist");
        const std::int64_t length = load(lengths, document);
        if (length < 0) throw std::invalid_argument("sample_index: a length is negative");
        total += length;
    }
    return total;
}

std::int64_t count_samples(const SamplePlace& from, std::int64_t tokens, std::int64_t num_documents) {
    const std::int64_t first = first_sample(from), last = (from.token + tokens + from.seq_length - 1) / from.seq_length;
    return (last > first ? last - first : 0) + (from.document == 0 && num_documents > 0 ? 1 : 0);
}

std::int64_t first_sample(const SamplePlace& from) {
    const std::int64_t first = (from.token + from.seq_length - 1) / from.seq_length;
    return first > 0 ? first : 1;  // sample 0 belongs to document 0, whatever its length
}

template <typename Document, typename Index>
void sample_index(const std::int32_t* lengths, const Document* documents, std::int64_t num_documents,
                  const SamplePlace& from, Index* rows) {
    if (from.document == 0 && num_documents > 0) {
        *rows++ = 0;
        *rows++ = 0;
    }
    std::int64_t begin = from.token, next = first_sample(from) * from.seq_length;
    for (std::int64_t j = 0; j < num_documents; ++j) {
        const std::int64_t end = begin + load(lengths, documents[j]);
        for (; next < end; next += from.seq_length) {
            *rows++ = static_cast<Index>(from.document + j);
            *rows++ = static_cast<Index>(next - begin);
        }
        begin = end;
    }
}

#define MEGATRON_EXT_INSTANTIATE(Document)                                                                             \
    template std::int64_t count_tokens<Document>(const std::int32_t*, std::int64_t, const Document*, std::int64_t);    \
    template void sample_index<Document, std::int32_t>(const std::int32_t*, const Document*, std::int64_t,             \
                                                       const SamplePlace&, std::int32_t*);                             \
    template void sample_index<Document, std::int64_t>(const std::int32_t*, const Document*, std::int64_t,             \
                                                       const SamplePlace&, std::int64_t*)
MEGATRON_EXT_INSTANTIATE(std::int32_t);
MEGATRON_EXT_INSTANTIATE(std::int64_t);
#undef MEGATRON_EXT_INSTANTIATE

}  // namespace megatron_ext
