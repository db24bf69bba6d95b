/* The coefficient step of BN, IEBN and RBN, and its vector-Jacobian product.
 *
 * The formulas are those of calibnorm/methods, which the tests compare with. With M the mean that enters the batch,
 *
 *     M = m | (1 + w) m | m + w sqrt(v)          E = mean_n M, var = mean_n v + mean_n (M - E)^2, or given
 *     a = N_a / sqrt(var + eps)                  b = (M - E) a + N_b
 *     k = b | sqrt(v) |a| | m                    g = logistic(gate_weight * k + gate_bias)
 *     scale = gamma * g_gamma * a                shift = gamma * g_gamma * b + beta * g_beta
 *
 * where g_gamma and g_beta are g or 1. A unit is a block of channels; everything is computed in double, one instance's
 * row of the block at a time, in loops over channels that the compiler turns into vectors. */

#define ROW for (int c = 0; c < count; c++)

typedef double coefficient_row[CN_CHANNEL_BLOCK];

/* What a block's passes share. */
typedef struct {
    const cn_coefficient_job *job;
    int64_t first;
    int count;
    coefficient_row weight, bias, center_weight, gate_weight, gate_bias, mean, var, inverse, a;
} coefficient_channels;

/* One instance's row: m, sqrt(v) where something needs it, M - E, b, k and g. */
typedef struct {
    coefficient_row m, v, sd, centred, b, k, g;
} coefficient_instance;

INLINE void coefficient_read(double *into, const double *array, int64_t at, int count, double otherwise)
{
    const double *from = array ? array + at : 0;
    ROW into[c] = from ? from[c] : otherwise;
}

INLINE void coefficient_write(double *array, int64_t at, int count, const double *values)
{
    double *to = array ? array + at : 0;
    if (to) ROW to[c] = values[c];
}

/* m, sqrt(v) and M of instance n; M goes to `centred`, before E is known. */
INLINE void coefficient_read_instance(const coefficient_channels *s, int64_t n, coefficient_instance *i)
{
    const cn_coefficient_job *job = s->job;
    const int count = s->count;
    coefficient_read(i->m, job->m, n * job->C + s->first, count, 0);
    coefficient_read(i->v, job->v, n * job->C + s->first, count, 0);
    if (job->center == CN_CENTER_STD || job->gate == CN_GATE_STD) ROW i->sd[c] = __builtin_sqrt(i->v[c]);
    if (job->center == CN_CENTER_NONE) ROW i->centred[c] = i->m[c];
    if (job->center == CN_CENTER_MEAN) ROW i->centred[c] = (1.0 + s->center_weight[c]) * i->m[c];
    if (job->center == CN_CENTER_STD) ROW i->centred[c] = i->m[c] + s->center_weight[c] * i->sd[c];
}

/* Everything that does not depend on the instance. */
INLINE void coefficient_prepare(coefficient_channels *s, const cn_coefficient_job *job, int64_t block, coefficient_instance *i)
{
    int64_t left = job->C - block * CN_CHANNEL_BLOCK;
    const int count = left < CN_CHANNEL_BLOCK ? (int)left : CN_CHANNEL_BLOCK;
    s->job = job;
    s->first = block * CN_CHANNEL_BLOCK;
    s->count = count;
    coefficient_read(s->weight, job->weight, s->first, count, 1);
    coefficient_read(s->bias, job->bias, s->first, count, 0);
    coefficient_read(s->center_weight, job->center_weight, s->first, count, 0);
    coefficient_read(s->gate_weight, job->gate_weight, s->first, count, 0);
    coefficient_read(s->gate_bias, job->gate_bias, s->first, count, 0);
    if (job->fixed) {
        coefficient_read(s->mean, job->mean, s->first, count, 0);
        coefficient_read(s->var, job->var, s->first, count, 0);
    } else {
        ROW s->mean[c] = s->var[c] = 0;
        for (int64_t n = 0; n < job->N; n++) {
            coefficient_read_instance(s, n, i);
            ROW s->mean[c] += i->centred[c];
        }
        ROW s->mean[c] /= (double)job->N;
        for (int64_t n = 0; n < job->N; n++) {
            coefficient_read_instance(s, n, i);
            ROW {
                double d = i->centred[c] - s->mean[c];
                s->var[c] += i->v[c] + d * d;
            }
        }
        ROW s->var[c] /= (double)job->N;
    }
    /* 1/sqrt(inf) is 0 and would hide an overflow; 0 * inf is NaN, which is honest. */
    ROW s->inverse[c] = 1.0 / __builtin_sqrt(s->var[c] + job->eps) + 0.0 * s->var[c];
    ROW s->a[c] = s->inverse[c] * job->noise_a;
}

