/* What both layouts share, for one dtype: the formulas of the passes on vectors, tails, and Chan's merge.
 *
 * Included once a dtype: T is the pixels' type, A the accumulation type, V a vector of LANES A, MASK its integers
 * (of type MASK_LANE); FN(name) is the name with the dtype's suffix. */

/* The last `rest` < LANES pixels before `end`, in the upper lanes; the lower ones hold something readable. Reading
 * back into the previous plane costs nothing, a partial copy does; only the tensor's first pixels need one. */
INLINE V FN(tail)(const T *end, int64_t rest, const T *base)
{
    if (end - LANES >= base) return LOAD(end - LANES);
    T copy[LANES];
    memset(copy, 0, sizeof copy);
    memcpy(copy + LANES - rest, end - rest, (size_t)rest * sizeof(T));
    return LOAD(copy);
}

/* Store the last `rest` of `n` pixels before `end` from the upper lanes. The lower lanes are right too where the row
 * or plane has them, and are stored again. */
INLINE void FN(put_tail)(T *end, int64_t rest, int64_t n, V v)
{
    if (n >= LANES) {
        STORE(end - LANES, v);
        return;
    }
    T copy[LANES];
    STORE(copy, v);
    memcpy(end - rest, copy + LANES - rest, (size_t)rest * sizeof(T));
}

/* Store one or two vectors, `past` the caches or not. */
INLINE void FN(put_vector)(T *p, V v, int past)
{
    if (past) STREAM(p, v);
    else STORE(p, v);
}

INLINE void FN(put_vectors)(T *p, V a, V b, int past)
{
    if (past) STREAMS(p, a, b);
    else STORES(p, a, b);
}

/* Ask for the lines of `count` pixels that are read soon, in the second cache: what is fetched so is too much for the
 * first. */
INLINE void FN(fetch_ahead)(const T *p, int64_t count)
{
    for (int64_t k = 0; k < count; k += 64 / (int64_t)sizeof(T)) __builtin_prefetch(p + k, 0, 2);
}

INLINE MASK FN(tail_mask)(int64_t rest) { return (MASK)(IOTA() >= (MASK_LANE)(LANES - rest)); }
INLINE V FN(masked)(V v, MASK keep) { return (V)((MASK)v & keep); }

/* y = scale * x_c + shift (+ residual), x_c = x - m. */
INLINE V FN(linear)(V x_c, V scale, V shift, V residual, int has_residual)
{
    V y = scale * x_c + shift;
    return has_residual ? y + residual : y;
}

/* ReLU that lets NaN pass. */
INLINE V FN(relu)(V y, int relu) { return relu ? (V)((MASK)y & ~(MASK)(y <= (A)0)) : y; }

/* dy where the output, after rounding to its dtype, is positive or NaN. */
INLINE V FN(relu_mask)(V dy, V y) { return (V)((MASK)dy & ~(MASK)(y <= TINY)); }

/* Count, mean and sum of squared deviations of some pixels, and Chan's merge of two such. */
typedef struct {
    double n, mean, m2;
} FN(moments);

INLINE void FN(merge)(FN(moments) *a, double n, double mean, double m2)
{
    if (a->n == 0) {
        *a = (FN(moments)){n, mean, m2};
        return;
    }
    double all = a->n + n, delta = mean - a->mean, w = n / all;
    a->mean += delta * w;
    a->m2 += m2 + delta * delta * a->n * w;
    a->n = all;
}
