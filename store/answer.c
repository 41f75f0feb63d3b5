#include "store/store.h"

#include <stdlib.h>
#include <string.h>

#include "store/inner.h"

enum { FIND, SAVE, EXPIRE };
static const char *const text[] = {
	[FIND] = "SELECT request_hash, status, expires_ms, headers, body FROM answer"
		 " WHERE scope = ? AND key = ? AND expires_ms > ?",
	[SAVE] = "INSERT INTO answer (scope, key, request_hash, status, expires_ms, headers, body)"
		 " VALUES (?, ?, ?, ?, ?, ?, ?)"
		 " ON CONFLICT DO UPDATE SET request_hash = excluded.request_hash, status = excluded.status,"
		 " expires_ms = excluded.expires_ms, headers = excluded.headers, body = excluded.body",
	[EXPIRE] = "DELETE FROM answer WHERE (scope, key) IN"
		   " (SELECT scope, key FROM answer WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)",
};
const struct sql_table answer_sql = { text, PW_ARRAY_LEN(text) };

static enum pw_status copy_answer(struct query *q, struct answer *out, struct pw_err *err)
{
	struct answer a = { 0 };
	const void *body;
	const char *headers;
	size_t length;
	enum pw_status st;

	row_bytes(q, 0, a.request_hash, sizeof a.request_hash);
	a.status = (unsigned)row_u64(q, 1, 999);
	a.expires_ms = row_i64(q, 2);
	headers = row_text(q, 3);
	body = row_blob(q, 4, &a.size);
	st = row_check(q, "answer", err);
	if (st != PW_OK)
		return st;
	length = strlen(headers) + 1;
	a.memory = malloc(length + a.size);
	if (!a.memory)
		return pw_fail(err, PW_NO_MEMORY, "a saved answer of %zu bytes", a.size);
	a.headers = memcpy(a.memory, headers, length);
	a.body = memcpy((char *)a.memory + length, body, a.size);
	*out = a;
	return PW_OK;
}

enum pw_status store_answer_find(struct store *s, const char *scope, const char *key, int64_t now_ms,
				 struct answer *out, struct pw_err *err)
{
	enum pw_status st = group_check(s, err);
	struct query q;

	if (st != PW_OK)
		return st;
	q = query_begin(&s->answer, FIND);
	bind_text(&q, scope);
	bind_text(&q, key);
	bind_i64(&q, now_ms);
	st = query_step(&q, "looking for a saved answer", err);
	if (st == PW_OK)
		st = copy_answer(&q, out, err);
	else if (st == PW_NOT_FOUND)
		pw_fail(err, PW_NOT_FOUND, "no saved answer for %s %s", scope, key);
	query_end(&q);
	return group_result(s, st);
}

enum pw_status store_answer_save(struct store *s, const char *scope, const char *key, const struct answer *a,
				 struct pw_err *err)
{
	enum pw_status st = group_check(s, err);
	struct query q;

	if (st != PW_OK)
		return st;
	q = query_begin(&s->answer, SAVE);
	bind_text(&q, scope);
	bind_text(&q, key);
	bind_blob(&q, a->request_hash, sizeof a->request_hash);
	bind_u64(&q, a->status);
	bind_i64(&q, a->expires_ms);
	bind_text(&q, a->headers);
	bind_blob(&q, a->body, a->size);
	return group_result(s, query_run(&q, "saving an answer", err));
}

enum pw_status store_answers_expire(struct store *s, int64_t now_ms, unsigned at_most, unsigned *gone,
				    struct pw_err *err)
{
	enum pw_status st = group_check(s, err);
	struct query q;

	if (st != PW_OK)
		return st;
	q = query_begin(&s->answer, EXPIRE);
	bind_i64(&q, now_ms);
	bind_u64(&q, at_most);
	st = group_result(s, query_run(&q, "forgetting expired answers", err));
	*gone = st == PW_OK ? (unsigned)sqlite3_changes(s->writer.h) : 0;
	return st;
}
