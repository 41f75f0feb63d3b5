/* tests/bench/bench_store.c: how many groups a second the journal commits, one row each, with a painter beside it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/store.h"

static _Atomic bool stop;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const struct pw_err *err)
{
	fprintf(stderr, "bench_store: %s\n", err->msg);
	exit(1);
}

static void *paint(void *arg)
{
	struct pw_err err = { 0 };

	while (!atomic_load(&stop)) {
		if (store_wal_checkpoint(arg, &err) != PW_OK)
			die(&err);
		usleep(100000);
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static size_t run(struct store *s, size_t size, double seconds, double *took, size_t most)
{
	static unsigned char records[65536];
	struct pw_err err = { 0 };
	struct journal_span span;
	double start = now(), before = start, after = start;
	size_t n = 0;

	store_span(s, &span);
	for (size_t i = 0; i < size; i++)
		records[i] = (unsigned char)(i * 131 + size);
	for (; n < most && after - start < seconds; n++) {
		uint64_t r = span.newest + 1 + n;
		struct journal_row row = { .first = r, .last = r, .time_ms = 1, .records = records, .size = size };

		if (store_begin(s, &err) != PW_OK || store_append(s, &row, &err) != PW_OK ||
		    store_commit(s, &err) != PW_OK)
			die(&err);
		after = now();
		took[n] = after - before;
		before = after;
	}
	return n;
}

static void report(struct store *s, size_t size, double seconds)
{
	const size_t most = 200000;
	double *took = calloc(most, sizeof *took), start = now(), span;
	size_t n;

	if (!took)
		exit(1);
	n = run(s, size, seconds, took, most);
	span = now() - start;
	qsort(took, n, sizeof *took, by_value);
	printf("store_commits_%zu_bytes\t%.0f\tcommits/s\n", size, (double)n / span);
	printf("store_commit_%zu_bytes_p50\t%.3f\tms\n", size, took[n / 2] * 1e3);
	printf("store_commit_%zu_bytes_p99\t%.3f\tms\n", size, took[n * 99 / 100] * 1e3);
	printf("store_commit_%zu_bytes_max\t%.3f\tms\n", size, took[n - 1] * 1e3);
	free(took);
}

#define EXTENTS 200000
static enum pw_status take_host(void *ctx, const struct host_row *r, struct pw_err *err)
{
	(void)ctx, (void)r, (void)err;
	return PW_OK;
}

static enum pw_status take_vm(void *ctx, const struct vm_row *r, struct pw_err *err)
{
	(void)ctx, (void)r, (void)err;
	return PW_OK;
}

static enum pw_status take_extent(void *ctx, const struct extent_row *r, struct pw_err *err)
{
	(void)r, (void)err;
	++*(size_t *)ctx;
	return PW_OK;
}

static void picture(struct store *s)
{
	struct extent_row *e = calloc(EXTENTS, sizeof *e);
	struct host_row host = { .id = { { 1 } }, .name = "h", .boot_id = "b", .backends = "[]", .epoch = 1 };
	struct vm_row vm = {
		.id = { { 2 } }, .host = host.id, .name = "v", .arch = "snp", .state = "secure", .epoch = 1
	};
	struct picture p = { .full = true, .hosts = &host, .host_count = 1, .vms = &vm, .vm_count = 1, .extents = e };
	size_t loaded = 0;
	struct picture_reader r = { .ctx = &loaded, .host = take_host, .vm = take_vm, .extent = take_extent };
	struct journal_span span;
	struct pw_err err = { 0 };
	uint64_t revision;
	double start = now();

	if (!e)
		exit(1);
	store_span(s, &span);
	p.revision = span.newest;
	p.extent_count = EXTENTS;
	for (size_t i = 0; i < EXTENTS; i++)
		e[i] = (struct extent_row){ vm.id, i * 3, 1, GFN_ENTRY_RESIDENT | (i * 7), NULL };
	if (store_save_picture(s, &p, &err) != PW_OK)
		die(&err);
	printf("store_picture_save\t%.0f\textents/s\n", EXTENTS / (now() - start));
	start = now();
	if (store_load_picture(s, &r, &revision, &err) != PW_OK || loaded != EXTENTS)
		die(&err);
	printf("store_picture_load\t%.0f\textents/s\n", EXTENTS / (now() - start));
	free(e);
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? strtod(argv[1], NULL) : 3;
	char dir[] = "/var/tmp/bench_store.XXXXXX", path[64];
	static const char *const files[] = { "journal.db", "ledger.db", "lock" };
	struct pw_err err = { 0 };
	struct store *s;
	pthread_t painter;
	struct stat st;

	if (!mkdtemp(dir))
		return 1;
	if (store_open(dir, &s, &err) != PW_OK)
		die(&err);
	if (pthread_create(&painter, NULL, paint, s) != 0)
		return 1;
	report(s, 2560, seconds);
	report(s, 6144, seconds);
	atomic_store(&stop, true);
	pthread_join(painter, NULL);
	picture(s);
	snprintf(path, sizeof path, "%s/journal.db-wal", dir);
	if (stat(path, &st) == 0)
		printf("store_wal\t%.1f\tMiB\n", (double)st.st_size / (1 << 20));
	store_close(s);
	for (size_t i = 0; i < PW_ARRAY_LEN(files); i++) {
		snprintf(path, sizeof path, "%s/%s", dir, files[i]);
		unlink(path);
	}
	rmdir(dir);
	return 0;
}
