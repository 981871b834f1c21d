// The byte-pair encoders as Python classes of megatron_ext._native.
#pragma once

#include <pybind11/pybind11.h>

namespace megatron_ext {

void bind_bpe(pybind11::module_& module);

}  // namespace megatron_ext
