/* The four passes over channels_last, (N, S, C), for one dtype; see lanes.inc.h.
 *
 * Lanes are channels. The numbers of a block of columns, and its sums, stay in registers while a pass walks down the
 * rows of a tile; then the next block does. Row by row, with all that in memory, loads waited for stores to the same
 * place of another page: a 32x512x7x7 affine took six times as long. Tiles that are written are low: the stores to many
 * rows, a few KiB apart, drive one another out of the first cache. A row longer than STRIP vectors is taken in strips.
 * Where C is no multiple of LANES, the last vector of a row begins LANES channels before its end and repeats some: sums
 * are kept by vector, not by channel, and stores write the same values again. */

/* Rows [lo, hi) of instance n, and of each `count` vectors from column `left` on, the last one at `last`; the first
 * `paired` of them are loaded and stored two and two, their channels in the order that this gives (see simd.h). */
typedef struct {
    int64_t n, lo, hi, left, last, count, paired;
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
    at->paired = (narrow ? 0 : at->count - (at->last % LANES != 0)) / 2 * 2;
    return rest > 0;
}

/* Where vector j of the strip begins. */
INLINE int64_t FN(column)(const FN(strip) *at, int64_t j) { return j * LANES < at->last ? j * LANES : at->last; }

/* The channel in lane i of vector j. */
INLINE int64_t FN(channel)(const FN(strip) *at, int64_t j, int i)
{
    if (SPREAD > 1 && j < at->paired) return j / 2 * 2 * LANES + j % 2 + SPREAD * i;
    return FN(column)(at, j) + i;
}

/* Where the strip begins in row r. */
INLINE int64_t FN(row)(const cn_job *job, const FN(strip) *at, int64_t r)
{
    return (at->n * job->S + r) * job->C + at->left;
}

/* One vector of pixels from p, of which C < LANES count where `narrow`, or as many pairs as `width` has; reads nothing
 * past the tensor, of which `rest` pixels are left. */
INLINE void FN(get)(V *v, const T *p, int64_t rest, int64_t C, int narrow, int width)
{
    for (int w = 0; w < width / 2 * 2; w += 2) LOADS(p + w * LANES, v + w, v + w + 1);
    if (width > 1) return;
    if (__builtin_expect(!narrow || rest >= LANES, 1)) {
        *v = LOAD(p);
        return;
    }
    T copy[LANES];
    memset(copy, 0, sizeof copy);
    memcpy(copy, p, (size_t)C * sizeof(T));
    *v = LOAD(copy);
}

INLINE void FN(put)(T *p, const V *v, int64_t C, int past, int narrow, int width)
{
    for (int w = 0; w < width / 2 * 2; w += 2) FN(put_vectors)(p + w * LANES, v[w], v[w + 1], past);
    if (width > 1) return;
    if (!narrow) {
        FN(put_vector)(p, *v, past);
        return;
    }
    T copy[LANES];
    STORE(copy, *v);
    memcpy(p, copy, (size_t)C * sizeof(T));
}

/* Blocks of a strip's vectors, STEP(j, width) for each: the first one and how many, a constant. */
#define BLOCKS(at, STEP)                                                          \
    do {                                                                          \
        int64_t j = 0;                                                            \
        for (; j + BLOCK <= (at)->paired; j += BLOCK) STEP(j, BLOCK);             \
        for (; j + BLOCK / 2 <= (at)->paired; j += BLOCK / 2) STEP(j, BLOCK / 2); \
        for (; j < (at)->count; j++) STEP(j, 1);                                  \
    } while (0)

/* The same for every low tile, of rows [low, high), of [lo, hi). */
#define LOW_TILES(at, lo, hi, STEP)                        \
    for (int64_t low = lo, high; low < (hi); low = high) { \
        high = (hi) - low < LOW ? (hi) : low + LOW;        \
        BLOCKS(at, STEP);                                  \
    }

/* Walk down the rows [lo, hi) of a block: i is where it begins in a row. */
#define DOWN(lo, hi)                                                                                          \
    for (int64_t r = lo, i = FN(row)(job, at, lo) + FN(column)(at, j), C = job->C, all = job->N * job->S * C; \
         r < (hi); r++, i += C)
#define GET(v, tensor) FN(get)(v, (tensor) + i, all - i, C, narrow, width)

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
        A values[LANES] = {0};
        double rest[LANES];
        for (int i = 0; i < valid; i++) values[i] = (A)from.m[FN(channel)(at, j, i)];
        for (int i = 0; i < valid; i++) rest[i] = from.m[FN(channel)(at, j, i)] - (double)values[i];
        memcpy(&into->m[j], values, sizeof values);
