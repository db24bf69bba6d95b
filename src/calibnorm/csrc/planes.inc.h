/* The four passes over contiguous planes, for one dtype; see lanes.inc.h.
 *
 * Planes are taken LANES at a time: what is found for each, or is the same for all pixels of each, is computed for all
 * of them at once, which for a 7x7 plane is most of the work. */

#define TINY_PLANE 64 /* pixels of a plane that is read once */
#define SMALL 256     /* pixels of a plane: LANES of such stay in L1 between the two readings of the moments */

/* Some consecutive units: their planes, and pixels [at, at + n) of the tensor for the first, n more for each next. */
typedef struct {
    int64_t at, n, plane;
    int count;
} FN(group);

INLINE FN(group) FN(units)(const cn_job *job, int64_t u, int64_t end)
{
    if (job->S > TILE) { /* one plane, or a part of it */
        int64_t plane = u / job->chunks, lo = u % job->chunks * job->chunk;
        int64_t n = job->S - lo < job->chunk ? job->S - lo : job->chunk;
        return (FN(group)){plane * job->S + lo, n, plane, 1};
    }
    return (FN(group)){u * job->S, job->S, u, (int)(end - u < LANES ? end - u : LANES)};
}

/* The numbers of a group's planes as pixels use them: m is rounded, what that leaves is in `rest`, and shift and offset
 * take it up. */
typedef struct {
    A m[LANES], scale[LANES], shift[LANES], slope[LANES], offset[LANES];
    double rest[LANES];
} FN(numbers);

INLINE void FN(fetch_some)(FN(numbers) *into, const double *m, const double *scale, const double *shift,
                           const double *slope, const double *offset, int count)
{
    for (int j = 0; j < count; j++) into->m[j] = (A)m[j];
    for (int j = 0; j < count; j++) into->rest[j] = m[j] - (double)into->m[j];
    for (int j = 0; scale && j < count; j++) into->scale[j] = (A)scale[j];
    for (int j = 0; shift && j < count; j++) into->shift[j] = (A)(shift[j] - scale[j] * into->rest[j]);
    for (int j = 0; slope && j < count; j++) into->slope[j] = (A)slope[j];
    for (int j = 0; slope && j < count; j++) into->offset[j] = (A)(offset[j] - slope[j] * into->rest[j]);
}

/* Nearly always of LANES planes: a number of turns that is known took half the time. */
INLINE void FN(fetch_planes)(FN(numbers) *into, const cn_job *job, int64_t plane, int count)
{
#define OF(name) job->name ? job->name + plane : NULL
    if (count == LANES) FN(fetch_some)(into, job->m + plane, OF(scale), OF(shift), OF(slope), OF(offset), LANES);
    else FN(fetch_some)(into, job->m + plane, OF(scale), OF(shift), OF(slope), OF(offset), count);
#undef OF
}

/* The sum of x - k, or of its square, over n pixels, lane by lane. */
INLINE V FN(deviations)(const T *x, int64_t n, V k, int squared, const T *base)
{
#define ADD(to, d) to += squared ? (d) * (d) : (d)
    V s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, a, b, c, d;
    int64_t i = 0;
    if (n == LANES) { /* a 4x4 plane spent its time on the questions below */
        a = LOAD(x) - k;
        return squared ? a * a : a;
    }
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        LOADS(x + i, &a, &b);
        LOADS(x + i + 2 * LANES, &c, &d);
        ADD(s0, a - k);
        ADD(s1, b - k);
        ADD(s2, c - k);
        ADD(s3, d - k);
    }
    if (i + 2 * LANES <= n) {
        LOADS(x + i, &a, &b);
        ADD(s0, a - k);
        ADD(s1, b - k);
        i += 2 * LANES;
    }
    if (i + LANES <= n) {
        ADD(s2, LOAD(x + i) - k);
        i += LANES;
    }
    if (i < n) {
        a = FN(masked)(FN(tail)(x + n, n - i, base) - k, FN(tail_mask)(n - i));
        ADD(s3, a);
    }
    return (s0 + s1) + (s2 + s3);
#undef ADD
}

