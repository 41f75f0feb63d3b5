/* tests/bench/bench.h
 *
 * What the measurements of single-threaded code share. They print name, value and unit, separated by tabs.
 */
#ifndef PW_TESTS_BENCH_H
#define PW_TESTS_BENCH_H
#include <stdint.h>
#include <stdio.h>
#include <time.h>

/* Of this process: figures are of one core, whoever else is at work. */
static inline double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static inline void report(const char *name, double value, const char *unit)
{
	printf("%s\t%.3f\t%s\n", name, value, unit);
	fflush(stdout);
}

/* xorshift64; *x is not 0. */
static inline uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

#endif
