/* What Python calls: picks the instruction set and cuts work into units. No state but the two pointers below. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "programs.h"

#define CN_PAST_BYTES (24 << 20)  /* more than a desktop processor's last cache */
#define CN_AHEAD_BYTES (16 << 20) /* what a processor fetches ahead by itself: more is slower, as it was by a tenth */
#define CN_THROUGH_BYTES (512 << 10) /* what a core's second cache holds, with what is written */
#define EXPORT __attribute__((visibility("default")))

/* torch_parallel_for of libtorch_cpu: torch's own thread pool, so that there is one setting and one set of threads. */
typedef int32_t (*cn_pool)(int64_t begin, int64_t end, int64_t grain, cn_work f, void *job);

static const cn_table *table;
static const char *table_name;
static cn_pool pool;

EXPORT const char *calibnorm_sources(void) { return CN_SOURCES; }

/* Use the best instruction set that the processor has and `limit` allows (NULL: any); return its name. */
EXPORT const char *calibnorm_start(void *parallel_for, const char *limit)
{
    memcpy(&pool, &parallel_for, sizeof pool);
    table = &cn_table_base;
    table_name = "base";
#ifdef CN_X86
    __builtin_cpu_init();
    if (limit && !strcmp(limit, "base")) return table_name;
    /* Every processor with AVX2 and FMA has F16C; clang 14 does not know its name here. */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        table = &cn_table_avx2;
        table_name = "avx2";
    }
    if (limit && !strcmp(limit, "avx2")) return table_name;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && table != &cn_table_base) {
        table = &cn_table_avx512;
        table_name = "avx512";
    }
#else
    (void)limit;
#endif
    return table_name;
}

/* Share units of `pixels` pixels each: at least 32768 pixels, torch's own grain, to a thread. */
static void run(cn_work work, int64_t units, int64_t pixels, void *job)
{
    int64_t grain = pixels >= 32768 ? 1 : 32768 / (pixels ? pixels : 1);
    if (!pool || units <= grain || pool(0, units, grain, work, job)) work(0, units, job);
}

/* Cut planes (or instances) that are large and few into units of at least 32768 pixels, so that up to 64 threads find
 * work; by shape alone, so that sums do not depend on the threads. */
static void cut(cn_job *job, int64_t whole, int64_t row)
{
    int64_t wanted = (64 + whole - 1) / whole, most = job->S * row / 32768;
    job->chunks = wanted < most ? wanted : most;
    if (job->chunks < 1) job->chunks = 1;
    job->chunk = (job->S + job->chunks - 1) / job->chunks;
    job->chunk = (job->chunk + 63) / 64 * 64;
    job->chunks = (job->S + job->chunk - 1) / job->chunk;
}

/* Run a pass; where it is cut, `merge` collects what the units leave in `partial`. Return 1 where memory is short,
 * else 0. */
static int pass(cn_job *job, cn_work work, cn_work merge)
{
    int64_t whole = job->rows ? job->N : job->N * job->C, row = job->rows ? job->C : 1;
    cut(job, whole, row);
    if (merge && job->chunks > 1) {
        job->partial = malloc(sizeof(double) * (size_t)(2 * whole * job->chunks * row));
        if (!job->partial) return 1;
    }
    run(work, whole * job->chunks, (job->S < job->chunk ? job->S : job->chunk) * row, job);
    if (job->partial) {
        run(merge, whole, job->chunks * row * 2, job);
        free(job->partial);
    }
    return 0;
}

/* Planes of one pixel are their own mean, and a sum over one is itself: `to` takes the pixels as doubles. A quarter of
 * the time of the general kernels; those of half types keep them. */
static void widen(int32_t dtype, int64_t count, const void *from, double *to)
{
    if (dtype == CN_F32)
        for (int64_t i = 0; i < count; i++) to[i] = ((const float *)from)[i];
    else memcpy(to, from, sizeof(double) * (size_t)count);
}

static int one_pixel(int32_t dtype, int64_t S) { return S == 1 && (dtype == CN_F32 || dtype == CN_F64); }

