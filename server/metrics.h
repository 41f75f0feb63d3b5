/* server/metrics.h
 *
 * Counters, gauges and latency histograms, as Prometheus text. Counting is lock-free (relaxed atomics) and never fails.
 */
#ifndef PW_SERVER_METRICS_H
#define PW_SERVER_METRICS_H
#include "api/jsonw.h"

#define COUNTERS(X)                                                                                               \
	X(COUNT_TRANSITIONS, "pagewarden_transitions_total", "Transition items accepted")                         \
	X(COUNT_REFUSALS, "pagewarden_refusals_total", "Transition items refused")                                \
	X(COUNT_PAGES, "pagewarden_pages_total", "Pages named by accepted transition items")                      \
	X(COUNT_VIOLATIONS, "pagewarden_violations_total", "Violations recorded")                                 \
	X(COUNT_REPEATS, "pagewarden_violation_repeats_total", "Refusals counted with an earlier one")            \
	X(COUNT_NOT_KEPT, "pagewarden_violations_not_stored_total", "Refusals past the budget of new violations") \
	X(COUNT_GROUPS, "pagewarden_commit_groups_total", "Groups committed")                                     \
	X(COUNT_WOKEN, "pagewarden_long_polls_woken_total", "Long polls ended or looked at again")                \
	X(COUNT_COMMIT_FAILURES, "pagewarden_commit_failures_total", "Groups that the disk refused")              \
	X(COUNT_CHECKPOINTS, "pagewarden_checkpoints_total", "Pictures saved")
#define HISTOGRAMS(X)                                                                                \
	X(TIME_COMMIT, "pagewarden_commit_seconds", "Time of one group's commit")                    \
	X(TIME_REQUEST, "pagewarden_request_seconds", "Time from request to answer, waits included") \
	X(TIME_CHECKPOINT, "pagewarden_checkpoint_seconds", "Time to save a picture")
#define PW_ENUM_(name, prom, help) name,
enum counter { COUNTERS(PW_ENUM_) COUNTER_COUNT };
enum histogram { HISTOGRAMS(PW_ENUM_) HISTOGRAM_COUNT };
#undef PW_ENUM_

void metrics_count(enum counter c, uint64_t n);
void metrics_time(enum histogram h, uint64_t ns);
void metrics_request(const char *method, const char *pattern, unsigned status); /* pagewarden_requests_total{...} */

/* Gauges are written by whoever knows them: name, help and value, in Prometheus text, appended to a growing buffer. */
struct metrics_text {
	char *data; /* heap */
	size_t used, size;
	bool failed;
};
void metrics_gauge(struct metrics_text *t, const char *name, const char *help, double value);
void metrics_gauge_labelled(struct metrics_text *t, const char *name, const char *help, const char *label,
			    const char *label_value, double value); /* HELP and TYPE once a name */
void metrics_write(struct metrics_text *t);                         /* all counters and histograms */

#endif
