#include "server/metrics.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *text(void)
{
	struct metrics_text t = { 0 };

	metrics_write(&t);
	cr_assert_not(t.failed);
	cr_assert_eq(strlen(t.data), t.used);
	return t.data;
}

static bool has_line(const char *line)
{
	char *all = text();
	char wanted[256];
	bool found;

	snprintf(wanted, sizeof wanted, "\n%s\n", line);
	found = strstr(all, wanted) != NULL;
	free(all);
	return found;
}

Test(metrics, counters_add_up)
{
	cr_assert(has_line("pagewarden_pages_total 0"));
	metrics_count(COUNT_PAGES, 3);
	metrics_count(COUNT_PAGES, UINT64_C(1) << 40);
	cr_assert(has_line("pagewarden_pages_total 1099511627779"));
	cr_assert(has_line("# TYPE pagewarden_pages_total counter"));
	cr_assert(has_line("pagewarden_refusals_total 0"));
}

Test(metrics, a_histogram_counts_up_to_each_bound_inclusive)
{
	metrics_time(TIME_COMMIT, 50000);                 /* exactly 50 us */
	metrics_time(TIME_COMMIT, 50001);                 /* above it */
	metrics_time(TIME_COMMIT, UINT64_C(60000000000)); /* beyond all bounds */
	cr_assert(has_line("# TYPE pagewarden_commit_seconds histogram"));
	cr_assert(has_line("pagewarden_commit_seconds_bucket{le=\"0.00005\"} 1"));
	cr_assert(has_line("pagewarden_commit_seconds_bucket{le=\"0.0001\"} 2"));
	cr_assert(has_line("pagewarden_commit_seconds_bucket{le=\"30\"} 2"));
	cr_assert(has_line("pagewarden_commit_seconds_bucket{le=\"+Inf\"} 3"));
	cr_assert(has_line("pagewarden_commit_seconds_count 3"));
	cr_assert(has_line("pagewarden_commit_seconds_sum 60.000100001"));
	cr_assert(has_line("pagewarden_request_seconds_count 0"));
}

Test(metrics, requests_are_counted_by_method_route_and_status)
{
	char pattern[] = "/v1/vms";

	metrics_request("GET", "/v1/vms", 200);
	metrics_request("GET", pattern, 200);
	metrics_request("POST", "/v1/vms", 200);
	metrics_request("GET", "/v1/vms", 404);
	cr_assert(has_line("pagewarden_requests_total{method=\"GET\",route=\"/v1/vms\",status=\"200\"} 2"));
	cr_assert(has_line("pagewarden_requests_total{method=\"POST\",route=\"/v1/vms\",status=\"200\"} 1"));
	cr_assert(has_line("pagewarden_requests_total{method=\"GET\",route=\"/v1/vms\",status=\"404\"} 1"));
}

Test(metrics, more_series_than_there_is_room_for_are_still_counted)
{
	char *all;

	for (unsigned status = 0; status < 5000; status++)
		metrics_request("GET", "/v1/vms", status);
	all = text();
	cr_assert_not_null(strstr(all, "{method=\"other\",route=\"other\",status=\"0\"}"));
	free(all);
}

Test(metrics, gauges_have_their_help_once_a_name_and_escaped_labels)
{
	struct metrics_text t = { 0 };

	metrics_gauge(&t, "pw_up", "Is it up", 1);
	metrics_gauge_labelled(&t, "pw_hosts", "Hosts", "state", "up", 3);
	metrics_gauge_labelled(&t, "pw_hosts", "Hosts", "state", "a\"b\\c\nd", 0.25);
	cr_assert_str_eq(t.data, "# HELP pw_up Is it up\n# TYPE pw_up gauge\npw_up 1\n"
				 "# HELP pw_hosts Hosts\n# TYPE pw_hosts gauge\npw_hosts{state=\"up\"} 3\n"
				 "pw_hosts{state=\"a\\\"b\\\\c\\nd\"} 0.25\n");
	free(t.data);
}

#define THREADS 4
#define EACH    20000
static void *count(void *arg)
{
	for (unsigned i = 0; i < EACH; i++) {
		metrics_count(COUNT_TRANSITIONS, 1);
		metrics_time(TIME_REQUEST, i * 1000);
		metrics_request("GET", "/v1/hosts/{host}", 200 + i % 7);
	}
	return NULL;
}

Test(metrics, nothing_is_lost_between_threads)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, count, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	cr_assert(has_line("pagewarden_transitions_total 80000"));
	cr_assert(has_line("pagewarden_request_seconds_count 80000"));
	cr_assert(
		has_line("pagewarden_requests_total{method=\"GET\",route=\"/v1/hosts/{host}\",status=\"206\"} 11428"));
}
