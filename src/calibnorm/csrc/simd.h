/* Vectors of CN_BYTES bytes in the compilers' own extension: lanes are explicit, so that sums need no -ffast-math
 * (which would let NaN vanish), and one source serves every instruction set. */
#ifndef CALIBNORM_SIMD_H
#define CALIBNORM_SIMD_H

#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf32 __attribute__((vector_size(CN_BYTES)));
typedef int32_t vi32 __attribute__((vector_size(CN_BYTES)));
typedef uint32_t vu32 __attribute__((vector_size(CN_BYTES)));
typedef double vf64 __attribute__((vector_size(CN_BYTES)));
typedef int64_t vi64 __attribute__((vector_size(CN_BYTES)));
typedef uint16_t vu16 __attribute__((vector_size(CN_BYTES / 2)));

/* Lane numbers 0, 1, 2, ... of the widest vector; narrower ones use a part. */
static const int32_t lanes_i32[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const int64_t lanes_i64[8] = {0, 1, 2, 3, 4, 5, 6, 7};

INLINE vi32 iota_f32(void) { vi32 v; memcpy(&v, lanes_i32, sizeof v); return v; }
INLINE vi64 iota_f64(void) { vi64 v; memcpy(&v, lanes_i64, sizeof v); return v; }

INLINE vf32 load_f32(const float *p) { vf32 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f32(float *p, vf32 v) { memcpy(p, &v, sizeof v); }
INLINE vf32 round_f32(vf32 v) { return v; }
INLINE vf64 load_f64(const double *p) { vf64 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f64(double *p, vf64 v) { memcpy(p, &v, sizeof v); }
INLINE vf64 round_f64(vf64 v) { return v; }

/* bfloat16: the upper half of a float. */
INLINE vf32 widen_bf16(vu16 h) { return (vf32)(__builtin_convertvector(h, vu32) << 16); }
INLINE vu16 narrow_bf16(vf32 v)
{
    vu32 b = (vu32)v, nan = (vu32)(v != v);
    vu32 r = (b + 0x7fff + ((b >> 16) & 1)) >> 16; /* to nearest, ties to even; overflows into inf */
    return __builtin_convertvector((r & ~nan) | (0x7fc0 & nan), vu16);
}

/* float16: the processor's conversion where there is one. */
#if defined(__AVX512F__) && CN_BYTES == 64
INLINE vf32 widen_f16(vu16 h) { return (vf32)_mm512_cvtph_ps((__m256i)h); }
INLINE vu16 narrow_f16(vf32 v) { return (vu16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__) && CN_BYTES == 32
INLINE vf32 widen_f16(vu16 h) { return (vf32)_mm256_cvtph_ps((__m128i)h); }
INLINE vu16 narrow_f16(vf32 v) { return (vu16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE vf32 widen_f16(vu16 h)
{
    vu32 w = __builtin_convertvector(h, vu32);
    /* The exponent's bias is 127 instead of 15: times 2^112, which is exact and mends subnormals too. */
    vf32 magnitude = (vf32)((w & 0x7fff) << 13) * 0x1p112f;
    vu32 special = (vu32)((w & 0x7c00) == 0x7c00) & 0x7f800000; /* inf and NaN: every exponent bit */
    return (vf32)((vu32)magnitude | special | ((w & 0x8000) << 16));
}
INLINE vu16 narrow_f16(vf32 v)
{
    vu32 b = (vu32)v, sign = b & 0x80000000, a = b ^ sign;
    vu32 normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13; /* ties to even; overflows into inf */
    vf32 shifted = (vf32)a + 0.5f; /* an ulp of 0.5 is float16's least subnormal: this addition rounds */
    vu32 tiny = (vu32)shifted - 0x3f000000;
    vu32 is_tiny = (vu32)(a < (113u << 23)), is_big = (vu32)(a >= (143u << 23)), is_nan = (vu32)(a > 0x7f800000);
    vu32 r = (tiny & is_tiny) | (normal & ~is_tiny);
    r = (r & ~is_big) | (0x7c00 & is_big) | (0x0200 & is_nan);
    return __builtin_convertvector(r | (sign >> 16), vu16);
}
#endif

INLINE vf32 load_bf16(const uint16_t *p) { vu16 h; memcpy(&h, p, sizeof h); return widen_bf16(h); }
INLINE void store_bf16(uint16_t *p, vf32 v) { vu16 h = narrow_bf16(v); memcpy(p, &h, sizeof h); }
INLINE vf32 round_bf16(vf32 v) { return widen_bf16(narrow_bf16(v)); }
INLINE vf32 load_f16(const uint16_t *p) { vu16 h; memcpy(&h, p, sizeof h); return widen_f16(h); }
INLINE void store_f16(uint16_t *p, vf32 v) { vu16 h = narrow_f16(v); memcpy(p, &h, sizeof h); }
INLINE vf32 round_f16(vf32 v) { return widen_f16(narrow_f16(v)); }

/* Sum of all lanes, in halves: the same order for every call. Halves by name, because through an array in memory GCC
 * stored and loaded it at every step, which took longer than the rest of a 7x7 plane. */
#define HALVES(T, V, H, BYTES)                                                   \
    typedef T H __attribute__((vector_size(BYTES)));                             \
    typedef union { V whole; H half[2]; } V##_##H;
#if CN_BYTES == 64
HALVES(float, vf32, vf32_32, 32)
HALVES(double, vf64, vf64_32, 32)
INLINE vf32_32 fold_f32_64(vf32 v) { vf32_vf32_32 u = {v}; return u.half[0] + u.half[1]; }
INLINE vf64_32 fold_f64_64(vf64 v) { vf64_vf64_32 u = {v}; return u.half[0] + u.half[1]; }
#else
#define fold_f32_64(v) (v)
#define fold_f64_64(v) (v)
#endif
#if CN_BYTES == 32
typedef vf32 vf32_32;
typedef vf64 vf64_32;
#endif
#if CN_BYTES >= 32
HALVES(float, vf32_32, vf32_16, 16)
HALVES(double, vf64_32, vf64_16, 16)
INLINE vf32_16 fold_f32_32(vf32_32 v) { vf32_32_vf32_16 u = {v}; return u.half[0] + u.half[1]; }
INLINE vf64_16 fold_f64_32(vf64_32 v) { vf64_32_vf64_16 u = {v}; return u.half[0] + u.half[1]; }
#else
#define fold_f32_32(v) (v)
#define fold_f64_32(v) (v)
typedef vf32 vf32_16;
typedef vf64 vf64_16;
#endif
INLINE float total_f32(vf32 v)
{
    vf32_16 q = fold_f32_32(fold_f32_64(v));
    return (q[0] + q[2]) + (q[1] + q[3]);
}
INLINE double total_f64(vf64 v)
{
    vf64_16 q = fold_f64_32(fold_f64_64(v));
    return q[0] + q[1];
}

#endif
