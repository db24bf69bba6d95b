/* Every kernel for one instruction set. Compiled once a set, with its flags, CN_BYTES (a vector's size) and CN_TABLE
 * (the table's name). */
#include "kernels.h"

#include <stddef.h>

#include "simd.h"
#include "exponential.h"

#define TILE 2048 /* pixels that are read twice: 8 KiB of float, a quarter of the smallest L1 */
#define BLOCK 16  /* vectors of columns: 1 KiB of a row with AVX-512 */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)

#define A float
#define V vf32
#define MASK vi32
#define MASK_LANE int32_t
#define IOTA iota_f32
#define TOTAL total_f32
#define LANES (CN_BYTES / 4)

#define SUFFIX f32
#define T float
#define LOAD load_f32
#define STORE store_f32
#define ROUND round_f32
#define FIRST(p) ((V){0} + *(p))
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX
#undef T
#undef LOAD
#undef STORE
#undef ROUND
#undef FIRST

#define T uint16_t
#define SUFFIX bf16
#define LOAD load_bf16
#define STORE store_bf16
#define ROUND round_bf16
#define FIRST(p) widen_bf16((vu16){0} + *(p))
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX
#undef LOAD
#undef STORE
#undef ROUND
#undef FIRST

#define SUFFIX f16
#define LOAD load_f16
#define STORE store_f16
#define ROUND round_f16
#define FIRST(p) widen_f16((vu16){0} + *(p))
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#undef SUFFIX
#undef T
#undef LOAD
#undef STORE
#undef ROUND
#undef FIRST

#undef A
#undef V
#undef MASK
#undef MASK_LANE
#undef IOTA
#undef TOTAL
#undef LANES

#define A double
#define V vf64
#define MASK vi64
#define MASK_LANE int64_t
#define IOTA iota_f64
#define TOTAL total_f64
#define LANES (CN_BYTES / 8)

#define SUFFIX f64
#define T double
#define LOAD load_f64
#define STORE store_f64
#define ROUND round_f64
#define FIRST(p) ((V){0} + *(p))
#include "lanes.inc.h"
#include "planes.inc.h"
#include "rows.inc.h"
#include "merge.h"
#include "coefficients.h"

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
};
