/* A coefficient step as a program: instructions over instances and up to two more dimensions, all in double. Python
 * writes programs (calibnorm/ops/programs), whose bytes are a head, memories, stages and instructions of the types
 * below. */
#ifndef CALIBNORM_PROGRAMS_H
#define CALIBNORM_PROGRAMS_H

#include <stdint.h>

/* Where a memory lies: in a unit's scratch; in the call's, with instances and without; a number times a power of N;
 * tensors of the caller. */
enum { CN_LOCAL, CN_WHOLE, CN_FIXED, CN_NUMBER, CN_ROWS_IN, CN_FIXED_IN, CN_ROWS_OUT, CN_FIXED_OUT };

typedef struct {
    int64_t memories, stages, instructions;
    int64_t local, whole, fixed; /* scratch: doubles an instance, twice, and doubles */
    int64_t inputs, outputs;     /* tensors without instances */
} cn_program;

typedef struct {
    int64_t kind, place, size; /* size: doubles, an instance's where it has instances */
    double value;
    int64_t power;
} cn_memory;

/* Instructions [first, first + count). Odd stages run over blocks of instances. */
typedef struct {
    int64_t number, first, count;
} cn_stage;

typedef struct {
    int64_t memory, offset, row, a, b; /* strides of instances and of the two dimensions */
} cn_operand;

typedef struct {
    int64_t code, rows, flat, a, b, operands; /* flat: one long row, along which an operand goes on or stays */
    cn_operand to, of[3];
} cn_instruction;

static inline const cn_memory *program_memories(const cn_program *p) { return (const cn_memory *)(p + 1); }
static inline const cn_stage *program_stages(const cn_program *p)
{
    return (const cn_stage *)(program_memories(p) + p->memories);
}
static inline const cn_instruction *program_instructions(const cn_program *p)
{
    return (const cn_instruction *)(program_stages(p) + p->stages);
}

/* Arguments of a stage. */
typedef struct {
    const cn_program *program;
    const cn_stage *stage;
    double **memories;
    int64_t N, block;
    int failed; /* a unit found no memory */
} cn_stage_job;

/* Arguments of a whole layer, one direction, as cn_layer_job's. `tensors` are the inputs of the programs, of floats
 * where `narrow` but for the last `wide`, then the outputs: statistics of doubles, or gradients (or NULL) as the
 * inputs. */
typedef struct {
    int64_t N, C, S, wide;
    int32_t dtype, rows, relu, narrow;
    double *m, *v;
    const cn_program *coefficients, *vjp; /* backward needs the first with a ReLU alone */
    const void *x, *residual, *dy;
    void *y, *masked;
    void *tensors[];
} cn_traced_job;

#endif
