/* The coefficient step of BN, IEBN and RBN, and its vector-Jacobian product.
 *
 * The formulas are those of calibnorm/methods, which the tests compare with. With M the mean that enters the batch,
 *
 *     M = m | (1 + w) m | m + w sqrt(v)          E = mean_n M, var = mean_n v + mean_n (M - E)^2, or given
 *     a = N_a / sqrt(var + eps)                  b = (M - E) a + N_b
 *     k = b | sqrt(v) |a| | m                    g = logistic(gate_weight * k + gate_bias)
 *     scale = gamma * g_gamma * a                shift = gamma * g_gamma * b + beta * g_beta
 *
 * where g_gamma and g_beta are g or 1. Everything is computed in double. A unit is a block of channels, and in it one
 * vector of channels walks down the instances, with the channels' own numbers and sums in registers: rows of 64
 * channels in small arrays, as it was before, spent their time on loads and stores of those. */

enum { CN_DOUBLES = CN_BYTES / 8, CN_KEPT = 128 };

/* What an instance's later loops read again, with up to CN_KEPT instances: 32 KiB at most. Rows of 512 doubles are 4096
 * bytes apart and all fall into one set of the L1 cache, where 8 of them fit. */
typedef struct {
    vector_f64 m, sd, offset, slope;
} coefficient_kept;

/* What the walk needs of one vector of channels. `lanes` of it are channels, all but in the last vector. */
typedef struct {
    const cn_coefficient_job *job;
    int64_t first;
    int lanes;
    coefficient_kept *kept; /* NULL with more instances */
    vector_f64 weight, bias, center_weight, gate_weight, gate_bias, mean, var, inverse, a;
} coefficient_channels;

/* One instance's numbers: m, sqrt(v) where something needs it, M and then M - E, b, k and g. */
typedef struct {
    vector_f64 m, sd, centred, b, k, g;
} coefficient_instance;

INLINE vector_f64 coefficient_load(const double *from, int lanes)
{
    if (lanes == CN_DOUBLES) return load_f64(from);
    vector_f64 v = {0};
    for (int i = 0; i < lanes; i++) v[i] = from[i];
    return v;
}

INLINE void coefficient_store(double *to, int lanes, vector_f64 v)
{
    if (lanes == CN_DOUBLES) store_f64(to, v);
    else
        for (int i = 0; i < lanes; i++) to[i] = v[i];
}

/* Of arrays that may be NULL. */
INLINE vector_f64 coefficient_read(const coefficient_channels *s, const double *array, double otherwise)
{
    return array ? coefficient_load(array + s->first, s->lanes) : all_f64(otherwise);
}

INLINE void coefficient_write(const coefficient_channels *s, double *array, vector_f64 v)
{
    if (array) coefficient_store(array + s->first, s->lanes, v);
}

INLINE vector_f64 absolute_f64(vector_f64 v) { return (vector_f64)((mask_f64)v & INT64_MAX); }

/* M of an instance, from m and sqrt(v). */
INLINE vector_f64 coefficient_mean(const coefficient_channels *s, const coefficient_instance *i, int center)
{
    if (center == CN_CENTER_MEAN) return i->m + s->center_weight * i->m;
    if (center == CN_CENTER_STD) return i->m + s->center_weight * i->sd;
    return i->m;
}

/* m, sqrt(v) and M - E of instance n, `again` where an earlier loop has kept them. */
INLINE coefficient_instance coefficient_centred(const coefficient_channels *s, int64_t n, int again, int center,
                                                int gate)
{
    const int64_t at = n * s->job->C + s->first;
    const int has_sd = center == CN_CENTER_STD || gate == CN_GATE_STD;
    coefficient_instance i;
    if (again && s->kept) {
        i.m = s->kept[n].m;
        if (has_sd) i.sd = s->kept[n].sd;
    } else {
        i.m = coefficient_load(s->job->m + at, s->lanes);
        if (has_sd) i.sd = sqrt_f64(coefficient_load(s->job->v + at, s->lanes));
        if (s->kept) {
            s->kept[n].m = i.m;
            if (has_sd) s->kept[n].sd = i.sd;
        }
    }
    i.centred = coefficient_mean(s, &i, center) - s->mean;
    return i;
}

/* b, k and g of an instance. */
INLINE void coefficient_gate(const coefficient_channels *s, coefficient_instance *i, int gate)
{
    i->b = i->centred * s->a + s->job->noise_b;
    if (gate == CN_GATE_STANDARDIZED) i->k = i->b;
    if (gate == CN_GATE_STD) i->k = i->sd * absolute_f64(s->a);
    if (gate == CN_GATE_INPUT) i->k = i->m;
    if (gate != CN_GATE_NONE) i->g = logistic(s->gate_weight * i->k + s->gate_bias);
}

