// silu(gate) * up of rows [gate, up], and its gradient; fp32 inside, rounded once.

#include <limits>

#include "avx512.h"
#include "bindings.h"
#include "parallel.h"

namespace megatron_ext::kernels {

#if MEGATRON_EXT_KERNELS

namespace {

// e^-x; inf for large gates below 0, whose sigmoid is then 0.
MEGATRON_EXT_INLINE __m512 decay(__m512 x) { return exp2(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2E))); }

MEGATRON_EXT_TARGET void forward(bf16* out, const bf16* gate, const bf16* up, std::int64_t width) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (std::int64_t column = 0; column < width; column += kLanes) {
        const __mmask16 mask = lanes(column, width);
        const __m512 x = load(gate + column, mask);
        const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(one, decay(x)));
        store(out + column, _mm512_mul_ps(silu, load(up + column, mask)), mask);
    }
}

// d silu(x)/dx = s (1 + x (1 - s)) with s = sigmoid(x) and 1 - s = e^-x s, where e^-x must not be inf, as s is then 0.
MEGATRON_EXT_TARGET void backward(bf16* of_row, const bf16* grad, const bf16* row, std::int64_t width) {
    const __m512 one = _mm512_set1_ps(1.0f), finite = _mm512_set1_ps(std::numeric_limits<float>::max());
    for (std::int64_t column = 0; column < width; column += kLanes) {
        const __mmask16 mask = lanes(column, width);
        const __m512 x = load(row + column, mask), slope = load(grad + column, mask);
        const __m512 power = decay(x), sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, power));
        const __m512 rest = _mm512_mul_ps(_mm512_min_ps(finite, power), sigmoid);
        const __m512 inner = _mm512_fmadd_ps(x, rest, one);
        const __m512 of_gate = _mm512_mul_ps(_mm512_mul_ps(sigmoid, inner), load(row + width + column, mask));
        store(of_row + column, _mm512_mul_ps(slope, of_gate), mask);
        store(of_row + width + column, _mm512_mul_ps(slope, _mm512_mul_ps(x, sigmoid)), mask);
    }
}

void swiglu(std::uintptr_t out, std::uintptr_t input, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for if (worth_threads(rows * width))
    for (std::int64_t row = 0; row < rows; ++row) {
        const bf16* from = at<bf16>(input) + row * 2 * width;
        forward(at<bf16>(out) + row * width, from, from + width, width);
    }
}

void swiglu_gradient(std::uintptr_t of_input, std::uintptr_t grad, std::uintptr_t input, std::int64_t rows,
                     std::int64_t width) {
#pragma omp parallel for if (worth_threads(rows * width))
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t place = row * 2 * width;
        backward(at<bf16>(of_input) + place, at<bf16>(grad) + row * width, at<bf16>(input) + place, width);
    }
}

}  // namespace

#endif

void bind_swiglu(pybind11::module_& module) {
#if MEGATRON_EXT_KERNELS
    using free_threads = pybind11::call_guard<pybind11::gil_scoped_release>;
    module.def("swiglu", &swiglu, free_threads(), "silu(gate) * up of rows [gate, up].");
    module.def("swiglu_gradient", &swiglu_gradient, free_threads(), "The gradient of [gate, up].");
#else
    (void)module;
#endif
}

}  // namespace megatron_ext::kernels
