/* The four passes over channels_last, (N, S, C), for one dtype; see lanes.inc.h.
 *
 * Lanes are channels. Rows are read from left to right and one after another, which is the order of memory: two at a
 * time halve the loads and stores of what is kept for each column, and yet read memory at half the speed, since no
 * prefetcher follows them. A row longer than STRIP vectors is taken in strips, so that what is kept stays in L1. Where
 * C is no multiple of LANES, the last vector of a row begins LANES channels before its end and repeats some: sums are
 * kept by vector, not by channel, and stores write the same values again. */

/* Rows [lo, hi) of instance n, and of each `count` vectors from column `left` on, the last one at `last`. */
typedef struct {
    int64_t n, lo, hi, left, last, count;
} FN(strip);

/* The first strip of unit u, or the one after `at`; its count is 0 past the end. */
INLINE FN(strip) FN(strip_of)(const cn_job *job, int64_t u)
{
    int64_t lo = u % job->chunks * job->chunk;
    return (FN(strip)){.n = u / job->chunks, .lo = lo, .hi = job->S - lo < job->chunk ? job->S : lo + job->chunk};
}

INLINE int FN(next)(FN(strip) *at, const cn_job *job, int narrow)
{
    at->left += at->count * LANES;
    int64_t rest = job->C - at->left;
    at->count = rest < STRIP * LANES ? (rest + LANES - 1) / LANES : STRIP;
    at->last = rest < STRIP * LANES && !narrow ? rest - LANES : (at->count - 1) * LANES;
    return rest > 0;
}

/* Where vector j of the strip begins. */
INLINE int64_t FN(column)(const FN(strip) *at, int64_t j) { return j * LANES < at->last ? j * LANES : at->last; }

/* Where the strip begins in row r. */
INLINE int64_t FN(row)(const cn_job *job, const FN(strip) *at, int64_t r)
{
    return (at->n * job->S + r) * job->C + at->left;
}

/* LANES channels from `tensor` + i, of which C < LANES count where `narrow`; reads nothing past the tensor's end. */
INLINE V FN(get)(const void *tensor, int64_t i, const cn_job *job, int narrow)
{
    const T *p = (const T *)tensor + i;
    if (__builtin_expect(!narrow || i + LANES <= job->N * job->S * job->C, 1)) return LOAD(p);
    T copy[LANES];
    memset(copy, 0, sizeof copy);
    memcpy(copy, p, (size_t)job->C * sizeof(T));
    return LOAD(copy);
}

INLINE void FN(put)(void *tensor, int64_t i, const cn_job *job, int narrow, V v)
{
    T *p = (T *)tensor + i;
    if (__builtin_expect(!narrow, 1)) {
        FN(put_vector)(p, v, job->past);
        return;
    }
    T copy[LANES];
    STORE(copy, v);
    memcpy(p, copy, (size_t)job->C * sizeof(T));
}

/* The numbers of the strip's columns; see lanes.inc.h. */
typedef struct {
    V m[STRIP], scale[STRIP], shift[STRIP], slope[STRIP], offset[STRIP];
} FN(columns);

/* The numbers of a strip's columns, from arrays that begin with them, of which some may be NULL. */
typedef struct {
    const double *m, *scale, *shift, *slope, *offset;
} FN(sources);

INLINE FN(sources) FN(sources_of)(const cn_job *job, const FN(strip) *at)
{
    const int64_t first = at->n * job->C + at->left;
#define SOURCE(name) .name = job->name ? job->name + first : NULL
    return (FN(sources)){SOURCE(m), SOURCE(scale), SOURCE(shift), SOURCE(slope), SOURCE(offset)};
#undef SOURCE
}