#define SHAPE int32_t dtype, int32_t rows, int64_t N, int64_t C, int64_t S
#define JOB(...) {.N = N, .C = C, .S = S, .rows = rows, __VA_ARGS__}

EXPORT int32_t calibnorm_moments(SHAPE, const void *x, double *m, double *v)
{
    if (one_pixel(dtype, S)) {
        widen(dtype, N * C, x, m);
        if (v) memset(v, 0, sizeof(double) * (size_t)(N * C));
        return 0;
    }
    cn_job job = JOB(.x = x, .first = m, .second = v);
    return pass(&job, table->moments[rows][dtype], table->merge_moments);
}

/* A store to memory that is not in the caches reads it first, which is a third of affine's traffic; past the caches it
 * does not. That pays where a pass over `tensors` of this size leaves too little of its output there for whoever reads
 * it next. */
static int past_caches(SHAPE, int tensors, const void *y)
{
    const int64_t size = dtype == CN_F64 ? 8 : dtype == CN_F32 ? 4 : 2, line = (rows ? C : S) * size;
    return N * C * S * size * tensors >= CN_PAST_BYTES && line % 64 == 0 && (uintptr_t)y % 64 == 0;
}

EXPORT int32_t calibnorm_affine(SHAPE, const void *x, const double *m, const double *scale, const double *shift,
                                const void *residual, int32_t relu, void *y)
{
    cn_job job = JOB(.x = x, .m = m, .scale = scale, .shift = shift, .residual = residual, .relu = relu, .y = y,
                     .past = past_caches(dtype, rows, N, C, S, 2, y));
    return pass(&job, table->affine[rows][dtype], NULL);
}

/* scale, shift, residual and masked_dy matter with relu alone; masked_dy is written where there is a residual. */
EXPORT int32_t calibnorm_gradient_sums(SHAPE, const void *dy, const void *x, const double *m, const double *scale,
                                       const double *shift, const void *residual, int32_t relu, void *masked_dy,
                                       double *sum_dy, double *sum_dy_centred)
{
    cn_job job = JOB(.dy = dy, .x = x, .m = m, .scale = scale, .shift = shift, .residual = residual, .relu = relu,
                     .y = masked_dy, .first = sum_dy, .second = sum_dy_centred);
    return pass(&job, table->gradient_sums[rows][dtype], table->merge_sums);
}

EXPORT int32_t calibnorm_gradient_apply(SHAPE, const void *dy, const void *x, const double *m, const double *scale,
                                        const double *slope, const double *offset, const double *shift, int32_t relu,
                                        void *dx)
{
    cn_job job = JOB(.dy = dy, .x = x, .m = m, .scale = scale, .slope = slope, .offset = offset, .shift = shift,
                     .relu = relu, .y = dx, .past = past_caches(dtype, rows, N, C, S, 3, dx));
    return pass(&job, table->gradient_apply[rows][dtype], NULL);
}

EXPORT void calibnorm_coefficients(cn_coefficient_job *job)
{
    /* A channel's number costs about as much as 8 pixels. */
    run(table->coefficients, (job->C + CN_CHANNEL_BLOCK - 1) / CN_CHANNEL_BLOCK, job->N * CN_CHANNEL_BLOCK * 16, job);
}

EXPORT void calibnorm_coefficients_vjp(cn_coefficient_job *job)
{
    run(table->coefficients_vjp, (job->C + CN_CHANNEL_BLOCK - 1) / CN_CHANNEL_BLOCK, job->N * CN_CHANNEL_BLOCK * 16,
        job);
}

/* Arguments of an update of running statistics of float or double. */
typedef struct {
    int64_t C;
    const double *mean, *var;
    void *running_mean, *running_var;
    int64_t *batches; /* the count of batches, or NULL */
    double momentum, unbias;
    int32_t dtype;
} cn_running_job;

