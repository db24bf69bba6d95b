/* The instructions of programs (programs.h), for one instruction set. */
#include <math.h>
#include <stdlib.h>

#include "programs.h"

/* `to` and up to three operands, each with a stride of 0, 1 or more. */
#define ARGUMENTS                                                                                                 \
    int64_t n, double *to, int64_t st, const double *x, int64_t sx, const double *y, int64_t sy, const double *z, \
        int64_t sz
typedef void (*instruction)(ARGUMENTS);

/* An operand may be overwritten, each number after it was read: what compilers would test for, and then do slowly. */
#if defined(__clang__)
#define IN_PLACE _Pragma("clang loop vectorize(assume_safety)")
#else
#define IN_PLACE _Pragma("GCC ivdep")
#endif
/* A loop for each way in which strides are 0 and 1, which becomes vectors, and one for the rest. */
#define LOOP(assign, st, sx, sy, sz, EXPR)                              \
    IN_PLACE for (int64_t i = 0; i < n; i++)                            \
    {                                                                   \
        const double X = x[i * (sx)], Y = y[i * (sy)], Z = z[i * (sz)]; \
        to[i * (st)] assign(EXPR);                                      \
        (void)X, (void)Y, (void)Z;                                      \
    }
#define WAYS(assign, EXPR)                                                            \
    if (st == 1 && sx == 1 && sy == 1 && sz == 1) LOOP(assign, 1, 1, 1, 1, EXPR)      \
    else if (st == 1 && sx == 0 && sy == 1 && sz == 1) LOOP(assign, 1, 0, 1, 1, EXPR) \
    else if (st == 1 && sx == 1 && sy == 0 && sz == 1) LOOP(assign, 1, 1, 0, 1, EXPR) \
    else if (st == 1 && sx == 1 && sy == 1 && sz == 0) LOOP(assign, 1, 1, 1, 0, EXPR) \
    else LOOP(assign, st, sx, sy, sz, EXPR)
#define ELEMENTWISE(name, EXPR) \
    static void do_##name(ARGUMENTS) { WAYS(=, EXPR) }

ELEMENTWISE(copy, X)
ELEMENTWISE(add, X + Y)
ELEMENTWISE(sub, X - Y)
ELEMENTWISE(mul, X *Y)
ELEMENTWISE(div, X / Y)
ELEMENTWISE(maximum, X > Y || X != X ? X : Y)
ELEMENTWISE(minimum, X < Y || X != X ? X : Y)
ELEMENTWISE(where, X != 0 ? Y : Z)
ELEMENTWISE(neg, -X)
ELEMENTWISE(abs, fabs(X))
ELEMENTWISE(sign, (double)(X > 0) - (double)(X < 0))
ELEMENTWISE(square, X *X)
ELEMENTWISE(sqrt, sqrt(X))
ELEMENTWISE(rsqrt, 1 / sqrt(X))
ELEMENTWISE(reciprocal, 1 / X)
ELEMENTWISE(log, log(X))
ELEMENTWISE(cube, X * X * X)
ELEMENTWISE(pow, pow(X, Y))
ELEMENTWISE(sigmoid_backward, X * ((1 - Y) * Y))
ELEMENTWISE(tanh_backward, X * (1 - Y * Y))
ELEMENTWISE(eq, X == Y)
ELEMENTWISE(ne, X != Y)
ELEMENTWISE(lt, X < Y)
ELEMENTWISE(le, X <= Y)
ELEMENTWISE(gt, X > Y)
ELEMENTWISE(ge, X >= Y)
ELEMENTWISE(and, X != 0 && Y != 0)
ELEMENTWISE(or, X != 0 || Y != 0)
ELEMENTWISE(not, X == 0)
ELEMENTWISE(exp_minus_1, expm1(X))
ELEMENTWISE(log_plus_1, log1p(X))
ELEMENTWISE(sin, sin(X))
ELEMENTWISE(cos, cos(X))
ELEMENTWISE(erf, erf(X))

