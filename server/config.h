/* server/config.h
 *
 * What pagewardend can be told: by flags, before an INI file, before the environment (PAGEWARDEN_NAME), before the
 * defaults. One table holds every option with its help; parsing has no effects.
 */
#ifndef PW_SERVER_CONFIG_H
#define PW_SERVER_CONFIG_H
#include <stdio.h>

#include "engine/status.h"

struct config {
	char *data;                               /* --data DIR (default ./pagewarden-data) */
	char *listen;                             /* --listen ADDR:PORT (default 127.0.0.1:8470; [::1]:PORT works) */
	char *tls_cert, *tls_key, *tls_client_ca; /* PEM files or NULL */
	unsigned log_level;                       /* --log-level error|warning|info|debug */
	unsigned threads;                         /* HTTP threads; default 2 */
	unsigned connections;                     /* at most; default 1024 */
	unsigned read_threads;                    /* for long reads; default 2 */
	unsigned read_queue;                      /* long reads that wait, at most; default 64 */
	unsigned writer_ms;                       /* the state is changed for so long at a time */
	unsigned batch_work;                      /* steps of an atomic batch */
	unsigned wake_rate;                       /* long polls woken a second, at most */
	unsigned address_connections;             /* of one address; 0: three quarters of connections */
	unsigned reserve_connections;             /* beyond connections; default 64 */
	unsigned head_seconds, body_seconds;      /* for a request's head and its body; 10 and 60 */
	unsigned answer_seconds, idle_seconds;    /* for taking an answer, and between requests; 60 and 120 */
	uint64_t head_bytes;                      /* of a request's head; default 32 KiB */
	uint64_t body_bytes, agent_body_bytes;    /* of a body; 1 MiB, and 16 MiB of an agent's */
	uint64_t bodies_bytes;                    /* of all bodies together; 256 MiB */
	uint64_t feed_bytes;                      /* of the newest events, in memory; default 16 MiB */
	uint64_t event_bytes;                     /* larger events are told in brief; default 16 KiB */
	uint64_t answer_bytes;          /* a list's answer ends behind the item that passes this; default 1 MiB */
	uint64_t decoded_bytes;         /* of one body's values; 256 MiB */
	unsigned item_work;             /* steps of work that one item may take; default 2^20 */
	unsigned quarantine_ranges;     /* in quarantine in one pool; default 65536 */
	unsigned lease_seconds;         /* default 15 */
	unsigned checkpoint_seconds;    /* a picture at most this often; default 30 */
	unsigned stop_seconds;          /* at a stop: for answers under way; default 10 */
	unsigned last_picture_seconds;  /* at a stop: for the last picture; default 2 */
	unsigned picture_stale_seconds; /* not ready once pictures fail for so long; default 600 */
	unsigned retain_hours;          /* journal kept by age; default 720; 0: no bound */
	uint64_t retain_bytes;          /* and by size; default 8 GiB; 0: no bound; suffixes K M G */
	unsigned host_operations, host_finished;  /* of one host: unfinished ones, finished ones that are kept */
	unsigned operations;                      /* of all hosts */
	unsigned operation_hours;                 /* a finished one is kept so long */
	unsigned operation_bytes, result_bytes;   /* of parameters; of the problem of a result */
	unsigned violation_repeat_seconds;        /* a refusal again within it is counted with the first */
	unsigned violation_rate, violation_burst; /* new violations of a host (or token): a second, and at once */
	unsigned violation_recent;                /* of each, that may be repeated */
	uint64_t memory_bytes;                    /* limit of the engine's memory; default 0: none */
	bool verify, help, version;               /* --verify: check the journal's hash chain and exit */
	bool limits;                              /* --print-limits */
	bool dump;                                /* --print-config: canonical INI on stdout, parses back to the same */
};
enum pw_status config_parse(int argc, char *const *argv, char *const *envp, struct config *out,
			    struct pw_err *err) PW_MUST_CHECK;
void config_release(struct config *c);
void config_usage(FILE *to);
void config_print(const struct config *c, FILE *to);
/* One limit as it is set. name must be that of an option with a unit. All strings are static. */
struct config_limit {
	const char *name, *unit;
	uint64_t value;
};
struct config_limit config_limit(const struct config *c, const char *name);
void config_limits(FILE *to); /* docs/limits.md: every limit, its default, range and unit */

#endif
