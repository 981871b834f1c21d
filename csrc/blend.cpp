// blend, blend_all: which dataset, and which of its samples, stands at each place of a weighted mixture.
//
// Formula, for place n = start .. start + count - 1 and counts c_i of samples drawn so far:
//     d(n) = argmax_i  w_i * max(n, 1) - c_i             the first of equal ones
//     sample(n) = c_d(n), then c_d(n) += 1
// blend_all draws each dataset size_i times and then no more: w_i = size_i / sum of sizes, argmax over c_i < size_i.
// These are megatron-core 0.16.1's greedy and exhaustive orders (helpers.cpp, build_blending_indices and
// build_exhaustive_blending_indices) in the same floating-point operations, made restartable: the counts come in and
// go out, so that any block can be continued.
// Shapes and types: weights float64 [k], drawn int64 [k] (in and out) -> dataset int16 [count], sample int64 [count].
// Python twins: megatron_ext/sampling_numpy.py, blend and blend_all (the same values).
//
// Not every dataset is looked at for every place. Rounding is monotone, so as long as dataset i is not drawn its
// rounded error never falls while n grows (w_i >= 0), and drawing only lowers it. Let h datasets have an error of at
// least T now. During the next h places one of them is always still undrawn, so whatever is drawn has an error of at
// least T. Hence only datasets that would reach T at the last of the h places, if undrawn until then, can be drawn:
// these are collected, and only they are compared. The choice is the same as with all of them, bit for bit.

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "blend_scan.h"
#include "operations.h"

namespace megatron_ext {
namespace {

constexpr std::int64_t kFew = 64;  // so many datasets are simply all compared
constexpr std::int64_t kVeryFew = 12;  // so many candidates are compared one by one, without padding
constexpr double kNever = std::numeric_limits<double>::infinity();

double place_of(std::int64_t n) { return std::max(static_cast<double>(n), 1.0); }

std::int64_t padded(std::int64_t size) { return (size + kScanWidth - 1) / kScanWidth * kScanWidth; }

class Mixture {
  public:
    Mixture(const BlendScan& scan, const double* weights, std::int64_t size, const std::int64_t* limits,
            std::int64_t* drawn)
        : scan_(scan), size_(size), limits_(limits), drawn_(drawn), weights_(padded(size), 0.0),
          counts_(padded(size), kNever), few_(std::max(kFew, 2 * static_cast<std::int64_t>(std::sqrt(size)))) {
        std::copy(weights, weights + size, weights_.begin());
        for (std::int64_t i = 0; i < size; ++i) {
            counts_[i] = count_of(i);
            open_ += counts_[i] < kNever;
        }
        rising_ = std::all_of(weights, weights + size, [](double weight) { return weight >= 0.0; });
    }

    void draw(std::int64_t start, std::int64_t count, std::int16_t* dataset, std::int64_t* sample) {
        for (std::int64_t done = 0; done < count;) {
            const std::int64_t steps = choose_candidates(start + done, count - done);
            for (const std::int64_t end = done + steps; done < end; ++done) {
                const std::int64_t place = best_candidate(place_of(start + done));
                const std::int64_t best = candidates_[place];
                dataset[done] = static_cast<std::int16_t>(best);
                sample[done] = drawn_[best]++;
                some_counts_[place] = counts_[best] = count_of(best);
                open_ -= counts_[best] == kNever;
            }
        }
    }

  private:
    double count_of(std::int64_t i) const {
        return limits_ != nullptr && drawn_[i] >= limits_[i] ? kNever : static_cast<double>(drawn_[i]);
    }

    // Which of the candidates has the largest error, the first of equal ones.
    std::int64_t best_candidate(double place) const {
        const double *weights = some_weights_.data(), *counts = some_counts_.data();
        if (number_ > kVeryFew) return scan_.best(weights, counts, padded(number_), place);
        std::int64_t best = 0;
        double best_error = weights[0] * place - counts[0];
        for (std::int64_t j = 1; j < number_; ++j) {
            const double error = weights[j] * place - counts[j];
            if (error > best_error) {
                best_error = error;
                best = j;
            }
        }
        return best;
    }

    // Fills the candidates for the places from n on; returns for how many places they hold, at most `wanted`.
    std::int64_t choose_candidates(std::int64_t n, std::int64_t wanted) {
        candidates_.resize(counts_.size());
        if (open_ <= few_ || !rising_) {
            std::int64_t number = 0;
            for (std::int64_t i = 0; i < size_; ++i) {
                if (counts_[i] < kNever) candidates_[number++] = i;
            }
            take(number);
            return wanted;
        }
        const std::int64_t all = static_cast<std::int64_t>(counts_.size());
        std::int64_t ahead = scan_.count(weights_.data(), counts_.data(), all, place_of(n), threshold_);
        if (ahead < few_ / 2 || ahead > 2 * few_) {
            threshold_ = error_of_rank(few_, place_of(n));
            ahead = scan_.count(weights_.data(), counts_.data(), all, place_of(n), threshold_);
        }
        const std::int64_t steps = std::min(ahead, wanted);
        take(scan_.collect(weights_.data(), counts_.data(), all, place_of(n + steps - 1), threshold_, candidates_.data()));
        return steps;
    }

    void take(std::int64_t number) {
        number_ = number;
        some_weights_.assign(padded(number), 0.0);
        some_counts_.assign(padded(number), kNever);
        for (std::int64_t j = 0; j < number; ++j) {
            some_weights_[j] = weights_[candidates_[j]];
            some_counts_[j] = counts_[candidates_[j]];
        }
    }

    // The rank-th largest error, counted from 1; more datasets than that are open, so that it is finite.
    double error_of_rank(std::int64_t rank, double place) {
        errors_.resize(size_);
        for (std::int64_t i = 0; i < size_; ++i) errors_[i] = weights_[i] * place - counts_[i];
        std::nth_element(errors_.begin(), errors_.begin() + (rank - 1), errors_.end(), std::greater<double>());
        return errors_[rank - 1];
    }

    const BlendScan& scan_;
    const std::int64_t size_;
    const std::int64_t* limits_;
    std::int64_t* drawn_;
    std::vector<double> weights_, counts_, some_weights_, some_counts_, errors_;
    std::vector<std::int64_t> candidates_;
    const std::int64_t few_;
    std::int64_t number_ = 0;  // of candidates; the arrays after them are padding
    std::int64_t open_ = 0;  // datasets that may still be drawn
    double threshold_ = kNever;
    bool rising_ = true;
};

}  // namespace

void blend(const double* weights, std::int64_t num_datasets, std::int64_t start, std::int64_t count, std::int64_t* drawn,
           std::int16_t* dataset, std::int64_t* sample, const std::string& scan) {
    Mixture(blend_scan(scan), weights, num_datasets, nullptr, drawn).draw(start, count, dataset, sample);
}

void blend_all(const std::int64_t* sizes, std::int64_t num_datasets, std::int64_t start, std::int64_t count,
               std::int64_t* drawn, std::int16_t* dataset, std::int64_t* sample, const std::string& scan) {
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < num_datasets; ++i) total += sizes[i];
    std::vector<double> weights(num_datasets);
    for (std::int64_t i = 0; i < num_datasets; ++i) weights[i] = sizes[i] / static_cast<double>(total);
    Mixture(blend_scan(scan), weights.data(), num_datasets, sizes, drawn).draw(start, count, dataset, sample);
}

}  // namespace megatron_ext
