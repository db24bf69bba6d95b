/* From what the units of a large plane found to its result, always in the order of the units. */

/* Where in `partial` the first unit of (n, c) is, and how far apart its units are. */
INLINE void units_of(const cn_job *job, int64_t nc, int64_t *first, int64_t *step)
{
    *first = job->rows ? nc / job->C * job->chunks * job->C + nc % job->C : nc * job->chunks;
    *step = job->rows ? job->C : 1;
}

static void merge_moments(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t nc = begin; nc < end; nc++) {
        int64_t first, step;
        units_of(job, nc, &first, &step);
        moments_f64 all = {0, 0, 0};
        for (int64_t i = 0; i < job->chunks; i++) {
            const double *found = job->partial + 3 * (first + i * step);
            merge_f64(&all, found[0], found[1], found[2]);
        }
        job->first[nc] = all.mean;
        job->second[nc] = (all.m2 / all.n);
    }
}

static void merge_sums(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    for (int64_t nc = begin; nc < end; nc++) {
        int64_t first, step;
        units_of(job, nc, &first, &step);
        double sums[2] = {0, 0};
        for (int64_t i = 0; i < job->chunks; i++) {
            sums[0] += job->partial[2 * (first + i * step)];
            sums[1] += job->partial[2 * (first + i * step) + 1];
        }
        job->first[nc] = sums[0];
        job->second[nc] = sums[1];
    }
}
