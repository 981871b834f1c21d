// RMSNorm and its gradient; fp32 inside, rounded once.

#include <algorithm>
#include <cmath>
#include <vector>

#include "avx512.h"
#include "bindings.h"
#include "parallel.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

// Rows whose share of the weight's gradient is summed by one thread: always the same ones, so that the sum does not
// depend on the number of threads.
constexpr std::int64_t kBlock = 64;

struct Norm {
    const bf16* x;
    const bf16* weight;
    float* rstd;
    std::int64_t width;
};

MEGATRON_EXT_TARGET void normalize(bf16* out, const Norm& norm, std::int64_t row, float eps) {
    const bf16* x = norm.x + row * norm.width;
    __m512 squares = _mm512_setzero_ps();
    for (std::int64_t column = 0; column < norm.width; column += kLanes) {
        const __m512 values = load(x + column, lanes(column, norm.width));
        squares = _mm512_fmadd_ps(values, values, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(norm.width);
    const float rstd = norm.rstd[row] = 1.0f / std::sqrt(mean + eps);
    for (std::int64_t column = 0; column < norm.width; column += kLanes) {
        const __mmask16 mask = lanes(column, norm.width);
        const __m512 normal = _mm512_mul_ps(load(x + column, mask), _mm512_set1_ps(rstd));
        store(out + row * norm.width + column, _mm512_mul_ps(normal, load(norm.weight + column, mask)), mask);
    }
}

// dx = rstd (w g - n mean(w g n)) with n = rstd x; adds g n to the gradient of the weight.
MEGATRON_EXT_TARGET void differentiate(bf16* of_x, float* of_weight, const bf16* grad, const Norm& norm,
                                       std::int64_t row) {
    const bf16* x = norm.x + row * norm.width;
    const bf16* g = grad + row * norm.width;
    const __m512 rstd = _mm512_set1_ps(norm.rstd[row]);
    __m512 share = _mm512_setzero_ps();
    for (std::int64_t column = 0; column < norm.width; column += kLanes) {
        const __mmask16 mask = lanes(column, norm.width);
        const __m512 normal = _mm512_mul_ps(load(x + column, mask), rstd);
        const __m512 product = _mm512_mul_ps(load(g + column, mask), normal);
        share = _mm512_fmadd_ps(product, load(norm.weight + column, mask), share);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, of_weight + column), product);
        _mm512_mask_storeu_ps(of_weight + column, mask, sum);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(share) / static_cast<float>(norm.width));
    for (std::int64_t column = 0; column < norm.width; column += kLanes) {
        const __mmask16 mask = lanes(column, norm.width);
        const __m512 normal = _mm512_mul_ps(load(x + column, mask), rstd);
        const __m512 weighted = _mm512_mul_ps(load(g + column, mask), load(norm.weight + column, mask));
        const __m512 rest = _mm512_fnmadd_ps(normal, mean, weighted);
        store(of_x + row * norm.width + column, _mm512_mul_ps(rest, rstd), mask);
    }
}

// The blocks' shares in their order.
MEGATRON_EXT_TARGET void sum_blocks(bf16* out, const std::vector<float>& shares, std::int64_t width) {
    const auto count = static_cast<std::int64_t>(shares.size());
    for (std::int64_t column = 0; column < width; column += kLanes) {
        const __mmask16 mask = lanes(column, width);
        __m512 sum = _mm512_setzero_ps();
        for (std::int64_t first = column; first < count; first += width) {
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, shares.data() + first));
        }
        store(out + column, sum, mask);
    }
}

void rms_norm(std::uintptr_t out, std::uintptr_t rstd, std::uintptr_t x, std::uintptr_t weight, std::int64_t rows,
              std::int64_t width, float eps) {
    const Norm norm{at<bf16>(x), at<bf16>(weight), at<float>(rstd), width};
#pragma omp parallel for if (worth_threads(rows * width))
    for (std::int64_t row = 0; row < rows; ++row) normalize(at<bf16>(out), norm, row, eps);
}

void rms_norm_gradient(std::uintptr_t of_x, std::uintptr_t of_weight, std::uintptr_t grad, std::uintptr_t x,
                       std::uintptr_t weight, std::uintptr_t rstd, std::int64_t rows, std::int64_t width) {
    const Norm norm{at<bf16>(x), at<bf16>(weight), at<float>(rstd), width};
    const std::int64_t blocks = (rows + kBlock - 1) / kBlock;
    std::vector<float> shares(blocks * width);
#pragma omp parallel for if (worth_threads(rows * width))
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t end = std::min(rows, (block + 1) * kBlock);
        float* share = shares.data() + block * width;
        for (std::int64_t row = block * kBlock; row < end; ++row) {
            differentiate(at<bf16>(of_x), share, at<bf16>(grad), norm, row);
        }
    }
    sum_blocks(at<bf16>(of_weight), shares, width);
}

}  // namespace

#endif

void bind_norm(pybind11::module_& module) {
#if MEGATRON_EXT_KERNELS
    using free_threads = pybind11::call_guard<pybind11::gil_scoped_release>;
    module.def("rms_norm", &rms_norm, free_threads(), "x rstd weight, and rstd in fp32.");
    module.def("rms_norm_gradient", &rms_norm_gradient, free_threads(), "The gradients of x and weight.");
#else
    (void)module;
#endif
}

}  // namespace megatron_ext::kernels
