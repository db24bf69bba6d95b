/* What the kernels and their callers share: one job description, one table of functions per instruction set. */
#ifndef CALIBNORM_KERNELS_H
#define CALIBNORM_KERNELS_H

#include <stdint.h>

enum { CN_F32, CN_F64, CN_BF16, CN_F16, CN_DTYPES };
enum { CN_PLANES, CN_ROWS, CN_LAYOUTS }; /* (N, C, S): planes of S values; (N, S, C): rows of C values */

/* Arguments of a pass over pixels. Pixels have the job's dtype; (N, C) numbers are double. Work is cut into units by
 * shape alone, never by the number of threads, so that results do not depend on it: `chunks` units a plane (CN_PLANES),
 * or an instance (CN_ROWS), each of `chunk` pixels but the last. */
typedef struct {
    int64_t N, C, S, chunks, chunk;
    const void *x, *dy, *residual;
    const double *m, *scale, *shift, *slope, *offset;
    void *y;                /* affine: y; gradient_apply: dx; gradient_sums: the masked dy, or NULL */
    double *first, *second; /* moments: m, v or NULL; gradient_sums: S1, S2 */
    double *partial;        /* what units found, where `chunks` is not 1; see merge.h */
    int relu, rows;
    int past; /* write y past the caches: it is larger than they are, and its vectors are aligned */
} cn_job;

/* Arguments of a layer with given statistics in one pass: no plane waits for another one. */
typedef struct {
    cn_job pixels;        /* the affine pass's; first and second, or NULL, take the moments; m, (C,), replaces them */
    const void *channels; /* what the coefficient step has prepared */
    int center, gate;
    int variances; /* whether anything needs the instances' own */
    int ahead;     /* fetch what is read next meanwhile: it may not be in the last cache */
    int together;  /* planes whose pixels stay in the caches between the two readings, a power of two */
} cn_through_job;

/* A share of a job: units [begin, end). The type that torch_parallel_for wants. */
typedef void (*cn_work)(int64_t begin, int64_t end, void *job);

/* Arguments of the coefficient step. All arrays are double. */
enum { CN_CENTER_NONE, CN_CENTER_MEAN, CN_CENTER_STD };
enum { CN_GATE_NONE, CN_GATE_STANDARDIZED, CN_GATE_STD, CN_GATE_INPUT };
enum { CN_GATE_GAMMA = 1, CN_GATE_BETA = 2 };
enum { CN_OF_BATCH, CN_GIVEN, CN_FOUND }; /* mean and var: to be found; constants; this batch's, found before */

typedef struct {
    int64_t N, C, S;
    int32_t center, gate, gated, statistics;
    double eps, noise_a, noise_b;
    const double *m, *v;                                                   /* (N, C) */
    double *mean, *var;                                                    /* (C,): written where of the batch */
    const double *weight, *bias, *center_weight, *gate_weight, *gate_bias; /* (C,) or NULL */
    double *scale, *shift;                                                 /* (N, C); gradient step: scale alone */
    const double *sum_dy, *sum_dy_centred;                                 /* (N, C); from here on: the gradient step */
    double *slope, *offset;
    double *d_weight, *d_bias, *d_center_weight, *d_gate_weight, *d_gate_bias; /* (C,) or NULL */
    double *d_mean, *d_var; /* (C,): of given statistics, where wanted, which other processes then add to */
} cn_coefficient_job;

/* Arguments of a whole layer, one direction. Where `narrow`, the learnable arrays, their gradients, and mean and var
 * where CN_GIVEN are of float, not of double. Moments that are NULL are found anew and not kept. A ReLU masks dy; with
 * a residual, `masked` takes the masked dy, its gradient. `moved`, or NULL, are running statistics of dtype `running`
 * and the count of batches, or NULL, which forward moves last. */
typedef struct {
    int64_t N, C, S;
    int32_t center, gate, gated, statistics, dtype, rows, relu, narrow, running;
    double eps, noise_a, noise_b, momentum, unbias;
    double *m, *v;
    void *mean, *var;         /* of a batch whose statistics nobody wants: NULL */
    const void *learnable[5]; /* in the order of the coefficient step */
    const void *x, *residual, *dy;
    void *y, *masked; /* y: the output; backward: dx, or NULL where x needs no gradient */
    void *found[5];   /* gradients of the learnable arrays, or NULL */
    void *moved[3];
} cn_layer_job;

typedef struct {
    cn_work moments[CN_LAYOUTS][CN_DTYPES];
    cn_work gradient_sums[CN_LAYOUTS][CN_DTYPES];
    cn_work affine[CN_LAYOUTS][CN_DTYPES];
    cn_work gradient_apply[CN_LAYOUTS][CN_DTYPES];
    cn_work merge_moments; /* from partial to first and second; units are planes, or instances */
    cn_work merge_sums;
    cn_work coefficients; /* units are blocks of channels */
    cn_work coefficients_vjp;
    cn_work through[CN_LAYOUTS][CN_DTYPES]; /* units are CN_CHANNEL_BLOCK planes of an instance, or an instance */
    void (*prepare)(const cn_coefficient_job *job, void *channels);
    int64_t prepared_bytes; /* of every CN_CHANNEL_BLOCK channels */
    cn_work stage;          /* of a program; units are blocks of instances, or one */
} cn_table;

extern const cn_table cn_table_base, cn_table_avx2, cn_table_avx512;

#define CN_CHANNEL_BLOCK 16 /* channels a unit of the coefficient step: a vector or two of doubles */

#endif
