/* exp and the logistic function in double, without branches or calls, so that loops over channels become vectors:
 * libm's exp took as long as a pass over the pixels where planes are 7x7. */
#ifndef CALIBNORM_EXPONENTIAL_H
#define CALIBNORM_EXPONENTIAL_H

#include "simd.h"

/* e^x to about 1 ulp, with x clamped to where the result is a normal number; NaN stays NaN. */
INLINE double exponential(double x)
{
    const double big = 0x1.8p52; /* adding it rounds to an integer, which is then in the low bits */
    x = x > 708.0 ? 708.0 : x;
    x = x < -708.0 ? -708.0 : x;
    double shifted = x * 0x1.71547652b82fep0 + big, n = shifted - big; /* n = round(x / ln 2) */
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33; /* |r| <= ln(2) / 2 */
    double p = 1.0 / 6227020800.0; /* Taylor to r^13: the next term is below 5e-18 */
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t bits;
    double power;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int64_t)((uint64_t)(bits + 1023) << 52);
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE double logistic(double z) { return 1.0 / (1.0 + exponential(-z)); }

#endif
