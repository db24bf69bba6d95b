/* The four passes over channels_last, (N, S, C), for one dtype; see lanes.inc.h.
 *
 * Lanes are channels. Columns are taken BLOCK vectors at a time, so that what is kept for each column stays in L1, and
 * rows in tiles that do too. Where C is no multiple of LANES, the last vector of a row begins LANES channels before its
 * end and repeats some: sums are kept by vector, not by channel, and stores write the same values again. */

/* One instance's rows [lo, hi) and some of its columns, `count` vectors of them. */
typedef struct {
    int64_t n, lo, hi;
    int count;
    int64_t column[BLOCK];
} FN(block);

/* The columns of block b of unit u; count is 0 past the last block. */
INLINE FN(block) FN(columns)(const cn_job *job, int64_t u, int64_t b, int narrow)
{
    FN(block) at;
    at.n = u / job->chunks;
    at.lo = u % job->chunks * job->chunk;
    at.hi = job->S - at.lo < job->chunk ? job->S : at.lo + job->chunk;
    at.count = 0;
    for (int64_t c = b * BLOCK * LANES; c < job->C && at.count < BLOCK; c += LANES)
        at.column[at.count++] = c + LANES <= job->C || narrow ? c : job->C - LANES;
    return at;
}

/* LANES channels from p, of which C < LANES count where `narrow`; past the tensor's end nothing may be read. */
INLINE V FN(get)(const T *p, const cn_job *job, int narrow, const void *tensor)
{
    if (__builtin_expect(!narrow || p + LANES <= (const T *)tensor + job->N * job->S * job->C, 1)) return LOAD(p);
    T copy[LANES];
    memset(copy, 0, sizeof copy);
    memcpy(copy, p, (size_t)job->C * sizeof(T));
    return LOAD(copy);
}

INLINE void FN(put)(T *p, const cn_job *job, int narrow, V v)
{
    if (__builtin_expect(!narrow, 1)) {
        STORE(p, v);
        return;
    }
    T copy[LANES];
    STORE(copy, v);
    memcpy(p, copy, (size_t)job->C * sizeof(T));
}

/* The numbers of the block's columns; see lanes.inc.h. */
typedef struct { V m[BLOCK], scale[BLOCK], shift[BLOCK], slope[BLOCK], offset[BLOCK]; } FN(columns_numbers);

INLINE void FN(fetch)(FN(columns_numbers) *into, const cn_job *job, const FN(block) *at, int narrow)
{
    const int lanes = narrow ? (int)job->C : LANES;
    for (int j = 0; j < at->count; j++) {
        const int64_t nc = at->n * job->C + at->column[j];
        const double *m = job->m + nc;
        A values[LANES] = {0};
        double rest[LANES];
        for (int i = 0; i < lanes; i++) values[i] = (A)m[i];
        for (int i = 0; i < lanes; i++) rest[i] = m[i] - (double)values[i];
        memcpy(&into->m[j], values, sizeof values);
#define FETCH(NAME, FROM)                                                    \
    if (job->NAME) {                                                         \
        const double *array = job->NAME + nc, *factor = job->FROM + nc;      \
        const double used = job->NAME != job->FROM; /* whether rest is taken up here */ \
        for (int i = 0; i < lanes; i++) values[i] = (A)(array[i] - used * factor[i] * rest[i]); \
        memcpy(&into->NAME[j], values, sizeof values);                       \
    }
        FETCH(scale, scale)
        FETCH(shift, scale)
        FETCH(slope, slope)
        FETCH(offset, slope)
#undef FETCH
    }
}

INLINE int64_t FN(tile_rows)(const FN(block) *at)
{
    int64_t rows = 2 * TILE / (at->count * LANES); /* the merge costs as much as four rows, and 16 KiB stay in L1 */
    return rows < 16 ? 16 : rows > 256 ? 256 : rows;
}