INLINE void coefficient_gate(const coefficient_channels *s, int64_t n, coefficient_instance *i)
{
    const cn_coefficient_job *job = s->job;
    const int count = s->count;
    coefficient_read_instance(s, n, i);
    ROW i->centred[c] -= s->mean[c];
    ROW i->b[c] = i->centred[c] * s->a[c] + job->noise_b;
    if (job->gate == CN_GATE_NONE) return;
    if (job->gate == CN_GATE_STANDARDIZED) ROW i->k[c] = i->b[c];
    if (job->gate == CN_GATE_STD) ROW i->k[c] = i->sd[c] * __builtin_fabs(s->a[c]);
    if (job->gate == CN_GATE_INPUT) ROW i->k[c] = i->m[c];
    ROW i->g[c] = logistic(s->gate_weight[c] * i->k[c] + s->gate_bias[c]);
}

static void coefficients(int64_t begin, int64_t end, void *p)
{
    const cn_coefficient_job *job = p;
    for (int64_t block = begin; block < end; block++) {
        coefficient_channels s;
        coefficient_instance i;
        coefficient_row scale, shift;
        coefficient_prepare(&s, job, block, &i);
        const int count = s.count;
        if (!job->fixed) {
            coefficient_write(job->mean, s.first, count, s.mean);
            coefficient_write(job->var, s.first, count, s.var);
        }
        const int on_gamma = job->gate && job->gated & CN_GATE_GAMMA, on_beta = job->gate && job->gated & CN_GATE_BETA;
        for (int64_t n = 0; n < job->N; n++) {
            coefficient_gate(&s, n, &i);
            ROW scale[c] = s.weight[c] * s.a[c];
            ROW shift[c] = s.weight[c] * i.b[c];
            if (on_gamma) ROW scale[c] *= i.g[c];
            if (on_gamma) ROW shift[c] *= i.g[c];
            if (on_beta) ROW shift[c] += s.bias[c] * i.g[c];
            else ROW shift[c] += s.bias[c];
            coefficient_write(job->scale, n * job->C + s.first, count, scale);
            coefficient_write(job->shift, n * job->C + s.first, count, shift);
        }
    }
}