/* The sum of x - k over n pixels and, where wanted, that of its square, lane by lane. */
INLINE void FN(both_deviations)(const T *x, int64_t n, V k, const T *base, V *sum, V *squares, int squared)
{
    V s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0}, a, b;
    int64_t i = 0;
    if (n == LANES) { /* a 4x4 plane spent its time on the questions below */
        *sum = LOAD(x) - k;
        if (squared) *squares = *sum * *sum;
        return;
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        LOADS(x + i, &a, &b);
        a -= k;
        b -= k;
        s0 += a;
        s1 += b;
        if (squared) q0 += a * a;
        if (squared) q1 += b * b;
    }
    if (i + LANES <= n) {
        a = LOAD(x + i) - k;
        s0 += a;
        if (squared) q0 += a * a;
        i += LANES;
    }
    if (i < n) {
        b = FN(masked)(FN(tail)(x + n, n - i, base) - k, FN(tail_mask)(n - i));
        s1 += b;
        if (squared) q1 += b * b;
    }
    *sum = s0 + s1;
    if (squared) *squares = q0 + q1;
}

/* Of planes that are read once: both sums of differences from a value near the mean, whose own difference is then taken
 * out of the squares. It is the mean of two pixels, so that the square of what it is off is at most n times the
 * variance, and about as large as that but for rare planes: few bits are lost, and where a plane is constant none. */
INLINE void FN(tiny_moments)(const cn_job *job, FN(group) at, double *means, double *variances)
{
    const T *x = (const T *)job->x + at.at;
    const double inverse = 1.0 / (double)at.n;
    V sums[LANES], squares[LANES];
    A near[LANES] = {0}, sum[LANES], square[LANES];
    for (int j = 0; j < at.count; j++) {
        V k = FIRST(x + j * at.n) * (A)0.5 + FIRST(x + j * at.n + at.n / 2) * (A)0.5;
        near[j] = k[0];
        FN(both_deviations)(x + j * at.n, at.n, k, job->x, sums + j, squares + j, variances != NULL);
    }
    for (int j = at.count; j < LANES; j++) sums[j] = squares[j] = (V){0};
    TOTALS(sums, sum);
    for (int j = 0; j < at.count; j++) means[j] = (double)near[j] + (double)sum[j] * inverse;
    if (!variances) return;
    TOTALS(squares, square);
    for (int j = 0; j < at.count; j++) {
        double off = (double)sum[j] * inverse, v = (double)square[j] * inverse - off * off;
        variances[j] = v < 0 ? 0 : v;
    }
}

/* Of planes that are read twice while they are in L1. The first reading sums differences from the first pixel: a
 * constant plane has exactly that mean and variance 0. The second takes deviations from the rounded mean, whose error
 * is then taken out of their squares. */
INLINE void FN(small_moments)(const cn_job *job, FN(group) at, double *means, double *variances)
{
    const T *x = (const T *)job->x + at.at;
    const double n = (double)at.n, inverse = 1.0 / n;
    V sums[LANES];
    A first[LANES] = {0}, center[LANES], found[LANES];
    double mean[LANES];
    memset(sums, 0, sizeof sums);
    for (int j = 0; j < at.count; j++) {
        V k = FIRST(x + j * at.n);
        first[j] = k[0];
        sums[j] = FN(deviations)(x + j * at.n, at.n, k, 0, job->x);
    }
    TOTALS(sums, found);
    for (int j = 0; j < LANES; j++) mean[j] = (double)first[j] + (double)found[j] * inverse;
    memcpy(means, mean, sizeof(double) * (size_t)at.count);
    if (!variances) return;
    for (int j = 0; j < LANES; j++) center[j] = (A)mean[j];
    memset(sums, 0, sizeof sums);
    for (int j = 0; j < at.count; j++) sums[j] = FN(deviations)(x + j * at.n, at.n, center[j] - (V){0}, 1, job->x);
    TOTALS(sums, found);
    for (int j = 0; j < at.count; j++) {
        double off = mean[j] - (double)center[j], v = (double)found[j] * inverse - off * off;
        variances[j] = v < 0 ? 0 : v;
    }
}

