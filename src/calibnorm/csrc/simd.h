/* Vectors of CN_BYTES bytes in the compilers' own extension: lanes are explicit, so that sums need no -ffast-math
 * (which would let NaN vanish), and one source serves every instruction set. */
#ifndef CALIBNORM_SIMD_H
#define CALIBNORM_SIMD_H

#include <stdint.h>
#include <string.h>
#if CN_BYTES > 16
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bfloat16 pixels are taken to be halves of 32-bit lanes, the even one the lower"
#endif

#define INLINE static inline __attribute__((always_inline, unused))
/* A function of its own for each kind of work, in whose loops the questions of the others are answered. */
#define APART static __attribute__((noinline))
#define VECTOR __attribute__((vector_size(CN_BYTES)))
/* A value of a type from memory, and to it, without an alignment. */
#define READ(type, p)                  \
    ({                                 \
        type read;                     \
        memcpy(&read, p, sizeof read); \
        read;                          \
    })
#define WRITE(p, v)                          \
    ({                                       \
        __typeof__(v) written = v;           \
        memcpy(p, &written, sizeof written); \
    })

typedef uint32_t vu32 VECTOR;
typedef uint16_t vu16 __attribute__((vector_size(CN_BYTES / 2)));

/* What each dtype has: pixel, accumulator, vector, mask, mask_lane; load, store, loads, stores, first, iota, total,
 * totals; tiny, the largest number that rounds to 0; and spread, how far apart neighbours of a vector lie that is
 * loaded with another one. */
typedef float pixel_f32, accumulator_f32, vector_f32 VECTOR;
typedef double pixel_f64, accumulator_f64, vector_f64 VECTOR;
typedef int32_t mask_lane_f32, mask_f32 VECTOR;
typedef int64_t mask_lane_f64, mask_f64 VECTOR;
typedef uint16_t pixel_bf16, pixel_f16;
typedef float accumulator_bf16, accumulator_f16;
typedef vector_f32 vector_bf16, vector_f16;
typedef mask_f32 mask_bf16, mask_f16;
typedef int32_t mask_lane_bf16, mask_lane_f16;
enum { spread_f32 = 1, spread_f64 = 1, spread_bf16 = 2, spread_f16 = 1 };
static const float tiny_f32 = 0, tiny_bf16 = 0x1p-134f, tiny_f16 = 0x1p-25f;
static const double tiny_f64 = 0;

