#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agents/batch.h"

static struct pw_uuid vm_id(void)
{
	struct pw_uuid id;

	cr_assert(pw_uuid_parse("11111111-2222-4333-8444-555555555555", 36, &id));
	return id;
}

static void assert_json(json_t *got, const char *want)
{
	json_t *expected = json_loads(want, 0, NULL);
	char *text = json_dumps(got, JSON_COMPACT);

	cr_assert_not_null(expected);
	cr_assert(json_equal(got, expected), "%s", text);
	free(text);
	json_decref(expected);
	json_decref(got);
}

Test(batch, consecutive_frames_become_one_run)
{
	uint64_t pfns[] = { 7, 8, 9, 20, 21, 5 }, taken;
	struct gfn_run out[8];

	cr_assert_eq(runs_of_frames(100, 6, pfns, out, 8, &taken), 3);
	cr_assert_eq(taken, 6);
	cr_assert(out[0].gfn == 100 && out[0].count == 3 && out[0].pfn == 7);
	cr_assert(out[1].gfn == 103 && out[1].count == 2 && out[1].pfn == 20);
	cr_assert(out[2].gfn == 105 && out[2].count == 1 && out[2].pfn == 5);
}

Test(batch, a_full_list_of_runs_ends_where_the_next_run_would_begin)
{
	uint64_t pfns[] = { 7, 8, 30, 31, 50 }, taken;
	struct gfn_run out[2];

	cr_assert_eq(runs_of_frames(0, 5, pfns, out, 2, &taken), 2);
	cr_assert_eq(taken, 4);
	cr_assert_eq(runs_of_frames(0, 5, pfns, out, 0, &taken), 0);
	cr_assert_eq(taken, 0);
}

Test(batch, an_item_with_one_framed_run_names_its_frame)
{
	struct gfn_run run = { 16, 4, 99 };
	struct item it = {
		.vm = vm_id(), .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1
	};

	assert_json(batch_item(&it), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"page_in\",\"gfn\":16,"
				     "\"count\":4,\"frame\":{\"pool\":\"local\",\"pfn\":99}}");
}

Test(batch, an_item_with_several_runs_carries_them_as_lists)
{
	struct gfn_run runs[] = { { 1, 2, 10 }, { 5, 1, 20 } };
	struct item framed = {
		.vm = vm_id(), .op = GFN_UNSHARE, .framed = true, .pool = "local", .runs = runs, .run_count = 2
	};
	struct item bare = { .vm = vm_id(), .op = GFN_PAGE_OUT, .runs = runs, .run_count = 2 };

	assert_json(batch_item(&framed), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"unshare\","
					 "\"runs\":[[1,2,10],[5,1,20]],\"pool\":\"local\"}");
	assert_json(batch_item(&bare), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"page_out\","
				       "\"runs\":[[1,2],[5,1]]}");
}

Test(batch, the_body_is_numbered_and_says_who_speaks)
{
	struct gfn_run run = { 0, 1, 0 };
	struct item it = { .vm = vm_id(), .op = GFN_SHARE, .runs = &run, .run_count = 1 };

	assert_json(batch_body("boot", 3, 77, &it, 1),
		    "{\"boot_id\":\"boot\",\"epoch\":3,\"batch_seq\":77,\"items\":[{\"vm\":"
		    "\"11111111-2222-4333-8444-555555555555\",\"op\":\"share\",\"gfn\":0,\"count\":1}]}");
}

Test(batch, verdicts_keep_the_ledgers_problem)
{
	json_t *answer = json_loads("{\"results\":[{\"ok\":true},{\"ok\":false,\"problem\":{\"type\":"
				    "\"/problems/frame-conflict\",\"conflicts\":[{\"pfn\":4}]}}]}",
				    0, NULL);
	struct verdict v[2];

	cr_assert(batch_read(answer, v, 2));
	json_decref(answer);
	cr_assert(v[0].ok && !v[0].problem);
	cr_assert(!v[1].ok);
	cr_assert_eq(json_array_size(json_object_get(v[1].problem, "conflicts")), 1);
	verdicts_clear(v, 2);
	cr_assert_null(v[1].problem);
}

static const char *const wrong[] = { "{}",
				     "{\"results\":{}}",
				     "{\"results\":[{\"ok\":true}]}",
				     "{\"results\":[{\"ok\":true},{\"ok\":1}]}",
				     "{\"results\":[{\"ok\":true},7]}",
				     "[]" };

Test(batch, an_answer_of_another_shape_is_refused)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		json_t *answer = json_loads(wrong[i], 0, NULL);
		struct verdict v[2] = { 0 };

		cr_assert(!batch_read(answer, v, 2), "%s", wrong[i]);
		cr_assert_null(v[0].problem);
		json_decref(answer);
	}
}

/* A server that takes batches of two items at most, and nothing that has "ffffffff-" in it. */
struct picky {
	int listener;
	pthread_t thread;
	unsigned refused, taken;
	char last[16384];
};

static bool read_whole(int fd, char *text, size_t size)
{
	size_t n = 0;

	for (;;) {
		const char *body = NULL, *length;
		ssize_t got = n + 1 < size ? read(fd, text + n, size - 1 - n) : -1;

		if (got <= 0)
			return false;
		n += (size_t)got;
		text[n] = '\0';
		body = strstr(text, "\r\n\r\n");
		length = strcasestr(text, "content-length:");
		if (body && length && n >= (size_t)(body + 4 - text) + strtoul(length + 15, NULL, 10))
			return true;
	}
}

