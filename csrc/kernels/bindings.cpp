// The CPU kernels of a training step. Arguments are addresses and sizes; megatron_ext/model/ owns the tensors, checks
// their shapes and types, and has the reference in PyTorch's own operations for each of them.

#include "bindings.h"

#include "avx512.h"

namespace py = pybind11;

PYBIND11_MODULE(_kernels, module) {
    module.doc() = "CPU kernels of a training step, for bf16 on AVX-512; import torch first, whose threads they use.";
    module.def("supported", &megatron_ext::kernels::supported, "Whether this machine can run them.");
    megatron_ext::kernels::bind_attention(module);
    megatron_ext::kernels::bind_loss(module);
    megatron_ext::kernels::bind_norm(module);
    megatron_ext::kernels::bind_swiglu(module);
}