INLINE void FN(fetch)(FN(columns) *into, const cn_job *job, FN(sources) from, const FN(strip) *at, int narrow)
{
    const int valid = narrow ? (int)job->C : LANES;
    for (int64_t j = 0; j < at->count; j++) {
        const int64_t nc = FN(column)(at, j);
        const double *m = from.m + nc;
        A values[LANES] = {0};
        double rest[LANES];
        for (int i = 0; i < valid; i++) values[i] = (A)m[i];
        for (int i = 0; i < valid; i++) rest[i] = m[i] - (double)values[i];
        memcpy(&into->m[j], values, sizeof values);
#define FETCH(NAME, FACTOR)                                                                  \
    if (from.NAME) {                                                                         \
        const double *array = from.NAME + nc, *factor = from.FACTOR + nc;                    \
        if (from.NAME == from.FACTOR)                                                        \
            for (int i = 0; i < valid; i++) values[i] = (A)array[i];                         \
        else                                                                                 \
            for (int i = 0; i < valid; i++) values[i] = (A)(array[i] - factor[i] * rest[i]); \
        memcpy(&into->NAME[j], values, sizeof values);                                       \
    }
        FETCH(scale, scale);
        FETCH(shift, scale);
        FETCH(slope, slope);
        FETCH(offset, slope);
#undef FETCH
    }
}

/* What is kept for each column: sums of x - k and of its square, and the moments of the rows before. */
typedef struct {
    V k[STRIP], s[STRIP], q[STRIP];
    double mean[STRIP * LANES], m2[STRIP * LANES];
} FN(found);

INLINE void FN(add_moments)(FN(found) *f, const cn_job *job, const FN(strip) *at, int squares, int narrow, int64_t r)
{
    int64_t row = FN(row)(job, at, r);
    for (int64_t j = 0; j < at->count; j++) {
        int64_t i = row + FN(column)(at, j);
        V d = FN(get)(job->x, i, job, narrow) - f->k[j];
        f->s[j] += d;
        if (squares) f->q[j] += d * d;
    }
}

/* The moments of `rows` more rows after `seen`, whose sums are taken around k, near their mean; then the next k. */
INLINE void FN(take_up)(FN(found) *f, int64_t lanes, double rows, double seen)
{
    A *k = (A *)f->k, *s = (A *)f->s, *q = (A *)f->q;
    double share = 1 / (seen + rows);
    for (int64_t i = 0; i < lanes; i++) {
        double off = f->mean[i] - (double)k[i], sum = (double)s[i] - rows * off;
        double m2 = (double)q[i] - off * ((double)s[i] + sum) - sum * sum * share;
        f->mean[i] += sum * share;
        f->m2[i] += m2 < 0 ? 0 : m2;
        k[i] = (A)f->mean[i];
        s[i] = q[i] = 0;
    }
}

/* The moments of a strip's columns. */
INLINE void FN(strip_moments)(const cn_job *job, const FN(strip) *at, int narrow, double *means, double *variances)
{
    FN(found) f;
    const int valid = narrow ? (int)job->C : LANES;
    const int64_t lanes = at->count * LANES, few = at->hi - at->lo < FEW ? at->hi - at->lo : FEW;
    double seen = 0, inverse = 1.0 / (double)few;
    for (int64_t j = 0; j < at->count; j++) {
        f.k[j] = FN(get)(job->x, FN(row)(job, at, at->lo) + FN(column)(at, j), job, narrow);
        f.s[j] = f.q[j] = (V){0};
    }
    for (int64_t r = at->lo; r < at->lo + few; r++) FN(add_moments)(&f, job, at, 0, narrow, r);
    for (int64_t i = 0; i < lanes; i++) {
        A *k = (A *)f.k, *s = (A *)f.s;
        f.mean[i] = (double)k[i] + (double)s[i] * inverse;
        k[i] = (A)f.mean[i];
        f.m2[i] = s[i] = 0;
    }
    for (int64_t t = at->lo, stop; t < at->hi; t = stop) {
        stop = t + (seen ? 192 : 64) < at->hi ? t + (seen ? 192 : 64) : at->hi;
        for (int64_t r = t; r < stop; r++) FN(add_moments)(&f, job, at, 1, narrow, r);
        FN(take_up)(&f, lanes, (double)(stop - t), seen);
        seen += (double)(stop - t);
    }
    inverse = 1.0 / seen;
    for (int64_t j = 0; j < at->count; j++) {
        double *mean = means + FN(column)(at, j), *var = variances + FN(column)(at, j);
        for (int i = 0; i < valid; i++) mean[i] = f.mean[j * LANES + i];
        for (int i = 0; i < valid; i++) var[i] = f.m2[j * LANES + i] * inverse;
    }
}