/* Of vectors, because libm's exp is one number a call. */
#define VECTORS(name, function)                                            \
    static void do_##name(ARGUMENTS)                                       \
    {                                                                      \
        for (int64_t i = 0; i < n; i += CN_DOUBLES) {                      \
            const int64_t lanes = n - i < CN_DOUBLES ? n - i : CN_DOUBLES; \
            double in[CN_DOUBLES] = {0}, out[CN_DOUBLES];                  \
            for (int64_t k = 0; k < lanes; k++) in[k] = x[(i + k) * sx];   \
            store_f64(out, function(load_f64(in)));                        \
            for (int64_t k = 0; k < lanes; k++) to[(i + k) * st] = out[k]; \
        }                                                                  \
        (void)y, (void)sy, (void)z, (void)sz;                              \
    }
/* The exponential function with the values beyond the range of `exponential`. */
INLINE vector_f64 whole_exponential(vector_f64 x)
{
    vector_f64 v = choose_f64(x > 709.782712893384, all_f64(INFINITY), exponential(x));
    return choose_f64(x < -745.2, all_f64(0), v);
}
VECTORS(exp, whole_exponential)
VECTORS(sigmoid, logistic)
/* By the logistic function, whose difference from 1/2 has no digits near 0: a series there. */
INLINE vector_f64 hyperbolic_tangent(vector_f64 x)
{
    const vector_f64 x2 = x * x, far = 2.0 * logistic(2.0 * x) - 1.0;
    const vector_f64 near = x - x * x2 * (1.0 / 3.0 - x2 * (2.0 / 15.0 - x2 * (17.0 / 315.0)));
    return choose_f64(absolute_f64(x) < 0x1p-6, near, far);
}
VECTORS(tanh, hyperbolic_tangent)

/* to += x * y, or x alone; summed to one number where `to` stays, lanes in a fixed order. */
#define SUMS(name, UNIT, VECTOR_TERM, TERM)                        \
    static void do_##name(ARGUMENTS)                               \
    {                                                              \
        if (st) {                                                  \
            WAYS(+=, TERM)                                         \
            return;                                                \
        }                                                          \
        double total = 0;                                          \
        int64_t i = 0;                                             \
        if ((UNIT) && n >= 2 * CN_DOUBLES) {                       \
            vector_f64 first = {0}, second = {0};                  \
            for (; i + 2 * CN_DOUBLES <= n; i += 2 * CN_DOUBLES) { \
                first += VECTOR_TERM(i);                           \
                second += VECTOR_TERM(i + CN_DOUBLES);             \
            }                                                      \
            total = total_f64(first + second);                     \
        }                                                          \
        for (; i < n; i++) {                                       \
            const double X = x[i * sx], Y = y[i * sy];             \
            total += TERM;                                         \
            (void)X, (void)Y;                                      \
        }                                                          \
        *to += total;                                              \
    }
#define ONE(i) load_f64(x + (i))
#define PRODUCT(i) load_f64(x + (i)) * load_f64(y + (i))
SUMS(sum, sx == 1, ONE, X)
SUMS(product_sum, sx == 1 && sy == 1, PRODUCT, X *Y)
#undef ONE
#undef PRODUCT

static void do_softmax(ARGUMENTS)
{
    double most = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i++) most = x[i * sx] > most || x[i * sx] != x[i * sx] ? x[i * sx] : most;
    for (int64_t i = 0; i < n; i++) to[i * st] = x[i * sx] - most;
    do_exp(n, to, st, to, st, to, st, to, st);
    for (int64_t i = 0; i < n; i++) total += to[i * st];
    for (int64_t i = 0; i < n; i++) to[i * st] /= total;
    (void)y, (void)sy, (void)z, (void)sz;
}