static void *be_picky(void *arg)
{
	static const char too_much[] = "{\"type\":\"/problems/body-too-large\",\"status\":413,\"detail\":\"too much\"}";
	struct picky *p = arg;
	char *text = p->last, results[256] = "", answer[1024];
	int fd;

	while ((fd = accept(p->listener, NULL, NULL)) >= 0) {
		while (read_whole(fd, text, sizeof p->last)) {
			unsigned n = 0;
			bool no = strstr(text, "ffffffff-");

			for (const char *at = text; (at = strstr(at, "\"vm\":")); at++)
				n++;
			no |= n > 2;
			p->refused += no;
			p->taken += no ? 0 : n;
			snprintf(results, sizeof results, "{\"results\":[{\"ok\":true}%s]}",
				 n == 2 ? ",{\"ok\":true}" : "");
			snprintf(answer, sizeof answer, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n%s",
				 no ? "413 x" : "200 x", strlen(no ? too_much : results), no ? too_much : results);
			if (write(fd, answer, strlen(answer)) < 0)
				break;
		}
		close(fd);
	}
	return NULL;
}

static void picky_start(struct picky *p, struct agent *a, struct agent_options *options, char url[64])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof address;
	struct pw_err err = { 0 };

	*p = (struct picky){ .listener = socket(AF_INET, SOCK_STREAM, 0) };
	cr_assert_eq(bind(p->listener, (struct sockaddr *)&address, sizeof address), 0);
	cr_assert_eq(listen(p->listener, 8), 0);
	cr_assert_eq(getsockname(p->listener, (struct sockaddr *)&address, &len), 0);
	cr_assert_eq(pthread_create(&p->thread, NULL, be_picky, p), 0);
	snprintf(url, 64, "http://127.0.0.1:%u", ntohs(address.sin_port));
	*options = (struct agent_options){ .server = url };
	*a = (struct agent){ .options = options, .standing = STANDING_REGISTERED, .boot_id = "boot" };
	snprintf(a->host, sizeof a->host, "11111111-2222-4333-8444-555555555555");
	pthread_mutex_init(&a->mu, NULL);
	pthread_cond_init(&a->changed, NULL);
	cr_assert_eq(seq_open(&a->seq, NULL, 1, &err), PW_OK);
}

static void picky_stop(struct picky *p, struct agent *a)
{
	shutdown(p->listener, SHUT_RDWR);
	pthread_join(p->thread, NULL);
	close(p->listener);
	seq_release(&a->seq);
	pthread_mutex_destroy(&a->mu);
	pthread_cond_destroy(&a->changed);
}

Test(batch, what_is_too_much_at_once_goes_in_halves_and_one_item_alone_is_refused, .timeout = 60)
{
	struct agent_options options;
	struct gfn_run run = { 0, 1, 0 };
	struct worker w = { 0 };
	struct trouble t = { 0 };
	struct verdict v[9];
	struct item items[9];
	struct pw_err err;
	struct picky p;
	struct agent a;
	char url[64];

	picky_start(&p, &a, &options, url);
	cr_assert_eq(worker_open(&w, &a, &err), PW_OK);
	for (size_t i = 0; i < 9; i++)
		items[i] = (struct item){
			.vm = { { i == 6 ? 0xff : 1, 0xff, 0xff, 0xff } }, .op = GFN_SHARE, .runs = &run, .run_count = 1
		};
	cr_assert_eq(batch_send(&w, items, 9, v, &t), PW_OK, "%s", t.err.msg);
	for (size_t i = 0; i < 9; i++)
		cr_expect_eq(v[i].ok, i != 6, "item %zu", i);
	cr_assert_str_eq(json_string_value(json_object_get(v[6].problem, "detail")), "too much");
	cr_assert_eq(a.standing, STANDING_REGISTERED, "no refusal is a reason to stand apart");
	verdicts_clear(v, 9);
	trouble_clear(&t);
	worker_close(&w);
	picky_stop(&p, &a);
	cr_assert_eq(p.taken, 8);
	cr_assert_gt(p.refused, 2);
}

Test(batch, a_problem_that_the_server_does_not_take_is_said_in_short, .timeout = 60)
{
	json_t *problem = json_pack("{s:s, s:s}", "detail", "it broke\x1b", "more", "ffffffff-");
	struct agent_options options;
	struct worker w = { 0 };
	struct trouble t = { 0 };
	struct pw_err err;
	struct picky p;
	struct agent a;
	char url[64];

	picky_start(&p, &a, &options, url);
	cr_assert_eq(worker_open(&w, &a, &err), PW_OK);
	cr_assert_eq(remote_result(&w, "op", problem, &t), PW_OK, "%s", t.err.msg);
	cr_assert_eq(p.refused, 1);
	cr_assert_not_null(strstr(p.last, "\"detail\":\"it broke\\\\x1b\""), "%s", p.last);
	json_decref(problem);
	trouble_clear(&t);
	worker_close(&w);
	picky_stop(&p, &a);
}
