// Each file of kernels adds its functions to the module.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace megatron_ext::kernels {

// An address from Tensor.data_ptr().
template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void bind_attention(pybind11::module_& module);
void bind_loss(pybind11::module_& module);
void bind_norm(pybind11::module_& module);
void bind_swiglu(pybind11::module_& module);

}  // namespace megatron_ext::kernels