#define MOVE(type)                                                             \
    for (int64_t c = 0; c < job->C; c++) {                                     \
        type *to = (type *)job->running_mean + c;                              \
        *to = (type)(*to + job->momentum * (job->mean[c] - *to));              \
        to = (type *)job->running_var + c;                                     \
        *to = (type)(*to + job->momentum * (job->var[c] * job->unbias - *to)); \
    }

/* Move running statistics towards those of a batch, and count it. */
EXPORT void calibnorm_update_running(const cn_running_job *job)
{
    if (job->dtype == CN_F32) {
        MOVE(float);
    } else {
        MOVE(double);
    }
    if (job->batches) ++*job->batches;
}

/* Scratch of one call: `numbers` arrays of (N, C) and room for the (C,) arrays as doubles. */
static double *scratch(const cn_layer_job *layer, int64_t numbers)
{
    return malloc(sizeof(double) * (size_t)((layer->N * numbers + 12) * layer->C));
}

/* Take `count` doubles from the scratch. */
static double *take(double **free_from, int64_t count)
{
    double *taken = *free_from;
    *free_from += count;
    return taken;
}

/* A (C,) array as doubles. */
static double *widened(const void *array, const cn_layer_job *layer, double **free_from)
{
    if (!array || !layer->narrow) return (double *)array;
    double *wide = take(free_from, layer->C);
    for (int64_t c = 0; c < layer->C; c++) wide[c] = ((const float *)array)[c];
    return wide;
}

/* The coefficient step, with its (C,) arrays, and its moments where there are none, as doubles in the scratch. */
static cn_coefficient_job prepared(const cn_layer_job *layer, double **free_from)
{
    const int given = layer->statistics == CN_GIVEN;
    const double *learnable[5];
    for (int i = 0; i < 5; i++) learnable[i] = widened(layer->learnable[i], layer, free_from);
    double *statistics[] = {layer->mean, layer->var};
    for (int i = 0; i < 2; i++)
        if (given) statistics[i] = widened(statistics[i], layer, free_from);
        else if (!statistics[i]) statistics[i] = take(free_from, layer->C);
    return (cn_coefficient_job){
        .N = layer->N,
        .C = layer->C,
        .S = layer->S,
        .center = layer->center,
        .gate = layer->gate,
        .gated = layer->gated,
        .statistics = layer->statistics,
        .eps = layer->eps,
        .noise_a = layer->noise_a,
        .noise_b = layer->noise_b,
        .m = layer->m ? layer->m : take(free_from, layer->N * layer->C),
        .v = layer->m ? layer->v : take(free_from, layer->N * layer->C),
        .mean = statistics[0],
        .var = statistics[1],
        .weight = learnable[0],
        .bias = learnable[1],
        .center_weight = learnable[2],
        .gate_weight = learnable[3],
        .gate_bias = learnable[4],
        .scale = take(free_from, layer->N * layer->C),
        .shift = take(free_from, layer->N * layer->C),
    };
}

#define LAYER_SHAPE layer->dtype, layer->rows, layer->N, layer->C, layer->S

/* Whether something needs the means of the instances. Plain BatchNorm with given statistics does not: what pixels are
 * centred with may be any number, and the given mean is best, which leaves no shift. It is kept in the place of theirs.
 */
static int needs_means(const cn_layer_job *layer)
{
    return layer->statistics != CN_GIVEN || layer->center != CN_CENTER_NONE || layer->gate != CN_GATE_NONE;
}

/* Whether something needs their variances: statistics of the batch, a method, or a backward. */
static int needs_variances(const cn_layer_job *layer)
{
    return layer->statistics != CN_GIVEN || layer->center == CN_CENTER_STD || layer->gate == CN_GATE_STD
           || (layer->m && needs_means(layer));
}

