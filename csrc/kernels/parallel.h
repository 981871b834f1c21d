// When a loop over rows is worth several threads.

#pragma once

#include <cstdint>

namespace megatron_ext::kernels {

// Elements below which the start of the threads takes longer than the work (as many as torch's own loops).
inline bool worth_threads(std::int64_t elements) { return elements >= (1 << 15); }

}  // namespace megatron_ext::kernels
