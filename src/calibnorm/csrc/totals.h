/* Sums over the lanes of vectors, always in the same order: halves folded onto each other until one lane is left. */

/* Of one vector. Halves by name, because through an array in memory GCC stored and loaded it at every step, which took
 * longer than the rest of a 7x7 plane. */
#define HALVES(T, V, H, BYTES, FOLD)                 \
    typedef T H __attribute__((vector_size(BYTES))); \
    INLINE H FOLD(V v)                               \
    {                                                \
        union {                                      \
            V whole;                                 \
            H half[2];                               \
        } u = {v};                                   \
        return u.half[0] + u.half[1];                \
    }
#if CN_BYTES == 64
HALVES(float, vector_f32, vf32_32, 32, fold_f32_64)
HALVES(double, vector_f64, vf64_32, 32, fold_f64_64)
#else
#define fold_f32_64(v) (v)
#define fold_f64_64(v) (v)
#endif
#if CN_BYTES == 32
typedef vector_f32 vf32_32;
typedef vector_f64 vf64_32;
#endif
#if CN_BYTES >= 32
HALVES(float, vf32_32, vf32_16, 16, fold_f32_32)
HALVES(double, vf64_32, vf64_16, 16, fold_f64_32)
#else
#define fold_f32_32(v) (v)
#define fold_f64_32(v) (v)
typedef vector_f32 vf32_16;
typedef vector_f64 vf64_16;
#endif
INLINE float total_f32(vector_f32 v)
{
    vf32_16 q = fold_f32_32(fold_f32_64(v));
    return (q[0] + q[2]) + (q[1] + q[3]);
}
INLINE double total_f64(vector_f64 v)
{
    vf64_16 q = fold_f64_32(fold_f64_64(v));
    return q[0] + q[1];
}

/* Of as many vectors as one has lanes, v[i]'s in lane i: folded two and two, at two shuffles a vector, where one alone
 * takes a shuffle and a half-empty addition for every halving. */
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define CN_FOLDS
#endif
#endif
#ifdef CN_FOLDS
#define LIST(...) __VA_ARGS__
#define FOLDS(count, low, high)                                     \
    for (int i = 0; i < (count); i++)                               \
        v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], low) \
               + __builtin_shufflevector(v[2 * i], v[2 * i + 1], high);
#define FOLDS_2 FOLDS(1, LIST(0, 2), LIST(1, 3))
#define FOLDS_4                                  \
    FOLDS(2, LIST(0, 1, 4, 5), LIST(2, 3, 6, 7)) \
    FOLDS(1, LIST(0, 2, 4, 6), LIST(1, 3, 5, 7))
#define FOLDS_8                                                                \
    FOLDS(4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15)) \
    FOLDS(2, LIST(0, 1, 4, 5, 8, 9, 12, 13), LIST(2, 3, 6, 7, 10, 11, 14, 15)) \
    FOLDS(1, LIST(0, 2, 4, 6, 8, 10, 12, 14), LIST(1, 3, 5, 7, 9, 11, 13, 15))
#define FOLDS_16                                                              \
    FOLDS(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),    \
          LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)) \
    FOLDS(4, LIST(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),  \
          LIST(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))   \
    FOLDS(2, LIST(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),  \
          LIST(2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))   \
    FOLDS(1, LIST(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), \
          LIST(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#if CN_BYTES == 64
INLINE void totals_f32(vector_f32 *v, float *to) { FOLDS_16 store_f32(to, v[0]); }
INLINE void totals_f64(vector_f64 *v, double *to) { FOLDS_8 store_f64(to, v[0]); }
#elif CN_BYTES == 32
INLINE void totals_f32(vector_f32 *v, float *to) { FOLDS_8 store_f32(to, v[0]); }
INLINE void totals_f64(vector_f64 *v, double *to) { FOLDS_4 store_f64(to, v[0]); }
#else
INLINE void totals_f32(vector_f32 *v, float *to) { FOLDS_4 store_f32(to, v[0]); }
INLINE void totals_f64(vector_f64 *v, double *to) { FOLDS_2 store_f64(to, v[0]); }
#endif
#else
INLINE void totals_f32(vector_f32 *v, float *to)
{
    for (int i = 0; i < CN_BYTES / 4; i++) to[i] = total_f32(v[i]);
}
INLINE void totals_f64(vector_f64 *v, double *to)
{
    for (int i = 0; i < CN_BYTES / 8; i++) to[i] = total_f64(v[i]);
}
#endif
#define total_bf16 total_f32
#define total_f16 total_f32
#define totals_bf16 totals_f32
#define totals_f16 totals_f32
