/* server/tls.h
 *
 * The server's certificate and key, which can be read again while connections go on, and the check of clients'
 * certificates. Old credentials stay until no handshake can be using them.
 */
#ifndef PW_SERVER_TLS_H
#define PW_SERVER_TLS_H
#include <gnutls/abstract.h>

#include "server/config.h"

struct tls;

/* One at a time in a process: GnuTLS' certificate callback takes no argument.
 * PW_INVALID  a file that cannot be read, is no PEM, or a key that does not fit the certificate. */
enum pw_status tls_open(const struct config *c, struct tls **out, struct pw_err *err) PW_MUST_CHECK;
void tls_close(struct tls *t); /* after the last handshake; NULL is fine */
/* Reads certificate and key again; on failure the old ones stay. One thread at a time. */
enum pw_status tls_reload(struct tls *t, struct pw_err *err) PW_MUST_CHECK;

const char *tls_client_ca(const struct tls *t); /* PEM text, or NULL: clients need no certificate */
/* Has the client of this session shown a certificate that the client CA vouches for? */
bool tls_is_client_verified(gnutls_session_t session);

/* For MHD_OPTION_HTTPS_CERT_CALLBACK. Also makes the handshake demand the client's certificate if one is needed. */
int tls_retrieve(gnutls_session_t session, const gnutls_datum_t *req_ca, int ca_count,
		 const gnutls_pk_algorithm_t *algos, int algo_count, gnutls_pcert_st **chain, unsigned *chain_count,
		 gnutls_privkey_t *key);

#endif