/* The moments that a step is to have. Return 1 where memory is short, else 0. */
static int32_t find_moments(const cn_layer_job *layer, const cn_coefficient_job *step)
{
    double *m = (double *)step->m, *v = needs_variances(layer) ? (double *)step->v : NULL;
    if (needs_means(layer)) return calibnorm_moments(LAYER_SHAPE, layer->x, m, v);
    for (int64_t n = 0; n < layer->N; n++) memcpy(m + n * layer->C, step->mean, sizeof(double) * (size_t)layer->C);
    memset((double *)step->v, 0, sizeof(double) * (size_t)(layer->N * layer->C));
    return 0;
}

/* With given statistics, where planes (or instances) are small enough: all three steps while pixels are in the caches,
 * which gives what three passes give. Return 1 where it is done, else 0. */
static int through(const cn_layer_job *layer, const cn_coefficient_job *step)
{
    const int64_t size = layer->dtype == CN_F64 ? 8 : layer->dtype == CN_F32 ? 4 : 2, N = layer->N, C = layer->C;
    const int64_t bytes = (layer->rows ? C : 1) * layer->S * size,
                  blocks = (C + CN_CHANNEL_BLOCK - 1) / CN_CHANNEL_BLOCK;
    cn_through_job job = {
        .pixels = {.N = N,
                   .C = C,
                   .S = layer->S,
                   .rows = layer->rows,
                   .x = layer->x,
                   .m = needs_means(layer) ? NULL : step->mean,
                   .residual = layer->residual,
                   .relu = layer->relu,
                   .y = layer->y,
                   .first = layer->m,
                   .second = layer->v,
                   .past = past_caches(LAYER_SHAPE, 2, layer->y)},
        .center = layer->center,
        .gate = layer->gate,
        .variances = needs_variances(layer),
        .ahead = 2 * N * C * layer->S * size >= CN_AHEAD_BYTES,
        .together = CN_CHANNEL_BLOCK,
    };
    cut(&job.pixels, layer->rows ? N : N * C, layer->rows ? C : 1);
    if (layer->S == 1 || job.pixels.chunks > 1 || bytes > CN_THROUGH_BYTES) return 0;
    while (job.together > 1 && job.together * bytes > CN_THROUGH_BYTES / 2) job.together /= 2;
    char *memory = malloc((size_t)(table->prepared_bytes * blocks + 64));
    if (!memory) return 0;
    job.channels = memory + 64 - (uintptr_t)memory % 64; /* vectors are aligned */
    table->prepare(step, (void *)job.channels);
    if (layer->rows) run(table->through[CN_ROWS][layer->dtype], N, layer->S * C, &job);
    else run(table->through[CN_PLANES][layer->dtype], N * blocks, layer->S * CN_CHANNEL_BLOCK, &job);
    free(memory);
    return 1;
}

/* moments, coefficients, affine. Returns 0, or 1 if memory is short. */
EXPORT int32_t calibnorm_forward(const cn_layer_job *layer)
{
    double *memory = scratch(layer, 4), *free_from = memory;
    if (!memory) return 1;
    cn_coefficient_job step = prepared(layer, &free_from);
    if (layer->statistics == CN_GIVEN && through(layer, &step)) {
        free(memory);
        return 0;
    }
    int32_t short_of_memory = find_moments(layer, &step);
    if (!short_of_memory) {
        calibnorm_coefficients(&step);
        short_of_memory = calibnorm_affine(LAYER_SHAPE, layer->x, step.m, step.scale, step.shift, layer->residual,
                                           layer->relu, layer->y);
    }
    if (!short_of_memory && layer->moved[0])
        calibnorm_update_running(&(cn_running_job){layer->C, step.mean, step.var, layer->moved[0], layer->moved[1],
                                                   layer->moved[2], layer->momentum, layer->unbias, layer->running});
    free(memory);
    return short_of_memory;
}