#define FETCH(NAME, FACTOR)                                                              \
    if (from.NAME) {                                                                     \
        for (int i = 0; i < valid; i++) {                                                \
            const int64_t c = FN(channel)(at, j, i);                                     \
            const double less = from.NAME == from.FACTOR ? 0 : from.FACTOR[c] * rest[i]; \
            values[i] = (A)(from.NAME[c] - less);                                        \
        }                                                                                \
        memcpy(&into->NAME[j], values, sizeof values);                                   \
    }
        FETCH(scale, scale);
        FETCH(shift, scale);
        FETCH(slope, slope);
        FETCH(offset, slope);
#undef FETCH
    }
}

/* What is kept for each column: what its pixels' differences are taken from, and the moments of the rows before. */
typedef struct {
    A k[STRIP * LANES];
    double mean[STRIP * LANES], m2[STRIP * LANES];
} FN(found);

/* The moments of `rows` more rows of `lanes` columns after `seen`: s and q are the sums of x - k and of its square, k
 * near their mean; then the next k. Without q, the means alone. */
INLINE void FN(take_up)(FN(found) *f, int64_t left, int lanes, const A *k, const A *s, const A *q, double rows,
                        double seen, int first)
{
    const double share = 1 / (seen + rows);
    double *mean = f->mean + left, *m2 = f->m2 + left;
    for (int i = 0; i < lanes; i++) {
        double before = first ? (double)k[i] : mean[i], off = before - (double)k[i], sum = (double)s[i] - rows * off;
        mean[i] = before + sum * share;
        f->k[left + i] = (A)mean[i];
        if (!q) continue;
        double more = (double)q[i] - off * ((double)s[i] + sum) - sum * sum * share;
        m2[i] = (first ? 0 : m2[i]) + (more < 0 ? 0 : more);
    }
}

INLINE void FN(moments_block)(FN(found) *f, const cn_job *job, const FN(strip) *at, int64_t lo, int64_t hi, double seen,
                              int first, int squared, int narrow, int64_t j, int width)
{
    const T *x = job->x;
    V k[BLOCK], s[BLOCK], q[BLOCK], other[BLOCK];
    A near[BLOCK * LANES], sums[BLOCK * LANES], squares[BLOCK * LANES];
    if (first) {
        DOWN(lo, lo + 1) GET(k, x);
        DOWN((lo + hi) / 2, (lo + hi) / 2 + 1) GET(other, x);
    }
    for (int w = 0; w < width; w++) {
        if (first) k[w] = k[w] * (A)0.5 + other[w] * (A)0.5;
        else memcpy(k + w, f->k + (j + w) * LANES, sizeof(V));
        s[w] = q[w] = (V){0};
    }
    DOWN(lo, hi)
    {
        V d[BLOCK];
        GET(d, x);
        for (int w = 0; w < width; w++) {
            d[w] -= k[w];
            s[w] += d[w];
            if (squared) q[w] += d[w] * d[w];
        }
    }
    for (int w = 0; w < width; w++) {
        memcpy(near + w * LANES, k + w, sizeof(V));
        memcpy(sums + w * LANES, s + w, sizeof(V));
        if (squared) memcpy(squares + w * LANES, q + w, sizeof(V));
    }
    FN(take_up)(f, j * LANES, width * (int)LANES, near, sums, squared ? squares : NULL, (double)(hi - lo), seen, first);
}

/* The moments of a strip's columns, or, without `variances`, their means, to the bit the same. The first tile takes
 * differences from the mean of two of its pixels, which loses a factor of its rows at most, and hardly any of it but
 * for rare columns; the later ones from the mean so far. */
INLINE void FN(moments_of_strip)(const cn_job *job, const FN(strip) *at, int narrow, double *means, double *variances)
{
    FN(found) f;
    const int valid = narrow ? (int)job->C : LANES;
    const int64_t lo = at->lo, hi = at->hi;
    for (int64_t t = lo, stop; t < hi; t = stop) {
        stop = hi - t < ROWS ? hi : t + ROWS;
#define STEP_FIRST(j, width) FN(moments_block)(&f, job, at, t, stop, 0, 1, variances != NULL, narrow, j, width)
#define STEP(j, width) FN(moments_block)(&f, job, at, t, stop, (double)(t - lo), 0, variances != NULL, narrow, j, width)
        if (t == lo) BLOCKS(at, STEP_FIRST);
        else BLOCKS(at, STEP);
#undef STEP_FIRST
#undef STEP
    }
    const double inverse = 1.0 / (double)(hi - lo);
    for (int64_t j = 0; j < at->count; j++) {
        for (int i = 0; i < valid; i++) means[FN(channel)(at, j, i)] = f.mean[j * LANES + i];
        for (int i = 0; variances && i < valid; i++) variances[FN(channel)(at, j, i)] = f.m2[j * LANES + i] * inverse;
    }
}

