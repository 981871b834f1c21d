// Cross entropy of rows of logits: maximum and sum of exponentials, and the gradient in their place.

#include <algorithm>
#include <limits>

#include "avx512.h"
#include "bindings.h"
#include "parallel.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// A row of logits, or where its gradient goes: `stride` elements from one row to the next.
struct Rows {
    bf16* first;
    std::int64_t stride;

    bf16* operator[](std::int64_t row) const { return first + row * stride; }
};

// What the gradient of a row is made of; as RowStatistics of megatron_ext/model/cross_entropy.py, one number a row.
struct Statistics {
    const float* log_sum_exp;
    const std::int64_t* label;
    const bool* has_label;
    const std::int64_t* place;  // null without a max-z loss
    const float* slope;
    const float* weight;
};

// e^(x - shift). The difference is taken first: the product with log2(e) would cost large logits their last bits.
MEGATRON_EXT_INLINE __m512 exponentials(__m512 x, __m512 shift) {
    return exp2(_mm512_mul_ps(_mm512_sub_ps(x, shift), _mm512_set1_ps(kLog2E)));
}

// The largest number; NaN is passed over (and makes the sum NaN).
MEGATRON_EXT_TARGET float largest_of(const bf16* row, std::int64_t columns) {
    __m512 largest[4];
    for (auto& part : largest) part = _mm512_set1_ps(kMinusInfinity);
    std::int64_t column = 0;
    for (; column + 4 * kLanes <= columns; column += 4 * kLanes) {
        for (int part = 0; part < 4; ++part) {
            largest[part] = _mm512_max_ps(load(row + column + part * kLanes), largest[part]);
        }
    }
    for (; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        largest[0] = _mm512_mask_max_ps(largest[0], mask, load(row + column, mask), largest[0]);
    }
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
}

// Sum of e^(x - largest).
MEGATRON_EXT_TARGET float sum_of_exponentials(const bf16* row, std::int64_t columns, float largest) {
    // a finite shift: where all are -inf every term is 0, not NaN
    const __m512 shift = _mm512_set1_ps(largest < kLowest ? kLowest : largest);
    __m512 sums[4];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    std::int64_t column = 0;
    for (; column + 4 * kLanes <= columns; column += 4 * kLanes) {
        for (int part = 0; part < 4; ++part) {
            sums[part] = _mm512_add_ps(sums[part], exponentials(load(row + column + part * kLanes), shift));
        }
    }
    for (; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        sums[0] = _mm512_mask_add_ps(sums[0], mask, sums[0], exponentials(load(row + column, mask), shift));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// The first column that holds `number`; 0 where none does.
MEGATRON_EXT_TARGET std::int64_t place_of(const bf16* row, std::int64_t columns, float number) {
    for (std::int64_t column = 0; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        const __mmask16 equal =
            _mm512_mask_cmp_ps_mask(mask, load(row + column, mask), _mm512_set1_ps(number), _CMP_EQ_OQ);
        if (equal != 0) return column + __builtin_ctz(equal);
    }
    return 0;
}

MEGATRON_EXT_TARGET float softmax_at(const bf16* row, std::int64_t column, float log_sum_exp) {
    return _mm512_cvtss_f32(exponentials(load(row + column, 1), _mm512_set1_ps(log_sum_exp)));
}

// `to` may be `row` itself: what single columns need of it is read before anything is written.
MEGATRON_EXT_TARGET void write_gradient(bf16* to, const bf16* row, std::int64_t columns, const Statistics& all,
                                        std::int64_t index) {
    const float log_sum_exp = all.log_sum_exp[index], weight = all.weight[index];
    const bool has_label = all.has_label[index], has_place = all.place != nullptr;
    const std::int64_t label = has_label ? all.label[index] : 0, place = has_place ? all.place[index] : 0;
    const float slope = has_place ? all.slope[index] : 0.0f;
    float of_label = has_label ? softmax_at(row, label, log_sum_exp) - 1.0f : 0.0f;
    float of_place = has_place ? softmax_at(row, place, log_sum_exp) : 0.0f;
    if (has_label && has_place && label == place) of_label = of_place = of_label + slope;
    else of_place += slope;

    const __m512 shift = _mm512_set1_ps(log_sum_exp), factor = _mm512_set1_ps(weight);
    std::int64_t column = 0;
    for (; column + 2 * kLanes <= columns; column += 2 * kLanes) {
        const __m512 one = load(row + column), other = load(row + column + kLanes);
        store(to + column, _mm512_mul_ps(exponentials(one, shift), factor));
        store(to + column + kLanes, _mm512_mul_ps(exponentials(other, shift), factor));
    }
    for (; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        store(to + column, _mm512_mul_ps(exponentials(load(row + column, mask), shift), factor), mask);
    }
    if (has_place) store(to + place, _mm512_set1_ps(of_place * weight), 1);
    if (has_label) store(to + label, _mm512_set1_ps(of_label * weight), 1);
}

MEGATRON_EXT_TARGET void add_row(float* to, const bf16* from, std::int64_t columns) {
    for (std::int64_t column = 0; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to + column), load(from + column, mask));
        _mm512_mask_storeu_ps(to + column, mask, sum);
    }
}