/* gradient sums, the step's vector-Jacobian product, gradient apply. Returns 0, or 1 if memory is short. */
EXPORT int32_t calibnorm_backward(const cn_layer_job *layer)
{
    const int64_t numbers = layer->N * layer->C;
    double *memory = scratch(layer, 8), *free_from = memory;
    if (!memory) return 1;
    cn_coefficient_job step = prepared(layer, &free_from);
    double *sums = take(&free_from, 2 * numbers);
    step.slope = take(&free_from, numbers);
    step.offset = take(&free_from, numbers);
    double **gradients[] = {
        &step.d_weight, &step.d_bias, &step.d_center_weight, &step.d_gate_weight, &step.d_gate_bias,
    };
    for (int i = 0; i < 5; i++)
        if (layer->found[i]) *gradients[i] = layer->narrow ? take(&free_from, layer->C) : layer->found[i];

    const int one = one_pixel(layer->dtype, layer->S) && !layer->relu; /* m is x: nothing else is asked of pixels */
    int32_t short_of_memory = 0;
    if (!layer->m)
        short_of_memory = one ? calibnorm_moments(LAYER_SHAPE, layer->x, (double *)step.m, (double *)step.v)
                              : find_moments(layer, &step);
    if (!short_of_memory) {
        if (layer->relu) calibnorm_coefficients(&step);
        if (one) {
            widen(layer->dtype, numbers, layer->dy, sums);
            memset(sums + numbers, 0, sizeof(double) * (size_t)numbers);
        } else
            short_of_memory = calibnorm_gradient_sums(
                LAYER_SHAPE, layer->dy, layer->x, step.m, layer->relu ? step.scale : NULL,
                layer->relu ? step.shift : NULL, layer->residual, layer->relu, layer->masked, sums, sums + numbers);
    }
    if (!short_of_memory) {
        step.sum_dy = sums;
        step.sum_dy_centred = sums + numbers;
        calibnorm_coefficients_vjp(&step);
        const int again = layer->relu && !layer->masked; /* the mask is computed a second time */
        if (layer->y)
            short_of_memory = calibnorm_gradient_apply(LAYER_SHAPE, layer->masked ? layer->masked : layer->dy, layer->x,
                                                       step.m, step.scale, step.slope, step.offset,
                                                       again ? step.shift : NULL, again, layer->y);
    }
    for (int i = 0; i < 5 && layer->narrow; i++)
        for (int64_t c = 0; layer->found[i] && c < layer->C; c++)
            ((float *)layer->found[i])[c] = (float)(*gradients[i])[c];
    free(memory);
    return short_of_memory;
}

/* Tensors of a program: with instances, and without. */
typedef struct {
    const double *rows[4];
    double *rows_out[3];
    double *const *fixed, *const *fixed_out;
} cn_tensors;

#define CN_BLOCK_DOUBLES 8192 /* a unit's scratch: a few arrays of this size together stay in the second cache */

/* Run a program on N instances. Return 1 where memory is short, else 0. */
static int32_t run_program(const cn_program *program, int64_t N, int64_t C, const cn_tensors *tensors)
{
    const cn_memory *memory = program_memories(program);
    const int64_t scratch = program->fixed + N * program->whole;
    double **memories = malloc(sizeof(double *) * (size_t)program->memories + sizeof(double) * (size_t)scratch);
    if (!memories) return 1;
    double *fixed = (double *)(memories + program->memories), *whole = fixed + program->fixed;
    for (int64_t k = 0; k < program->memories; k++) {
        const int64_t place = memory[k].place;
        switch (memory[k].kind) {
        case CN_WHOLE:
            memories[k] = whole + N * place;
            break;
        case CN_FIXED:
            memories[k] = fixed + place;
            break;
        case CN_ROWS_IN:
            memories[k] = (double *)tensors->rows[place];
            break;
        case CN_FIXED_IN:
            memories[k] = tensors->fixed[place];
            break;
        case CN_ROWS_OUT:
            memories[k] = tensors->rows_out[place];
            break;
        case CN_FIXED_OUT:
            memories[k] = tensors->fixed_out[place];
            break;
        case CN_NUMBER:
            memories[k] = fixed + place;
            *memories[k] = memory[k].value;
            if (memory[k].power) *memories[k] *= memory[k].power > 0 ? (double)N : 1.0 / (double)N;
            break;
        default:
            memories[k] = NULL;
        }
    }
    cn_stage_job job = {.program = program, .memories = memories, .N = N};
    job.block = program->local ? CN_BLOCK_DOUBLES / program->local : N;
    if (job.block < 1) job.block = 1;
    for (int64_t k = 0; k < program->stages && !job.failed; k++) {
        job.stage = program_stages(program) + k;
        const int64_t units = job.stage->number % 2 ? (N + job.block - 1) / job.block : 1;
        run(table->stage, units, job.block * C * job.stage->count, &job);
    }
    free(memories);
    return job.failed;
}