INLINE void FN(moments_blocks)(int64_t begin, int64_t end, const cn_job *job, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(block) at;
        for (int64_t b = 0; at = FN(columns)(job, u, b, narrow), at.count; b++) {
            double mean[BLOCK * LANES], m2[BLOCK * LANES], seen = 0;
            const int64_t step = FN(tile_rows)(&at), lanes = (int64_t)at.count * LANES;
            memset(mean, 0, sizeof(double) * lanes);
            memset(m2, 0, sizeof(double) * lanes);
            for (int64_t t = at.lo; t < at.hi; t += step) {
                int64_t rows = at.hi - t < step ? at.hi - t : step, r;
                const T *x = (const T *)job->x + (at.n * job->S + t) * job->C;
                V k[BLOCK], s[BLOCK], q[BLOCK], center[BLOCK];
                for (int j = 0; j < at.count; j++) {
                    k[j] = FN(get)(x + at.column[j], job, narrow, job->x);
                    s[j] = q[j] = (V){0};
                }
#define X(R) FN(get)(x + (R) * job->C + at.column[j], job, narrow, job->x)
                for (r = 0; r + 4 <= rows; r += 4) /* four rows a step: fewer loads and stores of the sums */
                    for (int j = 0; j < at.count; j++)
                        s[j] += ((X(r) - k[j]) + (X(r + 1) - k[j])) + ((X(r + 2) - k[j]) + (X(r + 3) - k[j]));
                for (; r < rows; r++)
                    for (int j = 0; j < at.count; j++) s[j] += X(r) - k[j];
                for (int j = 0; j < at.count; j++) center[j] = k[j] + s[j] / (A)rows;
                for (r = 0; r + 4 <= rows; r += 4)
                    for (int j = 0; j < at.count; j++) {
                        V d0 = X(r) - center[j], d1 = X(r + 1) - center[j];
                        V d2 = X(r + 2) - center[j], d3 = X(r + 3) - center[j];
                        q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
                    }
                for (; r < rows; r++)
                    for (int j = 0; j < at.count; j++) {
                        V d = X(r) - center[j];
                        q[j] += d * d;
                    }
#undef X
                const A *first = (const A *)k, *sum = (const A *)s, *rounded = (const A *)center, *squares = (const A *)q;
                double all = seen + rows, w = rows / all, f = seen * w, inverse = 1.0 / rows;
                for (int64_t i = 0; i < lanes; i++) { /* as in planes.inc.h; w is 1 and f is 0 for the first tile */
                    double tile_mean = (double)first[i] + (double)sum[i] * inverse, off = tile_mean - (double)rounded[i];
                    double tile_m2 = (double)squares[i] - rows * off * off, delta = tile_mean - mean[i];
                    mean[i] += delta * w;
                    m2[i] += (tile_m2 < 0 ? 0 : tile_m2) + delta * delta * f;
                }
                seen = all;
            }
            for (int j = 0; j < at.count; j++)
                for (int i = 0; i < LANES && i < job->C; i++) {
                    double found[3] = {seen, mean[j * LANES + i], m2[j * LANES + i]};
                    int64_t c = at.column[j] + i;
                    if (job->chunks > 1) {
                        memcpy(job->partial + 3 * (u * job->C + c), found, sizeof found);
                    } else {
                        job->first[u * job->C + c] = found[1];
                        job->second[u * job->C + c] = found[2] / seen;
                    }
                }
        }
    }
}

static void FN(moments_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(moments_blocks)(begin, end, job, 1);
    else FN(moments_blocks)(begin, end, job, 0);
}

