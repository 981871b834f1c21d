// Addresses and sizes from Python to the kernels of attention.

#include <pybind11/stl.h>

#include <array>

#include "attention.h"
#include "bindings.h"

namespace py = pybind11;

namespace megatron_ext::kernels {
namespace {

using Sizes = std::array<std::int64_t, 7>;
using View = std::array<std::int64_t, 4>;  // address; strides of token, row, head

template <typename T>
Heads<T> heads(const View& view) {
    return {at<T>(static_cast<std::uintptr_t>(view[0])), view[1], view[2], view[3]};
}

// Addresses, 0 for what is not there: slopes, starts; cosines, sines, half, places of queries, places of keys.
Attention problem_of(const Sizes& sizes, float scale, const std::array<std::uintptr_t, 7>& rest) {
    const auto [batch, query_heads, key_heads, queries, keys, channels, first] = sizes;
    const Rotation rotation{at<const float>(rest[2]), at<const float>(rest[3]), static_cast<std::int64_t>(rest[4]),
                            at<const std::int64_t>(rest[5]), at<const std::int64_t>(rest[6])};
    return {batch,
            query_heads,
            key_heads,
            queries,
            keys,
            channels,
            first,
            scale,
            at<const float>(rest[0]),
            at<const std::int64_t>(rest[1]),
            rotation};
}

Operands operands_of(const std::array<View, 4>& views, std::uintptr_t sums) {
    return {heads<const bf16>(views[0]), heads<const bf16>(views[1]), heads<const bf16>(views[2]),
            heads<const bf16>(views[3]), at<float>(sums)};
}

}  // namespace

void bind_attention(py::module_& module) {
    using Rest = std::array<std::uintptr_t, 7>;
    module.def(
        "attention_forward",
        [](const Sizes& sizes, float scale, const Rest& rest, const std::array<View, 4>& views, std::uintptr_t sums) {
            const py::gil_scoped_release release;
            attention_forward(problem_of(sizes, scale, rest), operands_of(views, sums));
        },
        "Writes the output (the last of the views) and the sums.");
    module.def(
        "attention_backward",
        [](const Sizes& sizes, float scale, const Rest& rest, const std::array<View, 4>& views, std::uintptr_t sums,
           const std::array<View, 4>& gradients) {
            const py::gil_scoped_release release;
            attention_backward(problem_of(sizes, scale, rest), operands_of(views, sums),
                               {heads<const bf16>(gradients[0]), heads<bf16>(gradients[1]), heads<bf16>(gradients[2]),
                                heads<bf16>(gradients[3])});
        },
        "Writes the last three of the gradients from the first.");
}

}  // namespace megatron_ext::kernels
