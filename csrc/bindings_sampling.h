// The part of the Python module that is about orders and samples.
#pragma once

#include <pybind11/pybind11.h>

namespace megatron_ext {

void bind_sampling(pybind11::module_& module);

}  // namespace megatron_ext
