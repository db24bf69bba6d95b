/* Where a unit leaves what it found, and how the units of a whole, which is a plane (CN_PLANES) or an instance
 * (CN_ROWS), become one result, in their order. A unit finds two numbers for each of its channels, one or C: the mean
 * and the variance of its own pixels, or the two sums. */

INLINE int64_t channels_of(const cn_job *job) { return job->rows ? job->C : 1; }

/* The first and the second numbers of unit u: in the result itself where wholes are not cut. */
INLINE double *first_of(const cn_job *job, int64_t u)
{
    return job->chunks > 1 ? job->partial + 2 * u * channels_of(job) : job->first + u * channels_of(job);
}

INLINE double *second_of(const cn_job *job, int64_t u)
{
    return job->chunks > 1 ? first_of(job, u) + channels_of(job) : job->second + u * channels_of(job);
}

/* Without `second`, the means alone: what is in its place in the partial numbers is nothing. */
static void merge_moments(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    const int64_t channels = channels_of(job);
    for (int64_t whole = begin; whole < end; whole++) {
        double *mean = job->first + whole * channels, *var = job->second ? job->second + whole * channels : NULL;
        double seen = (double)job->chunk;
        memcpy(mean, first_of(job, whole * job->chunks), sizeof(double) * (size_t)channels);
        if (var) memcpy(var, second_of(job, whole * job->chunks), sizeof(double) * (size_t)channels);
        for (int64_t i = 1; i < job->chunks; i++) {
            const double *m = first_of(job, whole * job->chunks + i), *v = second_of(job, whole * job->chunks + i);
            const int64_t left = job->S - i * job->chunk, n = left < job->chunk ? left : job->chunk;
            const double share = (double)n / (seen + (double)n), between = share * (1 - share); /* Chan's merge */
            for (int64_t c = 0; c < channels; c++) {
                double delta = m[c] - mean[c];
                mean[c] += delta * share;
                if (var) var[c] += (v[c] - var[c]) * share + delta * delta * between;
            }
            seen += (double)n;
        }
    }
}

static void merge_sums(int64_t begin, int64_t end, void *p)
{
    const cn_job *job = p;
    const int64_t channels = channels_of(job);
    for (int64_t whole = begin; whole < end; whole++) {
        double *sum = job->first + whole * channels, *centred = job->second + whole * channels;
        memcpy(sum, first_of(job, whole * job->chunks), sizeof(double) * (size_t)channels);
        memcpy(centred, second_of(job, whole * job->chunks), sizeof(double) * (size_t)channels);
        for (int64_t i = 1; i < job->chunks; i++) {
            const double *first = first_of(job, whole * job->chunks + i),
                         *second = second_of(job, whole * job->chunks + i);
            for (int64_t c = 0; c < channels; c++) {
                sum[c] += first[c];
                centred[c] += second[c];
            }
        }
    }
}