/* Of one plane, or of a part of it, tile by tile; the tiles are merged. */
INLINE void FN(large_moments)(const cn_job *job, int64_t at, int64_t n, double *mean, double *variance)
{
    FN(moments) found = {0, 0, 0};
    for (int64_t t = 0; t < n; t += TILE) {
        const T *x = (const T *)job->x + at + t;
        const int64_t size = n - t < TILE ? n - t : TILE;
        V k = FIRST(x);
        double of_tile = (double)k[0] + (double)TOTAL(FN(deviations)(x, size, k, 0, job->x)) / (double)size, m2 = 0;
        if (variance) {
            A center = (A)of_tile;
            double off = of_tile - (double)center;
            m2 = (double)TOTAL(FN(deviations)(x, size, center - (V){0}, 1, job->x)) - (double)size * off * off;
        }
        FN(merge)(&found, (double)size, of_tile, m2 < 0 ? 0 : m2);
    }
    *mean = found.mean;
    if (variance) *variance = found.m2 / found.n;
}

/* The moments of a group of planes, or, without `variances`, their means, to the bit the same. */
INLINE void FN(moments_of)(const cn_job *job, FN(group) at, double *means, double *variances)
{
    if (job->S <= TINY_PLANE) FN(tiny_moments)(job, at, means, variances);
    else if (job->S <= SMALL) FN(small_moments)(job, at, means, variances);
    else
        for (int j = 0; j < at.count; j++)
            FN(large_moments)(job, at.at + j * at.n, at.n, means + j, variances ? variances + j : NULL);
}

APART void FN(both_moments)(const cn_job *job, FN(group) at, double *means, double *variances)
{
    FN(moments_of)(job, at, means, variances);
}

APART void FN(means)(const cn_job *job, FN(group) at, double *means) { FN(moments_of)(job, at, means, NULL); }

static void FN(moments_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t u = begin; u < end;) {
        const FN(group) at = FN(units)(job, u, end);
        if (job->second) FN(both_moments)(job, at, first_of(job, u), second_of(job, u));
        else FN(means)(job, at, first_of(job, u));
        u += at.count;
    }
}

/* Both sums over n pixels from `at`, lane by lane; with `relu` dy is masked by the sign of the output, which is
 * computed anew, and with a residual the masked dy, its gradient, is written. */
INLINE void FN(sums)(const cn_job *job, int64_t at, int64_t n, const FN(numbers) *of, int j, V *sum, V *centred,
                     int relu, int residual)
{
    const T *x = (const T *)job->x + at, *dy = (const T *)job->dy + at;
    const T *r = residual ? (const T *)job->residual + at : x;
    T *out = residual ? (T *)job->y + at : 0;
    const V zero = {0}, m = of->m[j] - zero;
    const V scale = relu ? of->scale[j] - zero : zero, shift = relu ? of->shift[j] - zero : zero;
    V a0 = zero, a1 = zero, b0 = zero, b1 = zero, x0, x1, g0, g1, r0 = zero, r1 = zero;
    int64_t i = 0;
#define MASKED(g, x, r) (relu ? FN(relu_mask)(g, FN(linear)(x, scale, shift, r, residual)) : (g))
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        LOADS(x + i, &x0, &x1);
        LOADS(dy + i, &g0, &g1);
        if (residual) LOADS(r + i, &r0, &r1);
        x0 -= m;
        x1 -= m;
        g0 = MASKED(g0, x0, r0);
        g1 = MASKED(g1, x1, r1);
        if (residual) STORES(out + i, g0, g1);
        a0 += g0;
        a1 += g1;
        b0 += g0 * x0;
        b1 += g1 * x1;
    }
    if (i + LANES <= n) {
        x0 = LOAD(x + i) - m;
        if (residual) r0 = LOAD(r + i);
        g0 = LOAD(dy + i);
        g0 = MASKED(g0, x0, r0);
        if (residual) STORE(out + i, g0);
        a0 += g0;
        b0 += g0 * x0;
        i += LANES;
    }
    if (i < n) {
        const int64_t rest = n - i;
        const MASK keep = FN(tail_mask)(rest);
        x1 = FN(tail)(x + n, rest, job->x) - m;
        if (residual) r1 = FN(tail)(r + n, rest, job->residual);
        g1 = FN(tail)(dy + n, rest, job->dy);
        g1 = MASKED(g1, x1, r1);
        if (residual) FN(put_tail)(out + n, rest, n, g1);
        a1 += FN(masked)(g1, keep);
        b1 += FN(masked)(g1 * x1, keep); /* after the product: 0 * inf of a neighbour would be NaN */
    }
#undef MASKED
    *sum = a0 + a1;
    *centred = b0 + b1;
}