INLINE void FN(sums_blocks)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(block) at;
        for (int64_t b = 0; at = FN(columns)(job, u, b, narrow), at.count; b++) {
            double sums[2][BLOCK * LANES];
            FN(columns_numbers) of;
            V s[2][BLOCK];
            const int64_t step = FN(tile_rows)(&at), lanes = (int64_t)at.count * LANES;
            memset(sums[0], 0, sizeof(double) * lanes);
            memset(sums[1], 0, sizeof(double) * lanes);
            FN(fetch)(&of, job, &at, narrow);
            for (int64_t t = at.lo; t < at.hi; t += step) {
                int64_t stop = at.hi - t < step ? at.hi : t + step;
                for (int j = 0; j < at.count; j++) s[0][j] = s[1][j] = (V){0};
                for (int64_t r = t; r < stop; r++) {
                    int64_t row = (at.n * job->S + r) * job->C;
                    for (int j = 0; j < at.count; j++) {
                        int64_t i = row + at.column[j];
                        V x_c = FN(get)((const T *)job->x + i, job, narrow, job->x) - of.m[j];
                        V g = FN(get)((const T *)job->dy + i, job, narrow, job->dy);
                        if (relu) {
                            V extra = {0};
                            if (residual) extra = FN(get)((const T *)job->residual + i, job, narrow, job->residual);
                            g = FN(relu_mask)(g, FN(linear)(x_c, of.scale[j], of.shift[j], extra, residual));
                        }
                        if (residual) FN(put)((T *)job->y + i, job, narrow, g);
                        s[0][j] += g;
                        s[1][j] += g * x_c;
                    }
                }
                for (int k = 0; k < 2; k++)
                    for (int64_t i = 0; i < lanes; i++) sums[k][i] += ((const A *)s[k])[i];
            }
            for (int j = 0; j < at.count; j++)
                for (int i = 0; i < LANES && i < job->C; i++) {
                    int64_t c = at.column[j] + i;
                    double m = job->m[at.n * job->C + c], sum = sums[0][j * LANES + i];
                    double found[2] = {sum, sums[1][j * LANES + i] - (m - (double)(A)m) * sum};
                    if (job->chunks > 1) {
                        memcpy(job->partial + 2 * (u * job->C + c), found, sizeof found);
                    } else {
                        job->first[u * job->C + c] = found[0];
                        job->second[u * job->C + c] = found[1];
                    }
                }
        }
    }
}

static void FN(gradient_sums_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(sums_blocks)(begin, end, job, job->relu, job->relu && job->residual, 1); /* rare: flags at run time */
    else if (!job->relu) FN(sums_blocks)(begin, end, job, 0, 0, 0);
    else if (!job->residual) FN(sums_blocks)(begin, end, job, 1, 0, 0);
    else FN(sums_blocks)(begin, end, job, 1, 1, 0);
}

INLINE void FN(affine_blocks)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(block) at;
        for (int64_t b = 0; at = FN(columns)(job, u, b, narrow), at.count; b++) {
            FN(columns_numbers) of;
            FN(fetch)(&of, job, &at, narrow);
            for (int64_t r = at.lo; r < at.hi; r++) {
                int64_t row = (at.n * job->S + r) * job->C;
                for (int j = 0; j < at.count; j++) {
                    int64_t i = row + at.column[j];
                    V x_c = FN(get)((const T *)job->x + i, job, narrow, job->x) - of.m[j], extra = {0};
                    if (residual) extra = FN(get)((const T *)job->residual + i, job, narrow, job->residual);
                    V y = FN(linear)(x_c, of.scale[j], of.shift[j], extra, residual);
                    FN(put)((T *)job->y + i, job, narrow, FN(relu)(y, relu));
                }
            }
        }
    }
}

static void FN(affine_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(affine_blocks)(begin, end, job, job->relu, job->residual != 0, 1);
    else if (job->residual && job->relu) FN(affine_blocks)(begin, end, job, 1, 1, 0);
    else if (job->residual) FN(affine_blocks)(begin, end, job, 0, 1, 0);
    else if (job->relu) FN(affine_blocks)(begin, end, job, 1, 0, 0);
    else FN(affine_blocks)(begin, end, job, 0, 0, 0);
}

INLINE void FN(apply_blocks)(int64_t begin, int64_t end, const cn_job *job, int relu, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(block) at;
        for (int64_t b = 0; at = FN(columns)(job, u, b, narrow), at.count; b++) {
            FN(columns_numbers) of;
            FN(fetch)(&of, job, &at, narrow);
            for (int64_t r = at.lo; r < at.hi; r++) {
                int64_t row = (at.n * job->S + r) * job->C;
                for (int j = 0; j < at.count; j++) {
                    int64_t i = row + at.column[j];
                    V x_c = FN(get)((const T *)job->x + i, job, narrow, job->x) - of.m[j];
                    V g = FN(get)((const T *)job->dy + i, job, narrow, job->dy);
                    if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, of.scale[j], of.shift[j], (V){0}, 0));
                    FN(put)((T *)job->y + i, job, narrow, of.scale[j] * g + (of.slope[j] * x_c + of.offset[j]));
                }
            }
        }
    }
}

static void FN(gradient_apply_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(apply_blocks)(begin, end, job, job->relu, 1);
    else if (job->relu) FN(apply_blocks)(begin, end, job, 1, 0);
    else FN(apply_blocks)(begin, end, job, 0, 0);
}