/* Run a program by itself: `tensors` are those with instances, then those without, then the same of what it leaves. */
EXPORT int32_t calibnorm_program(const cn_program *program, int64_t N, int64_t C, int64_t rows, int64_t rows_out,
                                 double *const *tensors)
{
    cn_tensors t = {.fixed = tensors + rows, .fixed_out = tensors + rows + program->inputs + rows_out};
    for (int64_t i = 0; i < rows; i++) t.rows[i] = tensors[i];
    for (int64_t i = 0; i < rows_out; i++) t.rows_out[i] = tensors[rows + program->inputs + i];
    return run_program(program, N, C, &t);
}

/* Doubles of the tensors of a kind. */
static int64_t doubles(const cn_program *program, int64_t kind)
{
    int64_t count = 0;
    for (int64_t k = 0; k < program->memories; k++)
        if (program_memories(program)[k].kind == kind) count += program_memories(program)[k].size;
    return count;
}

/* Fill `tensors` with those of a kind as doubles: `given` where it is of doubles (from the `wide`th on always), else
 * room for them, into which inputs are widened. */
static void as_doubles(const cn_program *program, int64_t kind, void *const *given, const cn_traced_job *layer,
                       int64_t wide, double **free_from, double **tensors)
{
    for (int64_t k = 0; k < program->memories; k++) {
        const cn_memory *memory = program_memories(program) + k;
        const int64_t i = memory->place;
        if (memory->kind != kind) continue;
        tensors[i] = given[i];
        if (tensors[i] && (!layer->narrow || i >= wide)) continue;
        tensors[i] = take(free_from, memory->size);
        for (int64_t j = 0; kind == CN_FIXED_IN && j < memory->size; j++) tensors[i][j] = ((const float *)given[i])[j];
    }
}

/* Whether a program reads the tensor with instances at this place. */
static int reads_rows(const cn_program *program, int64_t place)
{
    for (int64_t k = 0; k < program->instructions; k++) {
        const cn_instruction *at = program_instructions(program) + k;
        for (int64_t i = 0; i < at->operands; i++) {
            const cn_memory *memory = program_memories(program) + at->of[i].memory;
            if (memory->kind == CN_ROWS_IN && memory->place == place) return 1;
        }
    }
    return 0;
}

/* moments, coefficients, affine. Returns 0, or 1 if memory is short. */
EXPORT int32_t calibnorm_traced_forward(const cn_traced_job *layer)
{
    const cn_program *program = layer->coefficients;
    const int64_t numbers = layer->N * layer->C, inputs = program->inputs;
    const size_t size = sizeof(double) * (size_t)(4 * numbers + doubles(program, CN_FIXED_IN) + inputs);
    double *memory = malloc(size), *free_from = memory;
    if (!memory) return 1;
    double **fixed = (double **)take(&free_from, inputs);
    as_doubles(program, CN_FIXED_IN, layer->tensors, layer, inputs - layer->wide, &free_from, fixed);
    double *m = layer->m ? layer->m : take(&free_from, numbers), *v = layer->m ? layer->v : take(&free_from, numbers);
    double *scale = take(&free_from, numbers), *shift = take(&free_from, numbers);
    const cn_tensors tensors = {.rows = {m, v},
                                .rows_out = {scale, shift},
                                .fixed = fixed,
                                .fixed_out = (double *const *)(layer->tensors + inputs)};
    double *variances = layer->m || reads_rows(program, 1) ? v : NULL; /* a backward may want them */
    int32_t short_of_memory = calibnorm_moments(LAYER_SHAPE, layer->x, m, variances);
    if (!short_of_memory) short_of_memory = run_program(program, layer->N, layer->C, &tensors);
    if (!short_of_memory)
        short_of_memory =
            calibnorm_affine(LAYER_SHAPE, layer->x, m, scale, shift, layer->residual, layer->relu, layer->y);
    free(memory);
    return short_of_memory;
}