/* Of x, the gradient of the result y. */
static void do_softmax_backward(ARGUMENTS)
{
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += x[i * sx] * y[i * sy];
    for (int64_t i = 0; i < n; i++) to[i * st] = (x[i * sx] - total) * y[i * sy];
    (void)z, (void)sz;
}

/* In the order of CODES of calibnorm/ops/programs/lowering.py. */
static const instruction instructions[] = {
    do_copy,
    do_add,
    do_sub,
    do_mul,
    do_div,
    do_maximum,
    do_minimum,
    do_where,
    do_sum,
    do_product_sum,
    do_neg,
    do_abs,
    do_sign,
    do_square,
    do_cube,
    do_sqrt,
    do_rsqrt,
    do_reciprocal,
    do_exp,
    do_log,
    do_sigmoid,
    do_tanh,
    do_pow,
    do_sigmoid_backward,
    do_tanh_backward,
    do_softmax,
    do_softmax_backward,
    do_eq,
    do_ne,
    do_lt,
    do_le,
    do_gt,
    do_ge,
    do_and,
    do_or,
    do_not,
    do_exp_minus_1,
    do_log_plus_1,
    do_sin,
    do_cos,
    do_erf,
};

/* Run an instruction on `rows` instances, whose first one `memories` point at. */
static void execute(const cn_instruction *i, double *const *memories, int64_t rows)
{
    const instruction f = instructions[i->code];
    double *to = memories[i->to.memory] + i->to.offset;
    const double *of[3];
    cn_operand o[3];
    for (int k = 0; k < 3; k++) { /* what is not there is not read, and does not choose the loop */
        o[k] = k < i->operands ? i->of[k] : (cn_operand){.memory = i->of[0].memory, .row = 1, .b = 1};
        of[k] = memories[o[k].memory] + o[k].offset;
    }
    if (i->flat) {
        f(rows * i->a * i->b, to, 1, of[0], o[0].row != 0, of[1], o[1].row != 0, of[2], o[2].row != 0);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t a = 0; a < i->a; a++)
            f(i->b, to + r * i->to.row + a * i->to.a, i->to.b, of[0] + r * o[0].row + a * o[0].a, o[0].b,
              of[1] + r * o[1].row + a * o[1].a, o[1].b, of[2] + r * o[2].row + a * o[2].a, o[2].b);
}

/* An even stage: once, with all instances where an instruction has some. An odd one: units are blocks of instances. */
static void run_stage(int64_t begin, int64_t end, void *p)
{
    cn_stage_job *job = p;
    const cn_program *program = job->program;
    const cn_instruction *first = program_instructions(program) + job->stage->first;
    if (job->stage->number % 2 == 0) {
        for (int64_t k = 0; k < job->stage->count; k++) execute(first + k, job->memories, first[k].rows ? job->N : 1);
        return;
    }
    const cn_memory *memory = program_memories(program);
    double **here = malloc(sizeof(double *) * (size_t)program->memories);
    double *scratch = malloc(sizeof(double) * (size_t)(program->local * job->block + 1));
    if (!here || !scratch) job->failed = 1;
    for (int64_t unit = begin; here && scratch && unit < end; unit++) {
        const int64_t at = unit * job->block, rows = job->N - at < job->block ? job->N - at : job->block;
        for (int64_t k = 0; k < program->memories; k++) {
            const int64_t kind = memory[k].kind;
            const int with_rows = kind == CN_WHOLE || kind == CN_ROWS_IN || kind == CN_ROWS_OUT;
            here[k] = kind == CN_LOCAL ? scratch + memory[k].place * job->block
                                       : job->memories[k] + (with_rows ? at * memory[k].size : 0);
        }
        for (int64_t k = 0; k < job->stage->count; k++) execute(first + k, here, rows);
    }
    free(here);
    free(scratch);
}

#undef ARGUMENTS
#undef LOOP
#undef IN_PLACE
#undef WAYS
#undef ELEMENTWISE
#undef VECTORS
#undef SUMS