APART void FN(moments_of_narrow_strip)(const cn_job *job, const FN(strip) *at, double *means, double *variances)
{
    FN(moments_of_strip)(job, at, 1, means, variances);
}

APART void FN(both_moments_of_strip)(const cn_job *job, const FN(strip) *at, double *means, double *variances)
{
    FN(moments_of_strip)(job, at, 0, means, variances);
}

APART void FN(means_of_strip)(const cn_job *job, const FN(strip) *at, double *means)
{
    FN(moments_of_strip)(job, at, 0, means, NULL);
}

INLINE void FN(strip_moments)(const cn_job *job, const FN(strip) *at, int narrow, double *means, double *variances)
{
    if (narrow) FN(moments_of_narrow_strip)(job, at, means, variances);
    else if (variances) FN(both_moments_of_strip)(job, at, means, variances);
    else FN(means_of_strip)(job, at, means);
}

INLINE void FN(moments_strips)(int64_t begin, int64_t end, const cn_job *job, int narrow)
{
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow))
            FN(strip_moments)(job, &at, narrow, first_of(job, u) + at.left,
                              job->second ? second_of(job, u) + at.left : NULL);
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
    A s[2][STRIP * LANES];
    double sums[2][STRIP * LANES];
} FN(gradients);

INLINE void FN(sums_block)(FN(gradients) *f, const cn_job *job, const FN(strip) *at, int64_t lo, int64_t hi, int relu,
                           int residual, int narrow, int64_t j, int width)
{
    const T *x = job->x, *dy = job->dy, *added = job->residual;
    T *masked = job->y;
    V m[BLOCK], scale[BLOCK], shift[BLOCK], s[2][BLOCK];
    for (int w = 0; w < width; w++) {
        m[w] = f->of.m[j + w];
        scale[w] = relu ? f->of.scale[j + w] : (V){0};
        shift[w] = relu ? f->of.shift[j + w] : (V){0};
        for (int k = 0; k < 2; k++) memcpy(&s[k][w], f->s[k] + (j + w) * LANES, sizeof(V));
    }
    DOWN(lo, hi)
    {
        V x_c[BLOCK], g[BLOCK], extra[BLOCK];
        GET(x_c, x);
        GET(g, dy);
        if (residual) GET(extra, added);
        for (int w = 0; w < width; w++) {
            x_c[w] -= m[w];
            if (relu)
                g[w] =
                    FN(relu_mask)(g[w], FN(linear)(x_c[w], scale[w], shift[w], residual ? extra[w] : m[w], residual));
            s[0][w] += g[w];
            s[1][w] += g[w] * x_c[w];
        }
        if (residual) FN(put)(masked + i, g, C, 0, narrow, width);
    }
    for (int w = 0; w < width; w++)
        for (int k = 0; k < 2; k++) memcpy(f->s[k] + (j + w) * LANES, &s[k][w], sizeof(V));
}

