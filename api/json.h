/* api/json.h
 *
 * Strict reading of JSON objects into structs: one table of fields for each kind of object says which members there
 * are, which must be there, how each is read and where it goes. What no field names is refused.
 * A refusal carries the JSON Pointer of its culprit, taken from the reader's path.
 */
#ifndef PW_API_JSON_H
#define PW_API_JSON_H
#include <jansson.h>

#include "api/codec.h"

#define JSON_NESTING_MAX 16
#define JSON_MEMBERS_MAX 1024 /* of one object: whoever sends more is refused before any is looked at */

/*
 * json_loadb, made safe: jansson's lexer goes on after a failed allocation, with a character missing, and may so return
 * another value than the text says. Duplicate keys are refused. NULL: *e is written, or *no_memory set.
 */
json_t *json_load_text(const char *text, size_t len, json_error_t *e, bool *no_memory) PW_MUST_CHECK;

/* Memory of a decoded body: blocks that live and die with it, and the parsed JSON that strings are borrowed from. */
struct body *body_new(void); /* or NULL */
/* Zeroed room for n objects of `size` bytes, n and size of the caller's choosing; NULL if there is no memory. */
void *body_alloc(struct body *b, size_t n, size_t size) PW_MUST_CHECK;

/* Resizes the newest block, which alone may be resized; what it gains is not zeroed. On NULL nothing has changed. */
void *body_grow(struct body *b, size_t n, size_t size) PW_MUST_CHECK;

struct reader {
	struct body *body;
	struct codec_fault *why;
	bool is_secret; /* no fault quotes a value */
	unsigned depth;
	struct json_step {
		const char *key; /* NULL: an element of an array */
		size_t index;
	} path[JSON_NESTING_MAX + 1];
};

/* Reads v into *at, or writes the reader's fault and returns false. */
typedef bool (*json_read_fn)(struct reader *r, json_t *v, void *at);
#define JSON_NO_FLAG SIZE_MAX
struct json_field {
	const char *name;
	enum json_need { JSON_OPTIONAL, JSON_REQUIRED } need;
	json_read_fn read;
	size_t at;   /* offset in the struct that is filled */
	size_t flag; /* offset of a bool to set when the member is there, or JSON_NO_FLAG */
};
#define JSON_FIELDS_MAX 32

/* Parses a whole body into r->body, which it makes. The value may be of any type. NULL: *why is written. */
json_t *json_read_text(struct reader *r, const char *text, size_t len, struct codec_fault *why) PW_MUST_CHECK;

/* The same for a body whose values may be nobody's to see (L10): a fault says where and why, and quotes none. */
json_t *json_read_secret(struct reader *r, const char *text, size_t len, struct codec_fault *why) PW_MUST_CHECK;

/* Members in the order of the document, then the missing ones in the order of the fields. */
bool json_read_object(struct reader *r, json_t *v, const struct json_field *fields, size_t n, void *out) PW_MUST_CHECK;
/* Is v an array with lo..hi elements? */
bool json_check_array(struct reader *r, json_t *v, size_t lo, size_t hi) PW_MUST_CHECK;
bool json_read_range(struct reader *r, json_t *v, uint64_t lo, uint64_t hi, uint64_t *out) PW_MUST_CHECK;

/* A run of pages ends at 2^40 at the latest; member `at` is to blame otherwise. first < 2^40. */
bool json_check_run(struct reader *r, const char *at, uint64_t first, uint64_t count) PW_MUST_CHECK;

/* Where the reader is. A step that failed may be left in place: a fault is the end of a decode. */
void json_enter(struct reader *r, const char *key);
void json_enter_at(struct reader *r, size_t index);
void json_leave(struct reader *r);

/* Write the fault, at the reader's path or at member `key` of it; always false. */
bool json_fault(struct reader *r, const char *fmt, ...) PW_PRINTF(2, 3);
bool json_fault_at(struct reader *r, const char *key, const char *fmt, ...) PW_PRINTF(3, 4);
bool json_fault_value(struct reader *r, json_t *v, const char *must); /* "VALUE is not MUST", or "this value ..." */
bool json_fault_memory(struct reader *r);

/* Readers of scalars: the kinds of fields. */
bool json_to_page(struct reader *r, json_t *v, void *at);    /* uint64_t in [0, 2^40) */
bool json_to_count(struct reader *r, json_t *v, void *at);   /* uint64_t in [1, 2^40) */
bool json_to_number(struct reader *r, json_t *v, void *at);  /* uint64_t in [0, 2^63) */
bool json_to_bool(struct reader *r, json_t *v, void *at);    /* bool */
bool json_to_uuid(struct reader *r, json_t *v, void *at);    /* struct pw_uuid */
bool json_to_reason(struct reader *r, json_t *v, void *at);  /* const char *: 1..511 bytes, plain (api/text.h) */
bool json_to_name(struct reader *r, json_t *v, void *at);    /* const char *: 1..127 bytes, plain */
bool json_to_boot_id(struct reader *r, json_t *v, void *at); /* const char *: 1..64 printable ASCII */
bool json_to_pool(struct reader *r, json_t *v, void *at);    /* const char *: [a-z0-9-]{1,63} */
bool json_to_value(struct reader *r, json_t *v, void *at);   /* json_t *, borrowed: anything, for a closer look */
/* const char *: the value's compact text, at most `max` bytes. */
bool json_to_text(struct reader *r, json_t *v, size_t max, const char **at) PW_MUST_CHECK;

/* Are all texts in v, names of members included, plain? The fault names the first that is not. */
bool json_check_texts(struct reader *r, json_t *v) PW_MUST_CHECK;
/* const char *: the compact text of an object whose texts are plain, at most CODEC_DOCUMENT_MAX bytes. */
bool json_to_document(struct reader *r, json_t *v, void *at) PW_MUST_CHECK;

/* Cuts an incomplete UTF-8 character off the end of a text that was truncated. */
void text_trim_utf8(char *text);

#endif