MEGATRON_EXT_TARGET void scale_row(bf16* to, const float* from, std::int64_t columns, float factor) {
    for (std::int64_t column = 0; column < columns; column += kLanes) {
        const __mmask16 mask = lanes(column, columns);
        const __m512 values = _mm512_maskz_loadu_ps(mask, from + column);
        store(to + column, _mm512_mul_ps(values, _mm512_set1_ps(factor)), mask);
    }
}

void row_sums(std::uintptr_t scores, std::int64_t stride, std::int64_t rows, std::int64_t columns,
              std::uintptr_t largest, std::uintptr_t place, std::uintptr_t total) {
    const Rows from{at<bf16>(scores), stride};
    float *maxima = at<float>(largest), *sums = at<float>(total);
    auto* places = at<std::int64_t>(place);
#pragma omp parallel for if (worth_threads(rows * columns))
    for (std::int64_t row = 0; row < rows; ++row) {
        maxima[row] = largest_of(from[row], columns);
        sums[row] = sum_of_exponentials(from[row], columns, maxima[row]);
        if (places != nullptr) places[row] = place_of(from[row], columns, maxima[row]);
    }
}

void logit_gradient(std::uintptr_t out, std::int64_t out_stride, std::uintptr_t scores, std::int64_t stride,
                    std::int64_t rows, std::int64_t columns, std::uintptr_t log_sum_exp, std::uintptr_t label,
                    std::uintptr_t has_label, std::uintptr_t place, std::uintptr_t slope, std::uintptr_t weight) {
    if (columns == 0) return;  // a rank may hold nothing but padding; its places and labels are 0
    const Rows to{at<bf16>(out), out_stride}, from{at<bf16>(scores), stride};
    const Statistics all{at<float>(log_sum_exp), at<std::int64_t>(label), at<bool>(has_label),
                         at<std::int64_t>(place), at<float>(slope),       at<float>(weight)};
#pragma omp parallel for if (worth_threads(rows * columns))
    for (std::int64_t row = 0; row < rows; ++row) write_gradient(to[row], from[row], columns, all, row);
}

// Numbers that a thread works on at a time where there are no rows.
constexpr std::int64_t kPiece = 4096;

void add(std::uintptr_t total, std::uintptr_t share, std::int64_t count) {
#pragma omp parallel for if (worth_threads(count))
    for (std::int64_t first = 0; first < count; first += kPiece) {
        add_row(at<float>(total) + first, at<bf16>(share) + first, std::min(kPiece, count - first));
    }
}

void scaled(std::uintptr_t out, std::uintptr_t total, std::int64_t count, float factor) {
#pragma omp parallel for if (worth_threads(count))
    for (std::int64_t first = 0; first < count; first += kPiece) {
        scale_row(at<bf16>(out) + first, at<float>(total) + first, std::min(kPiece, count - first), factor);
    }
}

}  // namespace

#endif

void bind_loss(pybind11::module_& module) {
#if MEGATRON_EXT_KERNELS
    using free_threads = pybind11::call_guard<pybind11::gil_scoped_release>;
    module.def("row_sums", &row_sums, free_threads(), "Largest, its column and sum of e^(x - largest) of every row.");
    module.def("logit_gradient", &logit_gradient, free_threads(), "Softmax less one-hot, and max-z, times a weight.");
    module.def("add", &add, free_threads(), "fp32 += bf16.");
    module.def("scaled", &scaled, free_threads(), "bf16 = fp32 * factor.");
#else
    (void)module;
#endif
}

}  // namespace megatron_ext::kernels
