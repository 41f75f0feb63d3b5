#include "server/metrics.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Upper bounds of the buckets, in nanoseconds, and as Prometheus wants to read them (seconds). */
static const struct bucket {
	uint64_t ns;
	const char *le;
} buckets[] = {
	{ 50000, "0.00005" },  { 100000, "0.0001" },  { 250000, "0.00025" },  { 500000, "0.0005" },
	{ 1000000, "0.001" },  { 2500000, "0.0025" }, { 5000000, "0.005" },   { 10000000, "0.01" },
	{ 25000000, "0.025" }, { 50000000, "0.05" },  { 100000000, "0.1" },   { 250000000, "0.25" },
	{ 500000000, "0.5" },  { 1000000000, "1" },   { 2500000000, "2.5" },  { 5000000000, "5" },
	{ 10000000000, "10" }, { 30000000000, "30" }, { UINT64_MAX, "+Inf" },
};
#define BUCKETS                 PW_ARRAY_LEN(buckets)

#define INFO_(name, prom, help) [name] = { prom, help },
static const struct info {
	const char *name, *help;
} counter_info[COUNTER_COUNT] = { COUNTERS(INFO_) }, histogram_info[HISTOGRAM_COUNT] = { HISTOGRAMS(INFO_) };

/* One series of pagewarden_requests_total. Claimed once, never given back. */
enum series_state { SERIES_FREE, SERIES_CLAIMED, SERIES_READY };
struct series {
	_Atomic unsigned state;
	unsigned status;
	const char *method, *pattern; /* static */
	_Atomic uint64_t count;
};
#define SERIES 1024u /* a power of two; about 60 routes times the statuses they really answer */

static _Atomic uint64_t counts[COUNTER_COUNT];
static struct {
	_Atomic uint64_t bucket[BUCKETS];
	_Atomic uint64_t sum_ns;
} times[HISTOGRAM_COUNT];
static struct series series[SERIES];
static _Atomic uint64_t uncounted_requests;

static void add(_Atomic uint64_t *to, uint64_t n)
{
	atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

static uint64_t value(_Atomic uint64_t *of)
{
	return atomic_load_explicit(of, memory_order_relaxed);
}

void metrics_count(enum counter c, uint64_t n)
{
	add(&counts[c], n);
}

void metrics_time(enum histogram h, uint64_t ns)
{
	size_t b = 0;

	while (ns > buckets[b].ns)
		b++;
	add(&times[h].bucket[b], 1);
	add(&times[h].sum_ns, ns);
}

static unsigned hash(const char *s, unsigned h)
{
	while (*s)
		h = (h ^ (unsigned char)*s++) * 16777619u;
	return h;
}

/* The series in this slot, claiming it when it is free; NULL when it is another's. Waits for nobody: a slot that is
 * just being claimed counts as another's, and metrics_write adds up series of the same name. */
static struct series *slot_for(struct series *s, const char *method, const char *pattern, unsigned status)
{
	unsigned state = atomic_load_explicit(&s->state, memory_order_acquire);

	if (state == SERIES_FREE && atomic_compare_exchange_strong(&s->state, &state, SERIES_CLAIMED)) {
		s->method = method;
		s->pattern = pattern;
		s->status = status;
		atomic_store_explicit(&s->state, SERIES_READY, memory_order_release);
		return s;
	}
	if (state != SERIES_READY || s->status != status || strcmp(s->pattern, pattern) != 0 ||
	    strcmp(s->method, method) != 0)
		return NULL;
	return s;
}

void metrics_request(const char *method, const char *pattern, unsigned status)
{
	unsigned at = hash(pattern, hash(method, 2166136261u) + status);

	for (unsigned tries = 0; tries < 64; tries++) {
		struct series *s = slot_for(&series[(at + tries) % SERIES], method, pattern, status);

		if (s) {
			add(&s->count, 1);
			return;
		}
	}
	add(&uncounted_requests, 1);
}

static void append(struct metrics_text *t, const char *fmt, ...) PW_PRINTF(2, 3);
static void append(struct metrics_text *t, const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof line)
		t->failed = true;
	if (t->failed)
		return;
	if (t->size - t->used <= (size_t)n) {
		size_t size = t->size ? t->size * 2 : 16384;
		char *data = realloc(t->data, size);

		if (!data) {
			t->failed = true;
			return;
		}
		t->data = data;
		t->size = size;
	}
	memcpy(t->data + t->used, line, (size_t)n + 1);
	t->used += (size_t)n;
}