INLINE void FN(sums_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    const int valid = narrow ? (int)job->C : LANES;
    for (int64_t u = begin; u < end; u++) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(gradients) f;
            FN(fetch)(&f.of, job, FN(sources_of)(job, &at), &at, narrow);
            memset(f.s, 0, sizeof f.s);
            memset(f.sums, 0, sizeof f.sums);
            for (int64_t t = at.lo, stop; t < at.hi; t = stop) {
                stop = at.hi - t < ROWS ? at.hi : t + ROWS;
#define STEP(j, width) FN(sums_block)(&f, job, &at, low, high, relu, residual, narrow, j, width)
                LOW_TILES(&at, t, stop, STEP);
#undef STEP
                for (int k = 0; k < 2; k++)
                    for (int64_t i = 0; i < at.count * LANES; i++) {
                        f.sums[k][i] += (double)f.s[k][i];
                        f.s[k][i] = 0;
                    }
            }
            for (int64_t j = 0; j < at.count; j++) {
                const double *m = job->m + at.n * job->C + at.left;
                const double *sum = f.sums[0] + j * LANES, *centred = f.sums[1] + j * LANES;
                double *first = first_of(job, u) + at.left, *second = second_of(job, u) + at.left;
                for (int i = 0; i < valid; i++) {
                    const int64_t c = FN(channel)(&at, j, i);
                    first[c] = sum[i];
                    second[c] = centred[i] - (m[c] - (double)(A)m[c]) * sum[i];
                }
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

INLINE void FN(affine_block)(const FN(columns) *of, const cn_job *job, const FN(strip) *at, int64_t lo, int64_t hi,
                             int relu, int residual, int narrow, int64_t ahead, int64_t j, int width)
{
    const T *x = job->x, *added = job->residual;
    T *y = job->y;
    const int past = job->past;
    V m[BLOCK], scale[BLOCK], shift[BLOCK];
    for (int w = 0; w < width; w++) {
        m[w] = of->m[j + w];
        scale[w] = of->scale[j + w];
        shift[w] = of->shift[j + w];
    }
    DOWN(lo, hi)
    {
        V out[BLOCK], extra[BLOCK];
        if (ahead) FN(fetch_ahead)(x + i + ahead, width * LANES);
        GET(out, x);
        if (residual) GET(extra, added);
        for (int w = 0; w < width; w++)
            out[w] =
                FN(relu)(FN(linear)(out[w] - m[w], scale[w], shift[w], residual ? extra[w] : m[w], residual), relu);
        FN(put)(y + i, out, C, past, narrow, width);
    }
}

/* `ahead`, if any, pixels further on are fetched meanwhile: what is read next where nothing else reads. */
INLINE void FN(affine_strip)(const FN(columns) *of, const cn_job *job, const FN(strip) *at, int relu, int residual,
                             int narrow, int64_t ahead)
{
#define STEP(j, width) FN(affine_block)(of, job, at, low, high, relu, residual, narrow, ahead, j, width)
    LOW_TILES(at, at->lo, at->hi, STEP);
#undef STEP
}

/* From the last unit to the first one: what the first pass has read last is still in the caches. Groups of planes are
 * too small for that: going backwards took planes of 7x7 a third longer. */
INLINE void FN(affine_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual, int narrow)
{
    for (int64_t u = end; u-- > begin;) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(columns) of;
            FN(fetch)(&of, job, FN(sources_of)(job, &at), &at, narrow);
            FN(affine_strip)(&of, job, &at, relu, residual, narrow, 0);
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
            if (pixels->m) memcpy(m, pixels->m + at.left, sizeof(double) * (size_t)width);
            else FN(strip_moments)(pixels, &at, narrow, m, job->variances ? v : NULL);
            if (pixels->first) {
                memcpy(pixels->first + n * pixels->C + at.left, m, sizeof(double) * (size_t)width);
                memcpy(pixels->second + n * pixels->C + at.left, v, sizeof(double) * (size_t)width);
            }
            coefficients_here[job->center][job->gate]((const coefficient_channels *)job->channels
                                                          + at.left / CN_DOUBLES,
                                                      (width + CN_DOUBLES - 1) / CN_DOUBLES, m, v, scale, shift);
            FN(columns) of;
            FN(fetch)(&of, pixels, (FN(sources)){.m = m, .scale = scale, .shift = shift}, &at, narrow);
            const int64_t more = at.left + STRIP * LANES < pixels->C ? STRIP * LANES : pixels->S * pixels->C - at.left;
            FN(affine_strip)(&of, pixels, &at, relu, residual, narrow, job->ahead ? more : 0);
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

INLINE void FN(apply_block)(const FN(columns) *of, const cn_job *job, const FN(strip) *at, int64_t lo, int64_t hi,
                            int relu, int narrow, int64_t j, int width)
{
    const T *x = job->x, *dy = job->dy;
    T *dx = job->y;
    const int past = job->past;
    V m[BLOCK], scale[BLOCK], shift[BLOCK], slope[BLOCK], offset[BLOCK];
    for (int w = 0; w < width; w++) {
        m[w] = of->m[j + w];
        scale[w] = of->scale[j + w];
        shift[w] = relu ? of->shift[j + w] : (V){0};
        slope[w] = of->slope[j + w];
        offset[w] = of->offset[j + w];
    }
    DOWN(lo, hi)
    {
        V x_c[BLOCK], g[BLOCK];
        GET(x_c, x);
        GET(g, dy);
        for (int w = 0; w < width; w++) {
            x_c[w] -= m[w];
            if (relu) g[w] = FN(relu_mask)(g[w], FN(linear)(x_c[w], scale[w], shift[w], m[w], 0));
            g[w] = scale[w] * g[w] + (slope[w] * x_c[w] + offset[w]);
        }
        FN(put)(dx + i, g, C, past, narrow, width);
    }
}

INLINE void FN(apply_strips)(int64_t begin, int64_t end, const cn_job *job, int relu, int narrow)
{
    for (int64_t u = end; u-- > begin;) {
        FN(strip) at = FN(strip_of)(job, u);
        while (FN(next)(&at, job, narrow)) {
            FN(columns) of;
            FN(fetch)(&of, job, FN(sources_of)(job, &at), &at, narrow);
#define STEP(j, width) FN(apply_block)(&of, job, &at, low, high, relu, narrow, j, width)
            LOW_TILES(&at, at.lo, at.hi, STEP);
#undef STEP
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

#undef BLOCKS
#undef LOW_TILES
#undef DOWN
#undef GET