INLINE void FN(moments_strips)(int64_t begin, int64_t end, const cn_job *job, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow))
            FN(strip_moments)(job, &at, narrow, first_of(job, u) + at.left, second_of(job, u) + at.left);
    }
}

static void FN(moments_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(moments_strips)(begin, end, job, 1);
    else FN(moments_strips)(begin, end, job, 0);
}

typedef struct {
    FN(columns) of;
    V s[2][STRIP];
    double sums[2][STRIP * LANES];
} FN(gradients);

INLINE void FN(add_gradients)(FN(gradients) *f, const cn_job *job, const FN(strip) *at, int relu, int residual,
                              int narrow, int64_t r)
{
    int64_t row = FN(row)(job, at, r);
    for (int64_t j = 0; j < at->count; j++) {
        int64_t i = row + FN(column)(at, j);
        V x_c = FN(get)(job->x, i, job, narrow) - f->of.m[j], g = FN(get)(job->dy, i, job, narrow), extra = {0};
        if (residual) extra = FN(get)(job->residual, i, job, narrow);
        if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, f->of.scale[j], f->of.shift[j], extra, residual));
        if (residual) FN(put)(job->y, i, job, narrow, g);
        f->s[0][j] += g;
        f->s[1][j] += g * x_c;
    }
}

INLINE void FN(sums_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    const int valid = narrow ? (int)job->C : LANES;
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(gradients) f;
            const int64_t lanes = at.count * LANES;
            FN(fetch)(&f.of, job, FN(sources_of)(job, &at), &at, narrow);
            for (int k = 0; k < 2; k++) {
                memset(f.s[k], 0, sizeof(A) * lanes);
                memset(f.sums[k], 0, sizeof(double) * lanes);
            }
            for (int64_t t = at.lo, stop; t < at.hi; t = stop) {
                stop = at.hi - t < 256 ? at.hi : t + 256;
                for (int64_t r = t; r < stop; r++) FN(add_gradients)(&f, job, &at, relu, residual, narrow, r);
                for (int k = 0; k < 2; k++) {
                    for (int64_t i = 0; i < lanes; i++) f.sums[k][i] += ((const A *)f.s[k])[i];
                    memset(f.s[k], 0, sizeof(A) * lanes);
                }
            }
            for (int64_t j = 0; j < at.count; j++) {
                const int64_t c = at.left + FN(column)(&at, j);
                const double *m = job->m + at.n * job->C + c;
                const double *sum = f.sums[0] + j * LANES, *centred = f.sums[1] + j * LANES;
                double *first = first_of(job, u) + c, *second = second_of(job, u) + c;
                for (int i = 0; i < valid; i++) first[i] = sum[i];
                for (int i = 0; i < valid; i++) second[i] = centred[i] - (m[i] - (double)(A)m[i]) * sum[i];
            }
        }
    }
}

static void FN(gradient_sums_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES)
        FN(sums_strips)(begin, end, job, job->relu, job->relu && job->residual, 1); /* rare: flags at run time */
    else if (!job->relu) FN(sums_strips)(begin, end, job, 0, 0, 0);
    else if (!job->residual) FN(sums_strips)(begin, end, job, 1, 0, 0);
    else FN(sums_strips)(begin, end, job, 1, 1, 0);
}

INLINE void FN(affine_step)(const FN(columns) *of, const cn_job *job, const FN(strip) *at, int relu, int residual,
                            int narrow, int64_t r)
{
    int64_t row = FN(row)(job, at, r);
    for (int64_t j = 0; j < at->count; j++) {
        int64_t i = row + FN(column)(at, j);
        V x_c = FN(get)(job->x, i, job, narrow) - of->m[j], extra = {0};
        if (residual) extra = FN(get)(job->residual, i, job, narrow);
        FN(put)(job->y, i, job, narrow, FN(relu)(FN(linear)(x_c, of->scale[j], of->shift[j], extra, residual), relu));
    }
}