static void head(struct metrics_text *t, const char *name, const char *help, const char *type)
{
	append(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Is the last thing written already about this name? */
static bool has_head(const struct metrics_text *t, const char *name)
{
	char line[160];

	if (!t->data)
		return false;
	snprintf(line, sizeof line, "# TYPE %s gauge\n", name);
	return strstr(t->data, line) != NULL;
}

static void escape_label(const char *s, char *out, size_t size)
{
	size_t n = 0;

	for (; *s && n + 3 < size; s++) {
		if (*s == '\\' || *s == '"' || *s == '\n')
			out[n++] = '\\';
		out[n++] = *s == '\n' ? 'n' : *s;
	}
	out[n] = '\0';
}

void metrics_gauge(struct metrics_text *t, const char *name, const char *help, double v)
{
	head(t, name, help, "gauge");
	append(t, "%s %.17g\n", name, v);
}

void metrics_gauge_labelled(struct metrics_text *t, const char *name, const char *help, const char *label,
			    const char *label_value, double v)
{
	char text[256];

	escape_label(label_value, text, sizeof text);
	if (!has_head(t, name))
		head(t, name, help, "gauge");
	append(t, "%s{%s=\"%s\"} %.17g\n", name, label, text, v);
}

static bool same_series(const struct series *a, const struct series *b)
{
	return a->status == b->status && strcmp(a->pattern, b->pattern) == 0 && strcmp(a->method, b->method) == 0;
}

static bool is_ready(unsigned i)
{
	return atomic_load_explicit(&series[i].state, memory_order_acquire) == SERIES_READY;
}

/* The sum over slots of the same name, or 0 when an earlier slot has written it already. */
static uint64_t series_total(unsigned at)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < SERIES; i++) {
		if (!is_ready(i) || !same_series(&series[i], &series[at]))
			continue;
		if (i < at)
			return 0;
		total += value(&series[i].count);
	}
	return total;
}

static void write_requests(struct metrics_text *t)
{
	head(t, "pagewarden_requests_total", "Requests answered", "counter");
	for (unsigned i = 0; i < SERIES; i++) {
		uint64_t n = is_ready(i) ? series_total(i) : 0;

		if (n)
			append(t, "pagewarden_requests_total{method=\"%s\",route=\"%s\",status=\"%u\"} %" PRIu64 "\n",
			       series[i].method, series[i].pattern, series[i].status, n);
	}
	if (value(&uncounted_requests))
		append(t, "pagewarden_requests_total{method=\"other\",route=\"other\",status=\"0\"} %" PRIu64 "\n",
		       value(&uncounted_requests));
}

static void write_histogram(struct metrics_text *t, enum histogram h)
{
	const char *name = histogram_info[h].name;
	uint64_t seen = 0;

	head(t, name, histogram_info[h].help, "histogram");
	for (size_t b = 0; b < BUCKETS; b++) {
		seen += value(&times[h].bucket[b]);
		append(t, "%s_bucket{le=\"%s\"} %" PRIu64 "\n", name, buckets[b].le, seen);
	}
	append(t, "%s_sum %.9f\n", name, (double)value(&times[h].sum_ns) / 1e9);
	append(t, "%s_count %" PRIu64 "\n", name, seen);
}

void metrics_write(struct metrics_text *t)
{
	for (int c = 0; c < COUNTER_COUNT; c++) {
		head(t, counter_info[c].name, counter_info[c].help, "counter");
		append(t, "%s %" PRIu64 "\n", counter_info[c].name, value(&counts[c]));
	}
	write_requests(t);
	for (int h = 0; h < HISTOGRAM_COUNT; h++)
		write_histogram(t, (enum histogram)h);
}
