/* Run by test_aarch64.py under an emulator, where there is no torch: argv[1] is the library, built for this processor.
 * Prints, for each dtype, the largest error of the moments and of the affine pass against plain loops in long double:
 * absolute for moments of numbers from -1 to 3, relative to 1 + |y| for the affine pass. */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { F32, F64, BF16, F16 };

static const int64_t SHAPES[][3] = {{2, 3, 49}, {3, 17, 196}, {2, 5, 1}, {1, 4, 70001}, {4, 64, 16}, {2, 31, 3136}};

static double get(const void *x, int dtype, int64_t i)
{
    return dtype == F32 ? ((const float *)x)[i] : dtype == F64 ? ((const double *)x)[i] : ((const __fp16 *)x)[i];
}

static void set(void *x, int dtype, int64_t i, double value)
{
    if (dtype == F32) ((float *)x)[i] = (float)value;
    else if (dtype == F64) ((double *)x)[i] = value;
    else ((__fp16 *)x)[i] = (__fp16)value;
}

int main(int count, char **arguments)
{
    void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    const char *(*start)(void *, const char *) = dlsym(library, "calibnorm_start");
    int (*moments)(int, int, int64_t, int64_t, int64_t, void *, void *, void *) = dlsym(library, "calibnorm_moments");
    int (*affine)(int, int, int64_t, int64_t, int64_t, void *, void *, void *, void *, void *, int, void *) =
        dlsym(library, "calibnorm_affine");
    start(NULL, NULL);
    static const int DTYPES[] = {F32, F64, F16};
    for (int d = 0; d < 3; d++) {
        int dtype = DTYPES[d];
        double worst_moment = 0, worst_y = 0;
        for (int s = 0; s < 6; s++)
            for (int rows = 0; rows < 2; rows++) {
                int64_t N = SHAPES[s][0], C = SHAPES[s][1], S = SHAPES[s][2], n = N * C * S;
                void *x = malloc(8 * n), *y = malloc(8 * n);
                double *m = malloc(8 * N * C), *v = malloc(8 * N * C);
                double *scale = malloc(8 * N * C), *shift = malloc(8 * N * C);
                for (int64_t i = 0; i < n; i++) set(x, dtype, i, 4.0 * rand() / RAND_MAX - 1);
                for (int64_t j = 0; j < N * C; j++) scale[j] = 1 + j % 3, shift[j] = 0.5 * (j % 5);
                if (moments(dtype, rows, N, C, S, x, m, v)) return 2;
                if (affine(dtype, rows, N, C, S, x, m, scale, shift, NULL, 1, y)) return 3;
                for (int64_t j = 0; j < N * C; j++) {
                    int64_t first = rows ? j / C * S * C + j % C : j * S, step = rows ? C : 1;
                    long double mean = 0, var = 0;
                    for (int64_t k = 0; k < S; k++) mean += get(x, dtype, first + k * step);
                    mean /= S;
                    for (int64_t k = 0; k < S; k++) {
                        long double centred = get(x, dtype, first + k * step) - mean;
                        var += centred * centred / S;
                    }
                    worst_moment = fmax(worst_moment, fmax(fabsl(m[j] - mean), fabsl(v[j] - var)));
                    if (isnan(m[j]) || isnan(v[j])) return 4;
                    for (int64_t k = 0; k < S; k++) {
                        int64_t i = first + k * step;
                        double right = fmaxl(0, scale[j] * (get(x, dtype, i) - mean) + shift[j]), is = get(y, dtype, i);
                        if (isnan(is)) return 5;
                        worst_y = fmax(worst_y, fabs(is - right) / (1 + fabs(right)));
                    }
                }
                free(x), free(y), free(m), free(v), free(scale), free(shift);
            }
        printf("%.3g %.3g\n", worst_moment, worst_y);
    }
    return 0;
}