/* Scale and shift of an instance. */
INLINE void coefficient_finish(const coefficient_channels *s, const coefficient_instance *i, int gate, double *scale,
                               double *shift, int lanes)
{
    const int on_gamma = gate && s->job->gated & CN_GATE_GAMMA, on_beta = gate && s->job->gated & CN_GATE_BETA;
    vector_f64 gamma = on_gamma ? s->weight * i->g : s->weight, beta = on_beta ? s->bias * i->g : s->bias;
    coefficient_store(scale, lanes, gamma * s->a);
    coefficient_store(shift, lanes, gamma * i->b + beta);
}

/* Mean and variance of the batch, in one loop: with d = M - M of the first instance, the mean of d^2 less the square of
 * the mean of d. That loses a factor of N at most, since (M_0 - E)^2 is one of N parts of the variance. */
INLINE void coefficient_statistics(coefficient_channels *s, int center, int gate)
{
    const double per_instance = 1.0 / (double)s->job->N;
    vector_f64 sum = {0}, squares = {0}, within = {0};
    s->mean = (vector_f64){0};
    if (s->job->N > 0) s->mean = coefficient_centred(s, 0, 0, center, gate).centred;
    for (int64_t n = 0, at = s->first; n < s->job->N; n++, at += s->job->C) {
        vector_f64 d = coefficient_centred(s, n, 0, center, gate).centred;
        sum += d;
        squares += d * d;
        within += coefficient_load(s->job->v + at, s->lanes);
    }
    vector_f64 shift = sum * per_instance;
    s->mean += shift;
    s->var = (within + (squares - sum * shift)) * per_instance;
}

/* Everything that does not depend on the instance. */
INLINE coefficient_channels coefficient_prepare(const cn_coefficient_job *job, int64_t first, int lanes,
                                                coefficient_kept *kept, int center, int gate)
{
    coefficient_channels s = {.job = job, .first = first, .lanes = lanes, .kept = job->N <= CN_KEPT ? kept : NULL};
    s.weight = coefficient_read(&s, job->weight, 1);
    s.bias = coefficient_read(&s, job->bias, 0);
    s.center_weight = coefficient_read(&s, job->center_weight, 0);
    s.gate_weight = coefficient_read(&s, job->gate_weight, 0);
    s.gate_bias = coefficient_read(&s, job->gate_bias, 0);
    if (job->statistics == CN_OF_BATCH) {
        coefficient_statistics(&s, center, gate);
    } else {
        s.mean = coefficient_read(&s, job->mean, 0);
        s.var = coefficient_read(&s, job->var, 0);
    }
    /* 1/sqrt(inf) is 0 and would hide an overflow; 0 * inf is NaN, which is honest. */
    s.inverse = 1.0 / sqrt_f64(s.var + job->eps) + 0.0 * s.var;
    s.a = s.inverse * job->noise_a;
    return s;
}

/* The gradient of sqrt(v), which is taken as 0 where v is 0. */
INLINE vector_f64 coefficient_half_over(vector_f64 sd)
{
    return (vector_f64)((mask_f64)(0.5 / sd) & ~(mask_f64)(sd == 0.0));
}

INLINE void coefficients_of(const cn_coefficient_job *job, int64_t first, int lanes, coefficient_kept *kept, int center,
                            int gate)
{
    const coefficient_channels s = coefficient_prepare(job, first, lanes, kept, center, gate);
    if (job->statistics == CN_OF_BATCH) {
        coefficient_write(&s, job->mean, s.mean);
        coefficient_write(&s, job->var, s.var);
    }
    for (int64_t n = 0, at = first; n < job->N; n++, at += job->C) {
        coefficient_instance i = coefficient_centred(&s, n, job->statistics == CN_OF_BATCH, center, gate);
        coefficient_gate(&s, &i, gate);
        coefficient_finish(&s, &i, gate, job->scale + at, job->shift + at, lanes);
    }
}