INLINE void FN(sums_planes)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual)
{
    for (int64_t u = begin; u < end;) {
        const FN(group) at = FN(units)(job, u, end);
        FN(numbers) of;
        FN(fetch_planes)(&of, job, at.plane, at.count);
        double sum[LANES] = {0}, centred[LANES] = {0};
        for (int64_t t = 0; t < at.n; t += TILE) {
            V a[LANES], b[LANES];
            A found[2][LANES];
            for (int j = at.count; j < LANES; j++) a[j] = b[j] = (V){0};
            for (int j = 0; j < at.count; j++)
                FN(sums)(job, at.at + j * at.n + t, at.n - t < TILE ? at.n - t : TILE, &of, j, a + j, b + j, relu,
                         residual);
            TOTALS(a, found[0]);
            TOTALS(b, found[1]);
            for (int j = 0; j < LANES; j++) sum[j] += (double)found[0][j];
            for (int j = 0; j < LANES; j++) centred[j] += (double)found[1][j];
        }
        for (int j = 0; j < at.count; j++) first_of(job, u)[j] = sum[j];
        for (int j = 0; j < at.count; j++) second_of(job, u)[j] = centred[j] - of.rest[j] * sum[j];
        u += at.count;
    }
}

static void FN(gradient_sums_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (!job->relu) FN(sums_planes)(begin, end, job, 0, 0);
    else if (!job->residual) FN(sums_planes)(begin, end, job, 1, 0);
    else FN(sums_planes)(begin, end, job, 1, 1);
}

/* `ahead`, if any, pixels further on are fetched meanwhile: what is read next where nothing else reads. */
INLINE void FN(affine_group)(const cn_job *job, FN(group) at, const FN(numbers) *of, int relu, int residual,
                             int64_t ahead)
{
    const int64_t n = at.n;
    const int past = job->past; /* a store might change it, for all that the compiler knows */
    for (int j = 0; j < at.count; j++) {
        const T *x = (const T *)job->x + at.at + j * n, *r = residual ? (const T *)job->residual + at.at + j * n : x;
        T *y = (T *)job->y + at.at + j * n;
        const V zero = {0}, m = of->m[j] - zero, scale = of->scale[j] - zero, shift = of->shift[j] - zero;
        V x0, x1, r0 = zero, r1 = zero;
        int64_t i = 0;
#define OUT(x, r) FN(relu)(FN(linear)((x) - m, scale, shift, r, residual), relu)
        for (; i + 2 * LANES <= n; i += 2 * LANES) {
            if (ahead) FN(fetch_ahead)(x + i + ahead, 2 * LANES);
            LOADS(x + i, &x0, &x1);
            if (residual) LOADS(r + i, &r0, &r1);
            FN(put_vectors)(y + i, OUT(x0, r0), OUT(x1, r1), past);
        }
        if (i + LANES <= n) {
            if (residual) r0 = LOAD(r + i);
            STORE(y + i, OUT(LOAD(x + i), r0));
            i += LANES;
        }
        if (i < n) {
            if (residual) r0 = FN(tail)(r + n, n - i, job->residual);
            FN(put_tail)(y + n, n - i, n, OUT(FN(tail)(x + n, n - i, job->x), r0));
        }
#undef OUT
    }
}

INLINE void FN(affine_groups)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual)
{
    for (int64_t u = begin; u < end;) {
        const FN(group) at = FN(units)(job, u, end);
        FN(numbers) of;
        FN(fetch_planes)(&of, job, at.plane, at.count);
        FN(affine_group)(job, at, &of, relu, residual, 0);
        u += at.count;
    }
}

static void FN(affine_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->residual && job->relu) FN(affine_groups)(begin, end, job, 1, 1);
    else if (job->residual) FN(affine_groups)(begin, end, job, 0, 1);
    else if (job->relu) FN(affine_groups)(begin, end, job, 1, 0);
    else FN(affine_groups)(begin, end, job, 0, 0);
    if (job->past) streamed();
}

/* Moments, coefficients and affine of a few planes of an instance at a time. `lead` is where the first of them is in
 * its vector of channels. */
