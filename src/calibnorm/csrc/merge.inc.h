/* From what the units of a large plane found to its result, always in the order of the units; see lanes.inc.h. */

/* Where in `partial` the first unit of (n, c) is, and how far apart its units are. */
INLINE void FN(units_of)(const cn_job *job, int64_t nc, int64_t *first, int64_t *step)
{
    *first = job->rows ? nc / job->C * job->chunks * job->C + nc % job->C : nc * job->chunks;
    *step = job->rows ? job->C : 1;
}

static void FN(merge_moments)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t nc = begin; nc < end; nc++) {
        int64_t first, step;
        FN(units_of)(job, nc, &first, &step);
        FN(moments) all = {0, 0, 0};
        for (int64_t i = 0; i < job->chunks; i++) {
            const double *found = job->partial + 3 * (first + i * step);
            FN(merge)(&all, found[0], found[1], found[2]);
        }
        ((A *)job->first)[nc] = (A)all.mean;
        ((A *)job->second)[nc] = (A)(all.m2 / all.n);
    }
}

static void FN(merge_sums)(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t nc = begin; nc < end; nc++) {
        int64_t first, step;
        FN(units_of)(job, nc, &first, &step);
        double sums[2] = {0, 0};
        for (int64_t i = 0; i < job->chunks; i++) {
            sums[0] += job->partial[2 * (first + i * step)];
            sums[1] += job->partial[2 * (first + i * step) + 1];
        }
        ((A *)job->first)[nc] = (A)sums[0];
        ((A *)job->second)[nc] = (A)sums[1];
    }
}
