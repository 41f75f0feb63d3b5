/* tests/lib/cca_world.h
 *
 * A small machine with one realm, for tests of the CCA model: 33-bit space, start level 1, one root table, and one REC.
 */
#ifndef PW_TESTS_LIB_CCA_WORLD_H
#define PW_TESTS_LIB_CCA_WORLD_H
#include "engine/arch/cca.h"

#define G(n)        (WORLD_BASE + (uint64_t)(n)*CCA_GRANULE)
#define WORLD_BASE  ((uint64_t)0x80000000)
#define WORLD_PAGES 4096
#define WORLD_RD    G(1)
#define WORLD_ROOT  G(16)
#define WORLD_REC   G(40)
#define WORLD_HOST  G(900) /* the host's own page */
#define WORLD_NS    ((uint64_t)1 << 32)
#define WORLD_BLOCK ((uint64_t)1 << 21)

struct world {
	struct pw_mem mem;
	struct cca m;
	struct cca_result r; /* the last answer */
};

/* Machine alone; with a realm in state NEW; with tables for the first 4 MiB of both halves; and with a REC. */
void world_begin(struct world *w);
void world_realm(struct world *w);
void world_tables(struct world *w);
void world_rec(struct world *w);
void world_activate(struct world *w);
void world_end(struct world *w); /* checks the model first */

/* A command with its arguments in the order of the interface. RMI: its code, as CODE(); RUN: how many were done. The
 * model must not lack memory. */
#define RMI(w, cmd, ...)        world_rmi(w, cmd, (const uint64_t[5]){ __VA_ARGS__ })
#define RUN(w, cmd, count, ...) world_run(w, cmd, count, (const uint64_t[5]){ __VA_ARGS__ })
#define CODE(status, index)     ((unsigned)(status) | (unsigned)(index) << 8)
unsigned world_rmi(struct world *w, enum cca_command cmd, const uint64_t x[5]);
uint64_t world_run(struct world *w, enum cca_command cmd, uint64_t count, const uint64_t x[5]);
/* Without the pages of REALM_CREATE and REC_CREATE, which world_rmi adds. */
struct cca_call world_call(enum cca_command cmd, const uint64_t x[5]);
struct cca_realm_params world_realm_params(void);
struct cca_rec_params world_rec_params(void); /* of REC 0 at WORLD_REC, its auxiliary granules behind it */

/* The realm asks for a RIPAS: enter, ask, exit. */
void world_ask(struct world *w, uint64_t base, uint64_t top, enum cca_ripas value, bool change_destroyed);

#endif
