#include "store/store.h"

#include "store/inner.h"

enum { ADD, REPEATS };
static const char *const write_text[] = {
	[ADD] = "INSERT INTO violation (revision, time_ms, host, vm, actor, json) VALUES (?, ?, ?, ?, ?, ?)",
	[REPEATS] = "UPDATE violation SET last_ms = ?1, count = ?2 WHERE revision = ?3 AND count < ?2",
};
const struct sql_table violation_write_sql = { write_text, PW_ARRAY_LEN(write_text) };

/* +host: an equality that the planner should not look for an index for; the VM's is the smaller one. */
#define WINDOW "revision > ?1 AND revision < ?2"
#define NEWEST \
	"SELECT revision, time_ms, host, vm, actor, json, count, coalesce(last_ms, time_ms) FROM violation WHERE " WINDOW
#define ORDER " ORDER BY revision DESC, id DESC"
enum { OF_ALL, OF_HOST, OF_VM, OF_BOTH, COUNT };
static const char *const read_text[] = {
	[OF_ALL] = NEWEST ORDER,
	[OF_HOST] = NEWEST " AND host = ?3" ORDER,
	[OF_VM] = NEWEST " AND vm = ?3" ORDER,
	[OF_BOTH] = NEWEST " AND vm = ?3 AND +host = ?4" ORDER,
	[COUNT] = "SELECT time_ms, count(*), sum(count) FROM violation WHERE time_ms >= ? GROUP BY time_ms / 60000",
};
const struct sql_table violation_read_sql = { read_text, PW_ARRAY_LEN(read_text) };

enum pw_status store_violation_add(struct store *s, const struct violation *v, struct pw_err *err)
{
	enum pw_status st = group_check(s, err);
	struct query q;

	if (st != PW_OK)
		return st;
	q = query_begin(&s->violation, ADD);
	bind_u64(&q, v->revision);
	bind_i64(&q, v->time_ms);
	bind_uuid(&q, &v->host);
	bind_uuid(&q, &v->vm);
	bind_text(&q, v->actor);
	bind_text(&q, v->json);
	return group_result(s, query_run(&q, "adding a violation", err));
}

enum pw_status store_violation_repeats(struct store *s, uint64_t revision, uint64_t count, int64_t last_ms,
				       struct pw_err *err)
{
	enum pw_status st = group_check(s, err);
	struct query q;

	if (st != PW_OK)
		return st;
	q = query_begin(&s->violation, REPEATS);
	bind_i64(&q, last_ms);
	bind_u64(&q, count);
	bind_u64(&q, revision);
	return group_result(s, query_run(&q, "counting a violation again", err));
}

static struct query filter_begin(struct reader *r, const struct violation_filter *f)
{
	bool host = !pw_uuid_is_nil(&f->host), vm = !pw_uuid_is_nil(&f->vm);
	struct query q = query_begin(&r->violation, vm ? host ? OF_BOTH : OF_VM : host ? OF_HOST : OF_ALL);

	bind_u64(&q, f->after > INT64_MAX ? INT64_MAX : f->after);
	bind_u64(&q, f->before && f->before <= INT64_MAX ? f->before : INT64_MAX);
	if (vm)
		bind_uuid(&q, &f->vm);
	if (host)
		bind_uuid(&q, &f->host);
	return q;
}

static enum pw_status violation_row(struct query *q, struct violation *out, struct pw_err *err)
{
	out->revision = row_u64(q, 0, INT64_MAX);
	out->time_ms = row_i64(q, 1);
	out->host = row_uuid_or_nil(q, 2);
	out->vm = row_uuid_or_nil(q, 3);
	out->actor = row_text(q, 4);
	out->json = row_text(q, 5);
	out->count = row_u64(q, 6, INT64_MAX);
	out->last_ms = row_i64(q, 7);
	return row_check(q, "violation", err);
}

enum pw_status store_violations(struct store *s, const struct violation_filter *f, violation_fn fn, void *ctx,
				struct pw_err *err)
{
	struct reader *r = reader_take(s);
	struct query q = filter_begin(r, f);
	struct violation v = { 0 };
	uint64_t last = 0;
	enum pw_status st;

	for (unsigned n = 0; (st = query_step(&q, "reading violations", err)) == PW_OK; n++) {
		st = violation_row(&q, &v, err);
		if (st != PW_OK || (n >= f->limit && v.revision != last))
			break;
		last = v.revision;
		fn(ctx, &v);
	}
	query_end(&q);
	reader_give(s, r);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

enum pw_status store_violation_count(struct store *s, int64_t since_ms, violation_count_fn fn, void *ctx,
				     struct pw_err *err)
{
	struct reader *r = reader_take(s);
	struct query q = query_begin(&r->violation, COUNT);
	enum pw_status st;

	bind_i64(&q, since_ms);
	while ((st = query_step(&q, "counting violations", err)) == PW_OK) {
		int64_t time_ms = row_i64(&q, 0);
		uint64_t violations = row_u64(&q, 1, INT64_MAX), refusals = row_u64(&q, 2, INT64_MAX);

		st = row_check(&q, "violation", err);
		if (st != PW_OK)
			break;
		fn(ctx, time_ms, violations, refusals);
	}
	query_end(&q);
	reader_give(s, r);
	return st == PW_NOT_FOUND ? PW_OK : st;
}
