/* api/text.h
 *
 * Free text: names, reasons, what an agent says went wrong. It is UTF-8 that shows what it holds: no character that
 * steers a terminal, hides, or turns the direction of what stands around it. The Unicode categories Cc (C0, C1, DEL),
 * Cf (format: bidi, zero width, tags), Zl and Zp are not plain.
 */
#ifndef PW_API_TEXT_H
#define PW_API_TEXT_H
#include <stdint.h>
#include <stdio.h>

#include "engine/status.h"

#define TEXT_INVALID UINT32_MAX /* in place of a code point: a byte that is not UTF-8 */

/* The code point at s, which is not the terminating NUL; returns how many bytes it has (1 if it is TEXT_INVALID). */
size_t text_next(const char *s, uint32_t *c);
bool text_is_plain_char(uint32_t c); /* TEXT_INVALID is not */
bool text_is_plain(const char *s);

/*
 * How the character in s[0, n), which is not plain, is shown: "\x1b" (below U+0080, and bytes that are not UTF-8),
 * "\u009b", "\U000e0001". Returns the length.
 */
#define TEXT_ESCAPE_MAX 11 /* with the NUL */
size_t text_escape(const char *s, size_t n, uint32_t c, char out[TEXT_ESCAPE_MAX]);

char *text_shown(
	const char *s); /* the same text with escapes in place of what is not plain; the caller's. NULL: no memory */
/* The same into out, cut between two characters where it does not fit. */
void text_copy(char *out, size_t size, const char *s);
void text_print(FILE *to, const char *s); /* the same, printed; NULL is nothing */
/* JSON text (of jansson, with or without indents): characters that are not plain become JSON's own escapes. */
void text_print_json(FILE *to, const char *json);

#endif
