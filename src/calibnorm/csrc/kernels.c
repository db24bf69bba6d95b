/* Every kernel for one instruction set. Compiled once a set, with its flags, CN_BYTES (a vector's size) and CN_TABLE
 * (the table's name). */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-loop-unroll-and-jam") /* it would read two rows at a time */
#endif
#include "kernels.h"

#include <stddef.h>

#include "simd.h"
#include "exponential.h"
#include "merge.h"
#include "coefficients.h"
#include "instructions.h"

#define TILE 2048 /* pixels that are read twice: 8 KiB of float, a quarter of the smallest L1 */
#define STRIP 32  /* vectors of columns whose numbers and sums stay in L1 */
#define BLOCK 4   /* of those, as many as stay in registers */
#define LOW 8     /* rows of a tile that is written, or of two tensors: streams that a processor fetches ahead */
#define ROWS 64   /* rows whose sums are of the accumulation type alone */

/* The passes are written once and included once a dtype, with SUFFIX its name; simd.h knows the rest by that. */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)
#define T FN(pixel)       /* what memory holds */
#define A FN(accumulator) /* what is computed with */
#define V FN(vector)      /* of A */
#define MASK FN(mask)     /* of MASK_LANE, integers of A's size */
#define MASK_LANE FN(mask_lane)
#define LANES ((int64_t)(sizeof(V) / sizeof(A)))
#define LOAD FN(load)
#define LOADS FN(loads)
#define STORE FN(store)
#define STORES FN(stores)
#if CN_BYTES > 16
#define STREAM FN(stream)
#define STREAMS FN(streams)
#else
#define STREAM STORE
#define STREAMS STORES
#endif
#define SPREAD FN(spread)
#define FIRST FN(first)
#define IOTA FN(iota)
#define TOTAL FN(total)
#define TOTALS FN(totals)
#define TINY FN(tiny)

#define SUFFIX f32
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX

#define SUFFIX bf16
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX

#define SUFFIX f16
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX

#define SUFFIX f64
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"

#define EACH(name) {name##_f32, name##_f64, name##_bf16, name##_f16}

const cn_table CN_TABLE = {
    .moments = {EACH(moments_planes), EACH(moments_rows)},
    .gradient_sums = {EACH(gradient_sums_planes), EACH(gradient_sums_rows)},
    .affine = {EACH(affine_planes), EACH(affine_rows)},
    .gradient_apply = {EACH(gradient_apply_planes), EACH(gradient_apply_rows)},
    .merge_moments = merge_moments,
    .merge_sums = merge_sums,
    .coefficients = coefficients,
    .coefficients_vjp = coefficients_vjp,
    .through = {EACH(through_planes), EACH(through_rows)},
    .prepare = prepare_channels,
    .prepared_bytes = sizeof(coefficient_channels) * CN_CHANNEL_BLOCK / CN_DOUBLES,
    .stage = run_stage,
};