INLINE void FN(affine_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(columns) of;
            FN(fetch)(&of, job, FN(sources_of)(job, &at), &at, narrow);
            for (int64_t r = at.lo; r < at.hi; r++) FN(affine_step)(&of, job, &at, relu, residual, narrow, r);
        }
    }
}

static void FN(affine_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(affine_strips)(begin, end, job, job->relu, job->residual != 0, 1);
    else if (job->residual && job->relu) FN(affine_strips)(begin, end, job, 1, 1, 0);
    else if (job->residual) FN(affine_strips)(begin, end, job, 0, 1, 0);
    else if (job->relu) FN(affine_strips)(begin, end, job, 1, 0, 0);
    else FN(affine_strips)(begin, end, job, 0, 0, 0);
    if (job->past) streamed();
}

/* Moments, coefficients and affine of an instance, strip by strip. */
INLINE void FN(through_strips)(int64_t begin, int64_t end, const cn_through_job *job, int relu, int residual,
                               int narrow)
{
    const cn_job *pixels = &job->pixels;
    for (int64_t n = begin; n < end; n++) {
        FN(strip) at = FN(strip_of)(pixels, n);
        while (FN(next)(&at, pixels, narrow)) {
            double m[STRIP * LANES] = {0}, v[STRIP * LANES] = {0}, scale[STRIP * LANES], shift[STRIP * LANES];
            const int64_t left = pixels->C - at.left, width = left < STRIP * LANES ? left : STRIP * LANES;
            FN(strip_moments)(pixels, &at, narrow, m, v);
            if (pixels->first) {
                memcpy(pixels->first + n * pixels->C + at.left, m, sizeof(double) * (size_t)width);
                memcpy(pixels->second + n * pixels->C + at.left, v, sizeof(double) * (size_t)width);
            }
            coefficients_here[job->center][job->gate]((const coefficient_channels *)job->channels
                                                          + at.left / CN_DOUBLES,
                                                      (width + CN_DOUBLES - 1) / CN_DOUBLES, m, v, scale, shift);
            FN(columns) of;
            FN(fetch)(&of, pixels, (FN(sources)){.m = m, .scale = scale, .shift = shift}, &at, narrow);
            for (int64_t r = at.lo; r < at.hi; r++) FN(affine_step)(&of, pixels, &at, relu, residual, narrow, r);
        }
    }
}

static void FN(through_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_through_job *job = p;
    const int relu = job->pixels.relu, residual = job->pixels.residual != 0;
    if (job->pixels.C < LANES) FN(through_strips)(begin, end, job, relu, residual, 1);
    else if (residual && relu) FN(through_strips)(begin, end, job, 1, 1, 0);
    else if (residual) FN(through_strips)(begin, end, job, 0, 1, 0);
    else if (relu) FN(through_strips)(begin, end, job, 1, 0, 0);
    else FN(through_strips)(begin, end, job, 0, 0, 0);
    if (job->pixels.past) streamed();
}

INLINE void FN(apply_step)(const FN(columns) *of, const cn_job *job, const FN(strip) *at, int relu, int narrow,
                           int64_t r)
{
    int64_t row = FN(row)(job, at, r);
    for (int64_t j = 0; j < at->count; j++) {
        int64_t i = row + FN(column)(at, j);
        V x_c = FN(get)(job->x, i, job, narrow) - of->m[j], g = FN(get)(job->dy, i, job, narrow);
        if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, of->scale[j], of->shift[j], (V){0}, 0));
        FN(put)(job->y, i, job, narrow, of->scale[j] * g + (of->slope[j] * x_c + of->offset[j]));
    }
}

INLINE void FN(apply_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(columns) of;
            FN(fetch)(&of, job, FN(sources_of)(job, &at), &at, narrow);
            for (int64_t r = at.lo; r < at.hi; r++) FN(apply_step)(&of, job, &at, relu, narrow, r);
        }
    }
}

static void FN(gradient_apply_rows)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->C < LANES) FN(apply_strips)(begin, end, job, job->relu, 1);
    else if (job->relu) FN(apply_strips)(begin, end, job, 1, 0);
    else FN(apply_strips)(begin, end, job, 0, 0);
    if (job->past) streamed();
}