INLINE void coefficients_vjp_of(const cn_coefficient_job *job, int64_t first, int lanes, coefficient_kept *kept,
                                int center, int gate)
{
    const coefficient_channels s = coefficient_prepare(job, first, lanes, kept, center, gate);
    const int on_gamma = gate && job->gated & CN_GATE_GAMMA, on_beta = gate && job->gated & CN_GATE_BETA;
    const double per_pixel = 1.0 / (double)job->S, per_instance = 1.0 / (double)job->N;
    const int has_sd = center == CN_CENTER_STD || gate == CN_GATE_STD;
    const vector_f64 zero = {0}, dM_dm = center == CN_CENTER_MEAN ? 1.0 + s.center_weight : all_f64(1);
    const vector_f64 a_sign = choose_f64(s.a < 0.0, all_f64(-1), all_f64(1));
    /* Sums over instances. d_a counts a's every use, d_b those of b. */
    vector_f64 d_weight = zero, d_bias = zero, d_gate_weight = zero, d_gate_bias = zero, d_center_weight = zero;
    vector_f64 d_a = zero, d_b_sum = zero;
    /* What reaches m and v without the statistics, */
    for (int64_t n = 0, at = first; n < job->N; n++, at += job->C) {
        coefficient_instance i = coefficient_centred(&s, n, job->statistics == CN_OF_BATCH, center, gate);
        coefficient_gate(&s, &i, gate);
        vector_f64 d_shift = coefficient_load(job->sum_dy + at, lanes);
        vector_f64 d_scale = coefficient_load(job->sum_dy_centred + at, lanes);
        vector_f64 d_gamma = d_scale * s.a + d_shift * i.b; /* over g_gamma */
        vector_f64 gamma = on_gamma ? s.weight * i.g : s.weight, scale = gamma * s.a;
        vector_f64 d_b = gamma * d_shift, dm = zero, dv = zero, half_over_sd = zero;
        if (has_sd) half_over_sd = coefficient_half_over(i.sd);
        d_weight += on_gamma ? i.g * d_gamma : d_gamma;
        d_bias += on_beta ? i.g * d_shift : d_shift;
        d_a += gamma * d_scale;
        if (gate != CN_GATE_NONE) {
            vector_f64 d_gate = zero;
            if (on_gamma) d_gate += s.weight * d_gamma;
            if (on_beta) d_gate += s.bias * d_shift;
            vector_f64 dz = d_gate * (i.g - i.g * i.g), dk = dz * s.gate_weight;
            d_gate_weight += dz * i.k;
            d_gate_bias += dz;
            if (gate == CN_GATE_STANDARDIZED) d_b += dk;
            if (gate == CN_GATE_INPUT) dm = dk;
            if (gate == CN_GATE_STD) {
                d_a += dk * a_sign * i.sd;
                dv = dk * absolute_f64(s.a) * half_over_sd;
            }
        }
        d_a += d_b * i.centred;
        d_b_sum += d_b;
        dm += d_b * s.a; /* dM: the gate takes m itself only where M is m */
        if (center == CN_CENTER_MEAN) d_center_weight += dm * i.m;
        if (center == CN_CENTER_STD) {
            d_center_weight += dm * i.sd;
            dv += dm * s.center_weight * half_over_sd;
        }
        coefficient_store(job->scale + at, lanes, scale);
        vector_f64 offset = (dM_dm * dm - scale * d_shift) * per_pixel, slope = dv * (2.0 * per_pixel);
        if (s.kept && job->statistics != CN_GIVEN) {
            s.kept[n].offset = offset;
            if (has_sd) s.kept[n].slope = slope;
        } else {
            coefficient_store(job->offset + at, lanes, offset);
            if (has_sd || job->statistics == CN_GIVEN) coefficient_store(job->slope + at, lanes, slope);
        }
    }
    /* and what reaches them through the batch's mean and variance. */
    vector_f64 d_var = d_a * job->noise_a * -0.5 * s.inverse * s.inverse * s.inverse;
    vector_f64 d_mean = -d_b_sum * s.a;
    coefficient_write(&s, job->d_mean, d_mean);
    coefficient_write(&s, job->d_var, d_var);
    if (job->statistics != CN_GIVEN) {
        d_var *= per_instance;
        d_mean *= per_instance;
        for (int64_t n = 0, at = first; n < job->N; n++, at += job->C) {
            coefficient_instance i = coefficient_centred(&s, n, 1, center, gate);
            vector_f64 dM = d_mean + 2.0 * d_var * i.centred, dv = d_var;
            if (center == CN_CENTER_MEAN) d_center_weight += dM * i.m;
            if (center == CN_CENTER_STD) {
                d_center_weight += dM * i.sd;
                dv += dM * s.center_weight * coefficient_half_over(i.sd);
            }
            vector_f64 slope = dv * (2.0 * per_pixel), offset = dM_dm * dM * per_pixel;
            offset += s.kept ? s.kept[n].offset : coefficient_load(job->offset + at, lanes);
            if (has_sd) slope += s.kept ? s.kept[n].slope : coefficient_load(job->slope + at, lanes);
            coefficient_store(job->slope + at, lanes, slope);
            coefficient_store(job->offset + at, lanes, offset);
        }
    }
    coefficient_write(&s, job->d_weight, d_weight);
    coefficient_write(&s, job->d_bias, d_bias);
    coefficient_write(&s, job->d_center_weight, d_center_weight);
    coefficient_write(&s, job->d_gate_weight, d_gate_weight);
    coefficient_write(&s, job->d_gate_bias, d_gate_bias);
}

