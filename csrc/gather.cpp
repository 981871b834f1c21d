// gather_windows, gather_documents: the samples of a micro-batch, from the mapped file into the batch in one call.
//
// gather_windows: row rows[i] of the batch is tokens[begins[i] : ends[i]], filled up with `pad` on the right.
// gather_documents: row rows[i] is the text[k * s : k * s + width] of sample k = samples[i], where `text` are the
// documents of the drawing order laid end to end, and index row k (see sample_index.cpp) says where k * s lies in it.
// The mask's row is cut from the mask in the same way; a pad is never learned (0), and without a stored mask every
// token is (1).
// Everything is checked before it is read: a run outside the tokens, a row outside the batch, a document that does
// not end where the next one begins (the index is damaged) throw std::out_of_range.
// Shapes and types: gather.h. Python twins: megatron_ext/sampling_numpy.py (the same values).

#include "gather.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace megatron_ext {
namespace {

template <typename Token>
void copy_typed(const void* tokens, std::int64_t first, std::int64_t count, std::int64_t* out, Extent& extent) {
    const Token* source = static_cast<const Token*>(tokens) + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>(source[i]);
    if (!extent.wanted || count == 0) return;
    Token smallest = source[0], largest = source[0];
    for (std::int64_t i = 1; i < count; ++i) {
        smallest = source[i] < smallest ? source[i] : smallest;
        largest = source[i] > largest ? source[i] : largest;
    }
    extent.smallest = std::min(extent.smallest, static_cast<std::int64_t>(smallest));
    extent.largest = std::max(extent.largest, static_cast<std::int64_t>(largest));
}

using Copy = void (*)(const void*, std::int64_t, std::int64_t, std::int64_t*, Extent&);

Copy copy_of(TokenType type) {
    switch (type) {
        case TokenType::kUint8: return &copy_typed<std::uint8_t>;
        case TokenType::kInt8: return &copy_typed<std::int8_t>;
        case TokenType::kInt16: return &copy_typed<std::int16_t>;
        case TokenType::kUint16: return &copy_typed<std::uint16_t>;
        case TokenType::kInt32: return &copy_typed<std::int32_t>;
        case TokenType::kInt64: break;
    }
    return &copy_typed<std::int64_t>;
}

// Copies runs of tokens, and of the mask with them, to a place in one row.
class Writer {
  public:
    Writer(const Stored& from, const Batch& to, Extent& extent)
        : from_(from), to_(to), extent_(extent), copy_(copy_of(from.type)) {}

    void choose_row(std::int64_t i) {
        if (to_.rows[i] < 0 || to_.rows[i] >= to_.height) throw std::out_of_range("gather: a row is outside the batch");
        row_ = to_.rows[i] * to_.width;
    }

    void run(std::int64_t begin, std::int64_t count, std::int64_t place) {
        if (count < 0 || begin < 0 || begin > from_.num_tokens - count) {
            throw std::out_of_range("gather: a run lies outside the tokens");
        }
        copy_(from_.tokens, begin, count, to_.tokens + row_ + place, extent_);
        if (to_.mask == nullptr || count == 0) return;
        if (from_.mask != nullptr) {
            std::memcpy(to_.mask + row_ + place, from_.mask + begin, count);
        } else {
            std::memset(to_.mask + row_ + place, kLearned, count);
        }
    }

    void fill(std::int64_t place, std::int64_t pad) {
        std::fill(to_.tokens + row_ + place, to_.tokens + row_ + to_.width, pad);
        if (to_.mask != nullptr) std::memset(to_.mask + row_ + place, kNotLearned, to_.width - place);
    }

  private:
    const Stored& from_;
    const Batch& to_;
    Extent& extent_;
    const Copy copy_;
    std::int64_t row_ = 0;
};

}  // namespace

void gather_windows(const Stored& from, const std::int64_t* begins, const std::int64_t* ends, std::int64_t pad,
                    const Batch& to, Extent& extent) {
    Writer writer(from, to, extent);
    for (std::int64_t i = 0; i < to.num_rows; ++i) {
        if (begins[i] < 0 || ends[i] < begins[i] || ends[i] - begins[i] > to.width) {
            throw std::out_of_range("gather: a run lies outside the tokens or does not fit its row");
        }
        writer.choose_row(i);
        writer.run(begins[i], ends[i] - begins[i], 0);
        writer.fill(ends[i] - begins[i], pad);
    }
}

void gather_documents(const Stored& from, const DrawnDocuments& drawn, const std::int64_t* samples, const Batch& to,
                      Extent& extent) {
    Writer writer(from, to, extent);
    for (std::int64_t i = 0; i < to.num_rows; ++i) {
        if (samples[i] < 0 || samples[i] >= drawn.num_samples) {
            throw std::out_of_range("gather: a sample does not exist");
        }
        writer.choose_row(i);
        std::int64_t place = drawn.index[2 * samples[i]], offset = drawn.index[2 * samples[i] + 1], written = 0;
        while (written < to.width) {
            if (place < 0 || place >= drawn.num_documents) {
                throw std::out_of_range("gather: a sample reaches beyond the documents");
            }
            const std::int64_t document = drawn.documents[place];
            if (document < 0 || document >= drawn.num_sequences) {
                throw std::out_of_range("gather: a document does not exist");
            }
            const std::int64_t length = load(drawn.lengths, document), pointer = load(drawn.pointers, document);
            const std::int64_t end = document + 1 < drawn.num_sequences ? load(drawn.pointers, document + 1)
                                                                        : from.num_tokens * drawn.itemsize;
            if (length < 0 || pointer < 0 || pointer % drawn.itemsize != 0 ||
                end > from.num_tokens * drawn.itemsize || pointer + length * drawn.itemsize != end) {
                throw std::out_of_range("gather: a document does not end where the next one begins");
            }
            if (offset < 0 || offset > length) throw std::out_of_range("gather: a sample begins outside its document");
            const std::int64_t count = std::min(length - offset, to.width - written);
            writer.run(pointer / drawn.itemsize + offset, count, written);
            written += count;
            offset = 0;
            ++place;
        }
    }
}

}  // namespace megatron_ext
