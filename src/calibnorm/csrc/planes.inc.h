/* The four passes over contiguous planes, for one dtype; see lanes.inc.h. */

/* The pixels of unit u: their offset in the tensor, their number, and their plane. */
typedef struct { int64_t at, n, plane; } FN(span);

INLINE FN(span) FN(unit)(const cn_job *job, int64_t u)
{
    int64_t plane = u / job->chunks, lo = u % job->chunks * job->chunk;
    int64_t n = job->S - lo < job->chunk ? job->S - lo : job->chunk;
    return (FN(span)){plane * job->S + lo, n, plane};
}

/* Mean, then squared deviations from it, of at most TILE pixels, which the second loop finds in L1. The first loop
 * sums differences from the first pixel: a constant plane has exactly that mean and variance 0, at any size. */
INLINE void FN(tile_moments)(const T *x, int64_t n, const T *base, FN(moments) *into)
{
    int64_t rest = n % LANES, full = n - rest, i = 0;
    MASK keep = FN(tail_mask)(rest);
    const V zero = {0};
    V k = FIRST(x), s0 = zero, s1 = zero, s2 = zero, s3 = zero, last = zero;
    for (; i + 4 * LANES <= full; i += 4 * LANES) {
        s0 += LOAD(x + i) - k;
        s1 += LOAD(x + i + LANES) - k;
        s2 += LOAD(x + i + 2 * LANES) - k;
        s3 += LOAD(x + i + 3 * LANES) - k;
    }
    for (; i < full; i += LANES) s0 += LOAD(x + i) - k;
    if (rest) {
        last = FN(tail)(x + n, rest, base);
        s1 += FN(masked)(last - k, keep);
    }
    double mean = (double)k[0] + (double)TOTAL((s0 + s1) + (s2 + s3)) / (double)n;
    A center = (A)mean;
    s0 = s1 = s2 = s3 = zero;
    for (i = 0; i + 4 * LANES <= full; i += 4 * LANES) {
        V d0 = LOAD(x + i) - center, d1 = LOAD(x + i + LANES) - center;
        V d2 = LOAD(x + i + 2 * LANES) - center, d3 = LOAD(x + i + 3 * LANES) - center;
        s0 += d0 * d0;
        s1 += d1 * d1;
        s2 += d2 * d2;
        s3 += d3 * d3;
    }
    for (; i < full; i += LANES) {
        V d = LOAD(x + i) - center;
        s0 += d * d;
    }
    if (rest) {
        V d = FN(masked)(last - center, keep);
        s1 += d * d;
    }
    /* The deviations are from the rounded mean: take its error out of their squares. */
    double off = mean - (double)center, m2 = (double)TOTAL((s0 + s1) + (s2 + s3)) - (double)n * off * off;
    FN(merge)(into, (double)n, mean, m2 < 0 ? 0 : m2);
}

static void FN(moments_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t u = begin; u < end; u++) {
        FN(span) at = FN(unit)(job, u);
        const T *x = (const T *)job->x + at.at;
        FN(moments) found = {0, 0, 0};
        for (int64_t t = 0; t < at.n; t += TILE)
            FN(tile_moments)(x + t, at.n - t < TILE ? at.n - t : TILE, job->x, &found);
        if (job->chunks > 1) {
            memcpy(job->partial + 3 * u, &found, sizeof found);
        } else {
            job->first[u] = found.mean;
            job->second[u] = found.m2 / found.n;
        }
    }
}

/* Both sums over at most TILE pixels; with `relu` dy is masked by the sign of the output, which is computed anew, and
 * with a residual the masked dy, its gradient, is written. */
INLINE void FN(tile_sums)(const cn_job *job, int64_t at, int64_t n, int64_t plane, double sums[2], int relu, int residual)
{
    const T *x = (const T *)job->x + at, *dy = (const T *)job->dy + at;
    const T *r = residual ? (const T *)job->residual + at : x;
    T *out = residual ? (T *)job->y + at : 0;
    const FN(numbers) of = FN(numbers_of)(job, plane);
    const V zero = {0}, m = zero + of.m, scale = zero + of.scale, shift = zero + of.shift;
    int64_t rest = n % LANES, full = n - rest, i = 0;
    V a[2] = {zero, zero}, b[2] = {zero, zero};
    for (; i < full; i += LANES) {
        V x_c = LOAD(x + i) - m, g = LOAD(dy + i);
        if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, scale, shift, residual ? LOAD(r + i) : zero, residual));
        if (residual) STORE(out + i, g);
        V t = a[0]; /* two chains in turn hide the latency of the additions */
        a[0] = a[1];
        a[1] = t + g;
        t = b[0];
        b[0] = b[1];
        b[1] = t + g * x_c;
    }
    if (rest) {
        V x_c = FN(tail)(x + n, rest, job->x) - m, g = FN(tail)(dy + n, rest, job->dy);
        if (relu) {
            V r_tail = residual ? FN(tail)(r + n, rest, job->residual) : zero;
            g = FN(relu_mask)(g, FN(linear)(x_c, scale, shift, r_tail, residual));
        }
        if (residual) FN(put_tail)(out + n, rest, n, g);
        MASK keep = FN(tail_mask)(rest);
        a[0] += FN(masked)(g, keep);
        b[0] += FN(masked)(g * x_c, keep); /* after the product: 0 * inf of a neighbour would be NaN */
    }
    double sum = (double)TOTAL(a[0] + a[1]);
    sums[0] += sum;
    sums[1] += (double)TOTAL(b[0] + b[1]) - of.rest * sum;
}

