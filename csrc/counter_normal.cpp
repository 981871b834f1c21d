// counter_normal: standard normal deviates as a pure function of (key, element index).
//
// Formula, for element i of the stream `key` (all integer arithmetic modulo 2^64, all real arithmetic IEEE double):
//     bits = mix(mix(i + G) + mix(key + G))              G = 0x9E3779B97F4A7C15, mix = splitmix64's finaliser
//     u    = (floor(bits / 2^12) + 1/2) * 2^-52          exact, 0 < u < 1, symmetric about 1/2
//     z    = Phi^-1(u)                                   rational approximations, relative error < 1e-15
//     out  = float32(z)
// Shapes and types: key uint64, start int64 >= 0, count int64 >= 0 -> float32 [count], elements start .. start+count-1.
// Python twin: megatron_ext/native_numpy.py, counter_normal. Both give the same bits, because only correctly rounded
// operations occur (+ - * / sqrt, frexp): no libm log or exp, and no fused multiply-add (the pragmas below; x86-64
// has none by default, other targets do).
//
// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (mix); Wichura 1988, algorithm
// AS 241, "The percentage points of the normal distribution", Applied Statistics 37 (Phi^-1, PPND16).

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <cmath>
#include <cstdint>

#include "operations.h"

namespace megatron_ext {
namespace {

constexpr int kDegree = 8;  // coefficients in each numerator and denominator

constexpr double kCentralNumerator[kDegree] = {3.3871328727963666080e0,  1.3314166789178437745e+2, 1.9715909503065514427e+3,
                                               1.3731693765509461125e+4, 4.5921953931549871457e+4, 6.7265770927008700853e+4,
                                               3.3430575583588128105e+4, 2.5090809287301226727e+3};
constexpr double kCentralDenominator[kDegree] = {1.0, 4.2313330701600911252e+1, 6.8718700749205790830e+2,
                                                 5.3941960214247511077e+3, 2.1213794301586595867e+4, 3.9307895800092710610e+4,
                                                 2.8729085735721942674e+4, 5.2264952788528545610e+3};
constexpr double kMiddleNumerator[kDegree] = {1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
                                              3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
                                              2.27238449892691845833e-2, 7.74545014278341407640e-4};
constexpr double kMiddleDenominator[kDegree] = {1.0, 2.05319162663775882187e0, 1.67638483018380384940e0,
                                                6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
                                                5.47593808499534494600e-4, 1.05075007164441684324e-9};
constexpr double kTailNumerator[kDegree] = {6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
                                            2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                            2.71155556874348757815e-5, 2.01033439929228813265e-7};
constexpr double kTailDenominator[kDegree] = {1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
                                              1.48753612908506148525e-2, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
                                              1.42151175831644588870e-7, 2.04426310338993978564e-15};

double polynomial(const double (&coefficients)[kDegree], double x) {
    double value = coefficients[kDegree - 1];
    for (int i = kDegree - 2; i >= 0; --i) value = value * x + coefficients[i];
    return value;
}

// log(x) for a positive normal x: frexp, then the series of 2 artanh(s), s = (m-1)/(m+1), |s| <= 0.1716.
double logarithm(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < 0.70710678118654752440) {
        mantissa *= 2.0;
        exponent -= 1;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    const double square = s * s;
    double series = 1.0 / 23.0;
    for (int k = 21; k >= 1; k -= 2) series = series * square + 1.0 / static_cast<double>(k);
    return 2.0 * s * series + static_cast<double>(exponent) * 0.69314718055994530942;
}

double inverse_normal(double u) {
    const double q = u - 0.5;
    if (std::fabs(q) <= 0.425) {
        const double r = 0.180625 - q * q;
        return q * polynomial(kCentralNumerator, r) / polynomial(kCentralDenominator, r);
    }
    const double r = std::sqrt(-logarithm(q < 0.0 ? u : 1.0 - u));
    double z;
    if (r <= 5.0) {
        z = polynomial(kMiddleNumerator, r - 1.6) / polynomial(kMiddleDenominator, r - 1.6);
    } else {
        z = polynomial(kTailNumerator, r - 5.0) / polynomial(kTailDenominator, r - 5.0);
    }
    return q < 0.0 ? -z : z;
}

}  // namespace

void counter_normal(std::uint64_t key, std::int64_t start, std::int64_t count, float* out) {
    const std::uint64_t mixed_key = mix64(key + kGolden);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint64_t bits = mix64(mix64(static_cast<std::uint64_t>(start + i) + kGolden) + mixed_key);
        const double u = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
        out[i] = static_cast<float>(inverse_normal(u));
    }
}

}  // namespace megatron_ext
