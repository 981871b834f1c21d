// What a blend asks of all datasets at once, in the widest instructions that the machine has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace megatron_ext {

// Arrays handed to a scan are padded to a multiple of this many elements: weight 0, count +infinity.
constexpr std::int64_t kScanWidth = 32;

// The error of dataset i at a place is weights[i] * place - counts[i], rounded after each of the two operations.
struct BlendScan {
    const char* name;
    // The first dataset with the largest error.
    std::int64_t (*best)(const double* weights, const double* counts, std::int64_t size, double place);
    // How many errors are at least `threshold`.
    std::int64_t (*count)(const double* weights, const double* counts, std::int64_t size, double place, double threshold);
    // Writes the datasets whose error is at least `threshold`, in rising order (room for `size`); returns how many.
    std::int64_t (*collect)(const double* weights, const double* counts, std::int64_t size, double place,
                            double threshold, std::int64_t* found);
};

// The scans this machine can run, the widest first; "portable" is always the last.
const std::vector<BlendScan>& blend_scans();

// The scan of a name, "" for the widest. Throws std::invalid_argument where the machine has none of that name.
const BlendScan& blend_scan(const std::string& name);

}  // namespace megatron_ext