/* gradient sums, the step's vector-Jacobian product, gradient apply. Returns 0, or 1 if memory is short. */
EXPORT int32_t calibnorm_traced_backward(const cn_traced_job *layer)
{
    const cn_program *program = layer->vjp;
    const int64_t numbers = layer->N * layer->C, inputs = program->inputs, outputs = program->outputs;
    const int64_t fixed_doubles = doubles(program, CN_FIXED_IN) + doubles(program, CN_FIXED_OUT);
    double *memory = malloc(sizeof(double) * (size_t)(8 * numbers + fixed_doubles + inputs + outputs));
    double *free_from = memory;
    if (!memory) return 1;
    double **fixed = (double **)take(&free_from, inputs), **found = (double **)take(&free_from, outputs);
    void *const *gradients = layer->tensors + inputs;
    as_doubles(program, CN_FIXED_IN, layer->tensors, layer, inputs - layer->wide, &free_from, fixed);
    as_doubles(program, CN_FIXED_OUT, gradients, layer, outputs, &free_from, found);
    double *m = layer->m ? layer->m : take(&free_from, numbers), *v = layer->m ? layer->v : take(&free_from, numbers);
    double *scale = take(&free_from, numbers), *shift = take(&free_from, numbers);
    double *sum_dy = take(&free_from, numbers), *sum_dy_centred = take(&free_from, numbers);
    double *offset = take(&free_from, numbers), *slope = take(&free_from, numbers);

    int32_t short_of_memory = layer->m ? 0 : calibnorm_moments(LAYER_SHAPE, layer->x, m, v);
    if (!short_of_memory && layer->relu) { /* what the mask is computed from */
        const cn_tensors tensors = {.rows = {m, v}, .rows_out = {scale, shift}, .fixed = fixed};
        short_of_memory = run_program(layer->coefficients, layer->N, layer->C, &tensors);
    }
    if (!short_of_memory)
        short_of_memory = calibnorm_gradient_sums(LAYER_SHAPE, layer->dy, layer->x, m, layer->relu ? scale : NULL,
                                                  layer->relu ? shift : NULL, layer->residual, layer->relu,
                                                  layer->masked, sum_dy, sum_dy_centred);
    if (!short_of_memory) {
        const cn_tensors tensors = {.rows = {m, v, sum_dy, sum_dy_centred},
                                    .rows_out = {scale, offset, slope},
                                    .fixed = fixed,
                                    .fixed_out = found};
        short_of_memory = run_program(program, layer->N, layer->C, &tensors);
    }
    if (!short_of_memory && layer->y) {
        const int again = layer->relu && !layer->masked; /* the mask is computed a second time */
        const double per_pixel = 1.0 / (double)layer->S;
        for (int64_t i = 0; i < numbers; i++) {
            offset[i] = (offset[i] - scale[i] * sum_dy[i]) * per_pixel;
            slope[i] *= 2.0 * per_pixel;
        }
        short_of_memory = calibnorm_gradient_apply(LAYER_SHAPE, layer->masked ? layer->masked : layer->dy, layer->x, m,
                                                   scale, slope, offset, again ? shift : NULL, again, layer->y);
    }
    for (int64_t k = 0; k < program->memories && layer->narrow; k++) {
        const cn_memory *out = program_memories(program) + k;
        float *to = out->kind == CN_FIXED_OUT ? gradients[out->place] : NULL;
        for (int64_t j = 0; to && j < out->size; j++) to[j] = (float)found[out->place][j];
    }
    free(memory);
    return short_of_memory;
}
