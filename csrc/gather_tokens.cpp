// gather_tokens: a run of tokens from documents laid end to end in some drawing order.
//
// Formula: let document j of the drawing order hold the tokens tokens[starts[j] : starts[j] + ends[j] - ends[j-1]],
// with ends[-1] = 0; the concatenation of all of them is the text. The result is text[position : position + count].
// The first document is found by binary search in `ends`; empty documents are allowed.
// Shapes and types: tokens any integer type [n], starts int64 [d], ends int64 [d] (inclusive prefix sums of the
// lengths), 0 <= position, position + count <= ends[d-1] -> int64 [count].
// Python twin: megatron_ext/native_numpy.py, gather_tokens (the same values).

#include <algorithm>
#include <stdexcept>

#include "operations.h"

namespace megatron_ext {

template <typename Token>
void gather_tokens(const Token* tokens, std::int64_t num_tokens, const std::int64_t* starts, const std::int64_t* ends,
                   std::int64_t num_documents, std::int64_t position, std::int64_t count, std::int64_t* out) {
    const std::int64_t total = num_documents > 0 ? ends[num_documents - 1] : 0;
    if (position < 0 || count < 0 || count > total - position) {
        throw std::out_of_range("gather_tokens: the run reaches beyond the documents");
    }
    std::int64_t document = std::upper_bound(ends, ends + num_documents, position) - ends;
    std::int64_t written = 0;
    while (written < count) {
        const std::int64_t begin = document > 0 ? ends[document - 1] : 0;
        const std::int64_t offset = position + written - begin;
        const std::int64_t length = std::min(ends[document] - begin - offset, count - written);
        const std::int64_t source = starts[document] + offset;
        if (length < 0 || source < 0 || source > num_tokens - length) {
            throw std::out_of_range("gather_tokens: a document lies outside the tokens");
        }
        for (std::int64_t i = 0; i < length; ++i) out[written + i] = static_cast<std::int64_t>(tokens[source + i]);
        written += length;
        ++document;
    }
}

#define MEGATRON_EXT_INSTANTIATE(Token)                                                                               \
    template void gather_tokens<Token>(const Token*, std::int64_t, const std::int64_t*, const std::int64_t*, std::int64_t, \
                                       std::int64_t, std::int64_t, std::int64_t*)
MEGATRON_EXT_INSTANTIATE(std::uint8_t);
MEGATRON_EXT_INSTANTIATE(std::int8_t);
MEGATRON_EXT_INSTANTIATE(std::int16_t);
MEGATRON_EXT_INSTANTIATE(std::uint16_t);
MEGATRON_EXT_INSTANTIATE(std::int32_t);
MEGATRON_EXT_INSTANTIATE(std::int64_t);
#undef MEGATRON_EXT_INSTANTIATE

}  // namespace megatron_ext
