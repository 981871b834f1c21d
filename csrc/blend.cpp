// blend: which dataset, and which of its samples, stands at each place of a weighted mixture.
//
// Formula, for place n = start .. start + count - 1 and counts c_i of samples drawn so far:
//     d(n) = argmax_i  w_i * max(n, 1) - c_i             the first of equal ones
//     sample(n) = c_d(n), then c_d(n) += 1
// This is megatron-core 0.16.1's greedy order (helpers.cpp, build_blending_indices) in the same floating-point
// operations, made restartable: the counts come in and go out, so that any block can be continued.
// Shapes and types: weights float64 [k] (sum 1), drawn int64 [k] (in and out) -> dataset int16 [count], sample int64 [count].
// Python twin: megatron_ext/native_numpy.py, blend (the same values).

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>

#include "operations.h"

namespace megatron_ext {

void blend(const double* weights, std::int64_t num_datasets, std::int64_t start, std::int64_t count, std::int64_t* drawn,
           std::int16_t* dataset, std::int64_t* sample) {
    for (std::int64_t n = 0; n < count; ++n) {
        const double place = std::max(static_cast<double>(start + n), 1.0);
        std::int64_t best = 0;
        double best_error = weights[0] * place - static_cast<double>(drawn[0]);
        for (std::int64_t i = 1; i < num_datasets; ++i) {
            const double error = weights[i] * place - static_cast<double>(drawn[i]);
            if (error > best_error) {
                best_error = error;
                best = i;
            }
        }
        dataset[n] = static_cast<std::int16_t>(best);
        sample[n] = drawn[best]++;
    }
}

}  // namespace megatron_ext
