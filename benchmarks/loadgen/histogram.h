/* A latency histogram with logarithmic buckets, as HdrHistogram has them: 128 linear buckets for each power of two,
 * so that a value is known to better than 0.8 % over the whole range. Values are nanoseconds. Mean and max are exact. */
#ifndef LOADGEN_HISTOGRAM_H
#define LOADGEN_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BITS 7
#define HISTOGRAM_SUB (1u << HISTOGRAM_BITS)
#define HISTOGRAM_TOP 42 /* values at or above 2^42 ns (73 minutes) fall into the last bucket */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_TOP - HISTOGRAM_BITS) * HISTOGRAM_SUB + HISTOGRAM_SUB)

struct histogram {
    uint64_t count;
    uint64_t max;
    double sum;
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

static inline unsigned histogram_index(uint64_t v)
{
    if (v < 2 * HISTOGRAM_SUB)
        return (unsigned)v;
    if (v >> HISTOGRAM_TOP)
        return HISTOGRAM_BUCKETS - 1;
    unsigned shift = 63u - (unsigned)__builtin_clzll(v) - HISTOGRAM_BITS;
    return shift * HISTOGRAM_SUB + (unsigned)(v >> shift);
}

/* The middle of a bucket. */
static inline double histogram_value(unsigned index)
{
    if (index < 2 * HISTOGRAM_SUB)
        return index;
    unsigned shift = index / HISTOGRAM_SUB - 1;
    uint64_t low = (uint64_t)(index - shift * HISTOGRAM_SUB) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static inline void histogram_add(struct histogram *h, uint64_t v)
{
    h->bucket[histogram_index(v)]++;
    h->count++;
    h->sum += (double)v;
    if (v > h->max)
        h->max = v;
}

static inline double histogram_mean(const struct histogram *h)
{
    return h->count ? h->sum / (double)h->count : 0;
}

/* The value that a share `q` (0..1) of all values doesn't exceed. */
static inline double histogram_quantile(const struct histogram *h, double q)
{
    double want = q * (double)h->count;
    uint64_t seen = 0;
    for (unsigned i = 0; h->count && i < HISTOGRAM_BUCKETS; i++) {
        seen += h->bucket[i];
        if (h->bucket[i] && (double)seen >= want) {
            double v = histogram_value(i);
            return v < (double)h->max ? v : (double)h->max;
        }
    }
    return (double)h->max;
}

#endif