/* With given statistics: what does not depend on the instance, for all channels. */
static void prepare_channels(const cn_coefficient_job *job, void *channels)
{
    coefficient_channels *to = channels;
    for (int64_t first = 0; first < job->C; first += CN_DOUBLES) {
        const int lanes = (int)(job->C - first < CN_DOUBLES ? job->C - first : CN_DOUBLES);
        *to++ = coefficient_prepare(job, first, lanes, NULL, job->center, job->gate);
    }
}

/* and then the coefficients of some vectors of channels of one instance, from its moments. */
INLINE void coefficients_here_of(const coefficient_channels *s, int64_t vectors, const double *m, const double *v,
                                 double *scale, double *shift, int center, int gate)
{
    for (int64_t k = 0; k < vectors * CN_DOUBLES; k += CN_DOUBLES, s++) {
        coefficient_instance i;
        i.m = load_f64(m + k);
        if (center == CN_CENTER_STD || gate == CN_GATE_STD) i.sd = sqrt_f64(load_f64(v + k));
        i.centred = coefficient_mean(s, &i, center) - s->mean;
        coefficient_gate(s, &i, gate);
        coefficient_finish(s, &i, gate, scale + k, shift + k, CN_DOUBLES);
    }
}

typedef void (*coefficient_here)(const coefficient_channels *s, int64_t vectors, const double *m, const double *v,
                                 double *scale, double *shift);
typedef void (*coefficient_walk)(const cn_coefficient_job *job, int64_t first, coefficient_kept *kept);

/* A function for each kind of method, so that its registers hold the numbers it has and its loops are without branches;
 * the last vector, where it is not full, can take a slower one. */
#define WALK(name, center, gate)                                                                               \
    static void name##_##center##_##gate(const cn_coefficient_job *job, int64_t first, coefficient_kept *kept) \
    {                                                                                                          \
        name##_of(job, first, CN_DOUBLES, kept, center, gate);                                                 \
    }
#define HERE(center, gate)                                                                              \
    static void here_##center##_##gate(const coefficient_channels *s, int64_t vectors, const double *m, \
                                       const double *v, double *scale, double *shift)                   \
    {                                                                                                   \
        coefficients_here_of(s, vectors, m, v, scale, shift, center, gate);                             \
    }
HERE(0, 0)
HERE(0, 1)
HERE(0, 2)
HERE(0, 3)
HERE(1, 0)
HERE(1, 1)
HERE(1, 2)
HERE(2, 0)
HERE(2, 1)
HERE(2, 2)
static const coefficient_here coefficients_here[3][4] = {
    {here_0_0, here_0_1, here_0_2, here_0_3},
    {here_1_0, here_1_1, here_1_2},
    {here_2_0, here_2_1, here_2_2},
};
#define WALKS(name)                                                                                 \
    WALK(name, 0, 0)                                                                                \
    WALK(name, 0, 1)                                                                                \
    WALK(name, 0, 2)                                                                                \
    WALK(name, 0, 3)                                                                                \
    WALK(name, 1, 0)                                                                                \
    WALK(name, 1, 1)                                                                                \
    WALK(name, 1, 2)                                                                                \
    WALK(name, 2, 0)                                                                                \
    WALK(name, 2, 1)                                                                                \
    WALK(name, 2, 2)                                                                                \
    static const coefficient_walk name##_walks[3][4] = {                                            \
        {name##_0_0, name##_0_1, name##_0_2, name##_0_3},                                           \
        {name##_1_0, name##_1_1, name##_1_2},                                                       \
        {name##_2_0, name##_2_1, name##_2_2},                                                       \
    };                                                                                              \
    static void name(int64_t begin, int64_t end, void *p)                                           \
    {                                                                                               \
        const cn_coefficient_job *job = p;                                                          \
        const int64_t last = end * CN_CHANNEL_BLOCK < job->C ? end * CN_CHANNEL_BLOCK : job->C;     \
        int64_t first = begin * CN_CHANNEL_BLOCK;                                                   \
        coefficient_kept kept[CN_KEPT];                                                             \
        for (; first + CN_DOUBLES <= last; first += CN_DOUBLES)                                     \
            name##_walks[job->center][job->gate](job, first, kept);                                 \
        if (first < last) name##_of(job, first, (int)(last - first), kept, job->center, job->gate); \
    }
WALKS(coefficients)
WALKS(coefficients_vjp)

#undef HERE
#undef WALK
#undef WALKS
