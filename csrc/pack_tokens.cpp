// pack_tokens: the ids of many texts to the bytes of .bin: empty texts left out, an end-of-document id after each other
// one, every id narrowed to the stored type. An id that does not fit the type is an error, never a wrap.
//
// Shapes and types: ids int32 [t], lengths int64 [n] with sum t, eod an id or -1 for none, Token uint16 or int32 ->
// out Token [t + documents], document_lengths int64 [documents] where documents = number of lengths above 0.
// Returns the largest id written, -1 for none.
// Python twin: megatron_ext/native_numpy.py, pack_tokens (the same bytes).

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "operations.h"

namespace megatron_ext {

template <typename Token>
std::int64_t pack_tokens(const std::int32_t* ids, const std::int64_t* lengths, std::int64_t num_texts, std::int64_t eod,
                         Token* out, std::int64_t* document_lengths) {
    std::int32_t smallest = 0, largest = -1;  // no branch per id: the range is checked once, at the end
    for (std::int64_t text = 0; text < num_texts; ++text) {
        const std::int64_t length = lengths[text];
        if (length == 0) continue;
        for (std::int64_t i = 0; i < length; ++i) {
            smallest = std::min(smallest, ids[i]);
            largest = std::max(largest, ids[i]);
            out[i] = static_cast<Token>(ids[i]);
        }
        ids += length;
        out += length;
        *document_lengths = length;
        if (eod >= 0) {
            *out++ = static_cast<Token>(eod);
            ++*document_lengths;
            largest = std::max(largest, static_cast<std::int32_t>(eod));
        }
        ++document_lengths;
    }
    if (smallest < 0 || largest > static_cast<std::int64_t>(std::numeric_limits<Token>::max())) {
        throw std::invalid_argument("pack_tokens: ids from " + std::to_string(smallest) + " to " + std::to_string(largest) +
                                    " do not fit " + std::to_string(sizeof(Token)) + " bytes");
    }
    return largest;
}

template std::int64_t pack_tokens<std::uint16_t>(const std::int32_t*, const std::int64_t*, std::int64_t, std::int64_t,
                                                 std::uint16_t*, std::int64_t*);
template std::int64_t pack_tokens<std::int32_t>(const std::int32_t*, const std::int64_t*, std::int64_t, std::int64_t,
                                                std::int32_t*, std::int64_t*);

}  // namespace megatron_ext
