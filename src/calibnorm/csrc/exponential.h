/* exp, the logistic function and what they need, on vectors of doubles: no branches and no calls. libm's exp took as
 * long as a pass over the pixels where planes are 7x7. */
#ifndef CALIBNORM_EXPONENTIAL_H
#define CALIBNORM_EXPONENTIAL_H

#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

INLINE vector_f64 all_f64(double x) { return (vector_f64){0} + x; }

/* a where `mask` is set, else b. */
INLINE vector_f64 choose_f64(mask_f64 mask, vector_f64 a, vector_f64 b)
{
    return (vector_f64)(((mask_f64)a & mask) | ((mask_f64)b & ~mask));
}

/* The compilers' extension has no square root and no minimum, and a loop over lanes goes through memory. With NaN in
 * v, clamp_f64 is NaN: the processor's minimum returns its second argument then. */
#if CN_BYTES == 64 && defined(__AVX512F__)
INLINE vector_f64 sqrt_f64(vector_f64 v) { return (vector_f64)_mm512_sqrt_pd((__m512d)v); }
INLINE vector_f64 clamp_f64(vector_f64 v, double limit)
{
    return (vector_f64)_mm512_max_pd(_mm512_set1_pd(-limit), _mm512_min_pd(_mm512_set1_pd(limit), (__m512d)v));
}
#elif CN_BYTES == 32 && defined(__AVX__)
INLINE vector_f64 sqrt_f64(vector_f64 v) { return (vector_f64)_mm256_sqrt_pd((__m256d)v); }
INLINE vector_f64 clamp_f64(vector_f64 v, double limit)
{
    return (vector_f64)_mm256_max_pd(_mm256_set1_pd(-limit), _mm256_min_pd(_mm256_set1_pd(limit), (__m256d)v));
}
#elif CN_BYTES == 16 && defined(__SSE2__)
INLINE vector_f64 sqrt_f64(vector_f64 v) { return (vector_f64)_mm_sqrt_pd((__m128d)v); }
INLINE vector_f64 clamp_f64(vector_f64 v, double limit)
{
    return (vector_f64)_mm_max_pd(_mm_set1_pd(-limit), _mm_min_pd(_mm_set1_pd(limit), (__m128d)v));
}
#else
#if CN_BYTES == 16 && defined(__ARM_NEON) && defined(__aarch64__)
INLINE vector_f64 sqrt_f64(vector_f64 v) { return (vector_f64)vsqrtq_f64((float64x2_t)v); }
#else
INLINE vector_f64 sqrt_f64(vector_f64 v)
{
    for (int i = 0; i < CN_BYTES / 8; i++) v[i] = __builtin_sqrt(v[i]);
    return v;
}
#endif
INLINE vector_f64 clamp_f64(vector_f64 v, double limit)
{
    v = choose_f64(v > limit, all_f64(limit), v);
    return choose_f64(v < -limit, all_f64(-limit), v);
}
#endif

/* e^x to about 1 ulp, with x clamped to where the result is a normal number; NaN stays NaN. */
INLINE vector_f64 exponential(vector_f64 x)
{
    const double big = 0x1.8p52; /* adding it rounds to an integer, which is then in the low bits */
    x = clamp_f64(x, 708.0);
    vector_f64 shifted = x * 0x1.71547652b82fep0 + big, n = shifted - big;     /* n = round(x / ln 2) */
    vector_f64 r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33; /* |r| <= ln(2) / 2 */
    /* Taylor to r^13: the next term is below 5e-18. Pairs, then pairs of pairs: Horner's rule waits 13 times for the
     * step before, which took longer than all the work of a vector. */
    vector_f64 r2 = r * r, r4 = r2 * r2;
    vector_f64 p0 = (r + 1.0) + r2 * (r * (1.0 / 6.0) + 0.5);
    vector_f64 p4 = (r * (1.0 / 120.0) + 1.0 / 24.0) + r2 * (r * (1.0 / 5040.0) + 1.0 / 720.0);
    vector_f64 p8 = (r * (1.0 / 362880.0) + 1.0 / 40320.0) + r2 * (r * (1.0 / 39916800.0) + 1.0 / 3628800.0);
    vector_f64 p12 = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
    vector_f64 p = p0 + r4 * (p4 + r4 * (p8 + r4 * p12));
    return p * (vector_f64)(((mask_f64)shifted + 1023) << 52);
}

INLINE vector_f64 logistic(vector_f64 z) { return 1.0 / (1.0 + exponential(-z)); }

#endif