static void coefficients_vjp(int64_t begin, int64_t end, void *p)
{
    const cn_coefficient_job *job = p;
    const double per_pixel = 1.0 / (double)job->S, per_instance = 1.0 / (double)job->N;
    for (int64_t block = begin; block < end; block++) {
        coefficient_channels s;
        coefficient_instance i;
        coefficient_prepare(&s, job, block, &i);
        const int count = s.count;
        const int on_gamma = job->gate && job->gated & CN_GATE_GAMMA, on_beta = job->gate && job->gated & CN_GATE_BETA;
        /* Sums over instances. d_a counts a's every use; d_mean is minus the sum of dM. */
        coefficient_row d_weight, d_bias, d_gate_weight, d_gate_bias, d_center_weight, d_a, d_mean;
        coefficient_row d_scale, d_shift, g_gamma, dz, d_b, dm, dv, scale;
        ROW d_weight[c] = d_bias[c] = d_gate_weight[c] = d_gate_bias[c] = d_center_weight[c] = d_a[c] = d_mean[c] = 0;
        for (int64_t n = 0; n < job->N; n++) { /* what reaches m and v directly waits in offset and slope */
            int64_t at = n * job->C + s.first;
            coefficient_gate(&s, n, &i);
            coefficient_read(d_shift, job->sum_dy, at, count, 0);
            coefficient_read(d_scale, job->sum_dy_centred, at, count, 0);
            ROW g_gamma[c] = on_gamma ? i.g[c] : 1.0;
            ROW {
                double d_gamma = d_scale[c] * s.a[c] + d_shift[c] * i.b[c]; /* over g_gamma */
                double d_gate = (on_gamma ? s.weight[c] * d_gamma : 0.0) + (on_beta ? s.bias[c] * d_shift[c] : 0.0);
                d_weight[c] += g_gamma[c] * d_gamma;
                d_bias[c] += on_beta ? i.g[c] * d_shift[c] : d_shift[c];
                d_b[c] = s.weight[c] * g_gamma[c] * d_shift[c];
                d_a[c] += s.weight[c] * g_gamma[c] * d_scale[c];
                dz[c] = job->gate ? d_gate * i.g[c] * (1.0 - i.g[c]) : 0.0;
                dm[c] = dv[c] = 0;
                scale[c] = s.weight[c] * g_gamma[c] * s.a[c];
            }
            if (job->gate) {
                ROW d_gate_weight[c] += dz[c] * i.k[c];
                ROW d_gate_bias[c] += dz[c];
            }
            if (job->gate == CN_GATE_STANDARDIZED) ROW d_b[c] += dz[c] * s.gate_weight[c];
            if (job->gate == CN_GATE_INPUT) ROW dm[c] = dz[c] * s.gate_weight[c];
            if (job->gate == CN_GATE_STD)
                ROW {
                    double dk = dz[c] * s.gate_weight[c];
                    d_a[c] += dk * (s.a[c] < 0 ? -i.sd[c] : i.sd[c]);
                    dv[c] = i.v[c] == 0 ? 0.0 : dk * __builtin_fabs(s.a[c]) * 0.5 / i.sd[c];
                }
            ROW {
                d_a[c] += d_b[c] * i.centred[c];
                d_mean[c] -= d_b[c] * s.a[c];
                dm[c] += d_b[c] * s.a[c]; /* dM: the gate takes m itself only where M is m */
            }
            coefficient_write(job->scale, at, count, scale);
            coefficient_write(job->offset, at, count, dm);
            coefficient_write(job->slope, at, count, dv);
        }
        coefficient_row d_var;
        ROW d_var[c] = d_a[c] * job->noise_a * -0.5 * s.inverse[c] * s.inverse[c] * s.inverse[c];
        for (int64_t n = 0; n < job->N; n++) {
            int64_t at = n * job->C + s.first;
            coefficient_read_instance(&s, n, &i);
            ROW i.centred[c] -= s.mean[c];
            coefficient_read(scale, job->scale, at, count, 0);
            coefficient_read(dm, job->offset, at, count, 0);
            coefficient_read(dv, job->slope, at, count, 0);
            coefficient_read(d_shift, job->sum_dy, at, count, 0);
            if (!job->fixed)
                ROW {
                    dm[c] += (d_mean[c] + 2.0 * d_var[c] * i.centred[c]) * per_instance;
                    dv[c] += d_var[c] * per_instance;
                }
            if (job->center == CN_CENTER_MEAN)
                ROW {
                    d_center_weight[c] += dm[c] * i.m[c];
                    dm[c] *= 1.0 + s.center_weight[c];
                }
            if (job->center == CN_CENTER_STD)
                ROW {
                    d_center_weight[c] += dm[c] * i.sd[c];
                    dv[c] += i.v[c] == 0 ? 0.0 : dm[c] * s.center_weight[c] * 0.5 / i.sd[c];
                }
            ROW {
                dv[c] *= 2.0 * per_pixel;
                dm[c] = (dm[c] - scale[c] * d_shift[c]) * per_pixel;
            }
            coefficient_write(job->slope, at, count, dv);
            coefficient_write(job->offset, at, count, dm);
        }
        coefficient_write(job->d_weight, s.first, count, d_weight);
        coefficient_write(job->d_bias, s.first, count, d_bias);
        coefficient_write(job->d_center_weight, s.first, count, d_center_weight);
        coefficient_write(job->d_gate_weight, s.first, count, d_gate_weight);
        coefficient_write(job->d_gate_bias, s.first, count, d_gate_bias);
    }
}

#undef ROW