/* Lane numbers 0, 1, 2, ... of the widest vector; narrower ones use a part. */
static const int32_t lanes_i32[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const int64_t lanes_i64[8] = {0, 1, 2, 3, 4, 5, 6, 7};

INLINE mask_f32 iota_f32(void) { return READ(mask_f32, lanes_i32); }
INLINE mask_f64 iota_f64(void) { return READ(mask_f64, lanes_i64); }
#define iota_bf16 iota_f32
#define iota_f16 iota_f32

/* bfloat16: the upper half of a float. */
INLINE vector_f32 widen_bf16(vu16 h) { return (vector_f32)(__builtin_convertvector(h, vu32) << 16); }
/* To nearest, ties to even, overflows into inf; the result is the upper halves, the lower ones hold anything. */
INLINE vu32 rounded_bf16(vector_f32 v)
{
    vu32 b = (vu32)v, r = b + 0x7fff + ((b >> 16) & 1);
#if defined(__AVX512F__) && CN_BYTES == 64
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    return (vu32)_mm512_mask_mov_epi32((__m512i)r, nan, _mm512_set1_epi32(0x7fc00000));
#else
    vu32 nan = (vu32)(v != v);
    return (r & ~nan) | (0x7fc00000 & nan);
#endif
}
INLINE vu16 narrow_bf16(vector_f32 v) { return __builtin_convertvector(rounded_bf16(v) >> 16, vu16); }

/* float16: the processor's conversion where there is one. */
#if defined(__AVX512F__) && CN_BYTES == 64
INLINE vector_f32 widen_f16(vu16 h) { return (vector_f32)_mm512_cvtph_ps((__m256i)h); }
INLINE vu16 narrow_f16(vector_f32 v) { return (vu16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__) && CN_BYTES == 32
INLINE vector_f32 widen_f16(vu16 h) { return (vector_f32)_mm256_cvtph_ps((__m128i)h); }
INLINE vu16 narrow_f16(vector_f32 v) { return (vu16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE vector_f32 widen_f16(vu16 h)
{
    vu32 w = __builtin_convertvector(h, vu32);
    /* The exponent's bias is 127 instead of 15: times 2^112, which is exact and mends subnormals too. */
    vector_f32 magnitude = (vector_f32)((w & 0x7fff) << 13) * 0x1p112f;
    vu32 special = (vu32)((w & 0x7c00) == 0x7c00) & 0x7f800000; /* inf and NaN: every exponent bit */
    return (vector_f32)((vu32)magnitude | special | ((w & 0x8000) << 16));
}
INLINE vu16 narrow_f16(vector_f32 v)
{
    vu32 b = (vu32)v, sign = b & 0x80000000, a = b ^ sign;
    vu32 normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13; /* ties to even; overflows into inf */
    vector_f32 shifted = (vector_f32)a + 0.5f; /* an ulp of 0.5 is float16's least subnormal: this addition rounds */
    vu32 least = (vu32)shifted - 0x3f000000;
    vu32 is_tiny = (vu32)(a < (113u << 23)), is_big = (vu32)(a >= (143u << 23)), is_nan = (vu32)(a > 0x7f800000);
    vu32 r = (least & is_tiny) | (normal & ~is_tiny);
    r = (r & ~is_big) | (0x7c00 & is_big) | (0x0200 & is_nan);
    return __builtin_convertvector(r | (sign >> 16), vu16);
}
#endif

INLINE vector_f32 load_f32(const float *p) { return READ(vector_f32, p); }
INLINE vector_f64 load_f64(const double *p) { return READ(vector_f64, p); }
INLINE vector_f32 load_bf16(const uint16_t *p) { return widen_bf16(READ(vu16, p)); }
INLINE vector_f32 load_f16(const uint16_t *p) { return widen_f16(READ(vu16, p)); }
INLINE void store_f32(float *p, vector_f32 v) { WRITE(p, v); }
INLINE void store_f64(double *p, vector_f64 v) { WRITE(p, v); }
INLINE void store_bf16(uint16_t *p, vector_f32 v) { WRITE(p, narrow_bf16(v)); }
INLINE void store_f16(uint16_t *p, vector_f32 v) { WRITE(p, narrow_f16(v)); }

/* One pixel in every lane: minus 0 is the number itself, where plus 0 is an addition, since -0 + 0 is 0. */
INLINE vector_f32 first_f32(const float *p) { return *p - (vector_f32){0}; }
INLINE vector_f64 first_f64(const double *p) { return *p - (vector_f64){0}; }
INLINE vector_f32 first_bf16(const uint16_t *p) { return widen_bf16((vu16){0} + *p); }
INLINE vector_f32 first_f16(const uint16_t *p) { return widen_f16((vu16){0} + *p); }

/* Two vectors at once, their pixels in an order that only the store knows: bfloat16 takes the even and the odd ones,
 * which widen and narrow in one operation each where neighbours need shuffles. */
#define LOADS_OF(SUFFIX, LANES)                                                                 \
    INLINE void loads_##SUFFIX(const pixel_##SUFFIX *p, vector_##SUFFIX *a, vector_##SUFFIX *b) \
    {                                                                                           \
        *a = load_##SUFFIX(p);                                                                  \
        *b = load_##SUFFIX(p + (LANES));                                                        \
    }
#define STORES_OF(STORE, SUFFIX, LANES)                                                    \
    INLINE void STORE##s_##SUFFIX(pixel_##SUFFIX *p, vector_##SUFFIX a, vector_##SUFFIX b) \
    {                                                                                      \
        STORE##_##SUFFIX(p, a);                                                            \
        STORE##_##SUFFIX(p + (LANES), b);                                                  \
    }
#define NEIGHBOURS(SUFFIX, LANES) LOADS_OF(SUFFIX, LANES) STORES_OF(store, SUFFIX, LANES)
NEIGHBOURS(f32, CN_BYTES / 4)
NEIGHBOURS(f64, CN_BYTES / 8)
NEIGHBOURS(f16, CN_BYTES / 4)
INLINE void loads_bf16(const uint16_t *p, vector_f32 *a, vector_f32 *b)
{
    const vu32 both = READ(vu32, p);
    *a = (vector_f32)(both << 16);
    *b = (vector_f32)(both & 0xffff0000);
}
INLINE vu32 both_bf16(vector_f32 a, vector_f32 b) { return (rounded_bf16(a) >> 16) | (rounded_bf16(b) & 0xffff0000); }
INLINE void stores_bf16(uint16_t *p, vector_f32 a, vector_f32 b) { WRITE(p, both_bf16(a, b)); }

/* The same stores past the caches, where `cn_job.past` says that everything is aligned for it; `streamed` comes before
 * another thread reads them. */
#if CN_BYTES > 16
#if CN_BYTES == 64
#define WHOLE(p, v) _mm512_stream_si512((void *)(p), (__m512i)(v))
#define HALF(p, v) _mm256_stream_si256((__m256i *)(p), (__m256i)(v))
#else
#define WHOLE(p, v) _mm256_stream_si256((__m256i *)(p), (__m256i)(v))
#define HALF(p, v) _mm_stream_si128((__m128i *)(p), (__m128i)(v))
#endif
INLINE void stream_f32(float *p, vector_f32 v) { WHOLE(p, v); }
INLINE void stream_f64(double *p, vector_f64 v) { WHOLE(p, v); }
INLINE void stream_bf16(uint16_t *p, vector_f32 v) { HALF(p, narrow_bf16(v)); }
INLINE void stream_f16(uint16_t *p, vector_f32 v) { HALF(p, narrow_f16(v)); }
STORES_OF(stream, f32, CN_BYTES / 4)
STORES_OF(stream, f64, CN_BYTES / 8)
STORES_OF(stream, f16, CN_BYTES / 4)
INLINE void streams_bf16(uint16_t *p, vector_f32 a, vector_f32 b) { WHOLE(p, both_bf16(a, b)); }
INLINE void streamed(void) { _mm_sfence(); }
#undef WHOLE
#undef HALF
#else
INLINE void streamed(void) {}
#endif

#include "totals.h"

#endif