INLINE void FN(sums_planes)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual)
{
    for (int64_t u = begin; u < end; u++) {
        FN(span) at = FN(unit)(job, u);
        double sums[2] = {0, 0};
        for (int64_t t = 0; t < at.n; t += TILE)
            FN(tile_sums)(job, at.at + t, at.n - t < TILE ? at.n - t : TILE, at.plane, sums, relu, residual);
        if (job->chunks > 1) {
            memcpy(job->partial + 2 * u, sums, sizeof sums);
        } else {
            job->first[u] = sums[0];
            job->second[u] = sums[1];
        }
    }
}

static void FN(gradient_sums_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (!job->relu) FN(sums_planes)(begin, end, job, 0, 0);
    else if (!job->residual) FN(sums_planes)(begin, end, job, 1, 0);
    else FN(sums_planes)(begin, end, job, 1, 1);
}

INLINE void FN(affine_units)(int64_t begin, int64_t end, const cn_job *job, int relu, int residual)
{
    const V zero = {0};
    for (int64_t u = begin; u < end; u++) {
        FN(span) at = FN(unit)(job, u);
        const T *x = (const T *)job->x + at.at, *r = residual ? (const T *)job->residual + at.at : x;
        T *y = (T *)job->y + at.at;
        const FN(numbers) of = FN(numbers_of)(job, at.plane);
        const V m = zero + of.m, scale = zero + of.scale, shift = zero + of.shift;
        int64_t rest = at.n % LANES, full = at.n - rest;
        for (int64_t i = 0; i < full; i += LANES) {
            V v = FN(linear)(LOAD(x + i) - m, scale, shift, residual ? LOAD(r + i) : zero, residual);
            STORE(y + i, FN(relu)(v, relu));
        }
        if (rest) {
            V r_tail = residual ? FN(tail)(r + at.n, rest, job->residual) : zero;
            V v = FN(linear)(FN(tail)(x + at.n, rest, job->x) - m, scale, shift, r_tail, residual);
            FN(put_tail)(y + at.n, rest, at.n, FN(relu)(v, relu));
        }
    }
}

static void FN(affine_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->residual && job->relu) FN(affine_units)(begin, end, job, 1, 1);
    else if (job->residual) FN(affine_units)(begin, end, job, 0, 1);
    else if (job->relu) FN(affine_units)(begin, end, job, 1, 0);
    else FN(affine_units)(begin, end, job, 0, 0);
}

INLINE void FN(apply_units)(int64_t begin, int64_t end, const cn_job *job, int relu)
{
    const V zero = {0};
    for (int64_t u = begin; u < end; u++) {
        FN(span) at = FN(unit)(job, u);
        const T *x = (const T *)job->x + at.at, *dy = (const T *)job->dy + at.at;
        T *dx = (T *)job->y + at.at;
        const FN(numbers) of = FN(numbers_of)(job, at.plane);
        const V m = zero + of.m, scale = zero + of.scale, shift = zero + of.shift;
        const V slope = zero + of.slope, offset = zero + of.offset;
        int64_t rest = at.n % LANES, full = at.n - rest;
        for (int64_t i = 0; i < full; i += LANES) {
            V x_c = LOAD(x + i) - m, g = LOAD(dy + i);
            if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, scale, shift, zero, 0));
            STORE(dx + i, scale * g + (slope * x_c + offset));
        }
        if (rest) {
            V x_c = FN(tail)(x + at.n, rest, job->x) - m, g = FN(tail)(dy + at.n, rest, job->dy);
            if (relu) g = FN(relu_mask)(g, FN(linear)(x_c, scale, shift, zero, 0));
            FN(put_tail)(dx + at.n, rest, at.n, scale * g + (slope * x_c + offset));
        }
    }
}

static void FN(gradient_apply_planes)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    if (job->relu) FN(apply_units)(begin, end, job, 1);
    else FN(apply_units)(begin, end, job, 0);
}