INLINE void FN(through_groups)(int64_t begin, int64_t end, const cn_through_job *job, int relu, int residual)
{
    const cn_job *pixels = &job->pixels;
    const int64_t C = pixels->C, S = pixels->S, blocks = (C + CN_CHANNEL_BLOCK - 1) / CN_CHANNEL_BLOCK;
    const coefficient_channels *channels = job->channels;
    for (int64_t u = begin; u < end; u++) {
        int64_t c = u % blocks * CN_CHANNEL_BLOCK, stop = C - c < CN_CHANNEL_BLOCK ? C : c + CN_CHANNEL_BLOCK, count;
        for (; c < stop; c += count) {
            count = job->together < LANES ? job->together : LANES;
            if (stop - c < count) count = stop - c;
            const int64_t plane = u / blocks * C + c, lead = c % CN_DOUBLES;
            const FN(group) at = {plane * S, S, plane, (int)count};
            double m[LANES + CN_DOUBLES] = {0}, v[LANES + CN_DOUBLES] = {0};
            double scale[LANES + CN_DOUBLES], shift[LANES + CN_DOUBLES];
            if (pixels->m) memcpy(m + lead, pixels->m + c, sizeof(double) * (size_t)count);
            else if (job->variances) FN(both_moments)(pixels, at, m + lead, v + lead);
            else FN(means)(pixels, at, m + lead);
            if (pixels->first) {
                memcpy(pixels->first + plane, m + lead, sizeof(double) * (size_t)count);
                memcpy(pixels->second + plane, v + lead, sizeof(double) * (size_t)count);
            }
            coefficients_here[job->center][job->gate](channels + c / CN_DOUBLES,
                                                      (lead + count + CN_DOUBLES - 1) / CN_DOUBLES, m, v, scale, shift);
            FN(numbers) of;
            FN(fetch_some)(&of, m + lead, scale + lead, shift + lead, NULL, NULL, (int)count);
            FN(affine_group)(pixels, at, &of, relu, residual, job->ahead ? count * S : 0);
        }
    }
}

static void FN(through_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_through_job *job = p;
    if (job->pixels.residual && job->pixels.relu) FN(through_groups)(begin, end, job, 1, 1);
    else if (job->pixels.residual) FN(through_groups)(begin, end, job, 0, 1);
    else if (job->pixels.relu) FN(through_groups)(begin, end, job, 1, 0);
    else FN(through_groups)(begin, end, job, 0, 0);
    if (job->pixels.past) streamed();
}

INLINE void FN(apply_groups)(int64_t begin, int64_t end, const cn_job *job, int relu)
{
    for (int64_t u = begin; u < end;) {
        const FN(group) at = FN(units)(job, u, end);
        const int64_t n = at.n;
        const int past = job->past;
        FN(numbers) of;
        FN(fetch_planes)(&of, job, at.plane, at.count);
        for (int j = 0; j < at.count; j++) {
            const T *x = (const T *)job->x + at.at + j * n, *dy = (const T *)job->dy + at.at + j * n;
            T *dx = (T *)job->y + at.at + j * n;
            const V zero = {0}, m = of.m[j] - zero, scale = of.scale[j] - zero;
            const V shift = relu ? of.shift[j] - zero : zero, slope = of.slope[j] - zero, offset = of.offset[j] - zero;
            V x0, x1, g0, g1;
            int64_t i = 0;
#define MASKED(g, x) (relu ? FN(relu_mask)(g, FN(linear)(x, scale, shift, zero, 0)) : (g))
#define OUT(g, x) (scale * MASKED(g, x) + (slope * (x) + offset))
            for (; i + 2 * LANES <= n; i += 2 * LANES) {
                LOADS(x + i, &x0, &x1);
                LOADS(dy + i, &g0, &g1);
                x0 -= m;
                x1 -= m;
                FN(put_vectors)(dx + i, OUT(g0, x0), OUT(g1, x1), past);
            }
            if (i + LANES <= n) {
                x0 = LOAD(x + i) - m;
                g0 = LOAD(dy + i);
                STORE(dx + i, OUT(g0, x0));
                i += LANES;
            }
            if (i < n) {
                x0 = FN(tail)(x + n, n - i, job->x) - m;
                g0 = FN(tail)(dy + n, n - i, job->dy);
                FN(put_tail)(dx + n, n - i, n, OUT(g0, x0));
            }
#undef OUT
#undef MASKED
        }
        u += at.count;
    }
}

static void FN(gradient_apply_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->relu) FN(apply_groups)(begin, end, job, 1);
    else FN(apply_groups)(begin, end, job, 0);
    if (job->past) streamed();
}
#undef SMALL
#undef TINY_PLANE
