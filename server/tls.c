#include "server/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHAIN_MAX     16
#define PEM_MAX_BYTES (1u << 20)
#define RETIRED_FOR_S 600 /* longer than any handshake may take */

struct credentials {
	gnutls_pcert_st chain[CHAIN_MAX];
	unsigned chain_count;
	gnutls_privkey_t key;
	struct credentials *older; /* retired, newest first */
	int64_t retired_s;
};

struct tls {
	const struct config *config; /* borrowed */
	_Atomic(struct credentials *) current;
	char *client_ca;
};

static _Atomic(struct tls *) the_tls;

static int64_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

struct pem {
	char *text;
	size_t size;
};

static void pem_wipe(struct pem *p)
{
	if (p->text)
		explicit_bzero(p->text, p->size);
	free(p->text);
	*p = (struct pem){ 0 };
}

static enum pw_status read_whole(int fd, const char *path, size_t size, struct pem *out, struct pw_err *err)
{
	struct pem p = { malloc(size + 1), size };
	size_t got = 0;

	if (!p.text)
		return pw_fail(err, PW_NO_MEMORY, "%s: no memory", path);
	while (got < size) {
		ssize_t n = read(fd, p.text + got, size - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			pem_wipe(&p);
			return pw_fail(err, PW_INVALID, "%s: cannot be read whole", path);
		}
		got += (size_t)n;
	}
	p.text[size] = '\0';
	*out = p;
	return PW_OK;
}

static enum pw_status pem_read(const char *path, struct pem *out, struct pw_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	enum pw_status st;
	struct stat info;

	if (fd < 0)
		return pw_fail(err, PW_INVALID, "%s: %s", path, strerror(errno));
	if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0 || info.st_size > PEM_MAX_BYTES)
		st = pw_fail(err, PW_INVALID, "%s: not a file of 1 byte to 1 MiB", path);
	else
		st = read_whole(fd, path, (size_t)info.st_size, out, err);
	close(fd);
	return st;
}

static void credentials_free(struct credentials *c)
{
	while (c) {
		struct credentials *older = c->older;

		for (unsigned i = 0; i < c->chain_count; i++)
			gnutls_pcert_deinit(&c->chain[i]);
		if (c->key)
			gnutls_privkey_deinit(c->key);
		free(c);
		c = older;
	}
}

static enum pw_status load_chain(struct credentials *c, const char *path, struct pw_err *err)
{
	unsigned count = CHAIN_MAX;
	struct pem pem = { 0 };
	enum pw_status st = pem_read(path, &pem, err);
	int rc;

	if (st != PW_OK)
		return st;
	rc = gnutls_pcert_list_import_x509_raw(c->chain, &count,
					       &(gnutls_datum_t){ (unsigned char *)pem.text, (unsigned)pem.size },
					       GNUTLS_X509_FMT_PEM, 0);
	pem_wipe(&pem);
	if (rc < 0)
		return pw_fail(err, PW_INVALID, "%s: no PEM certificate chain: %s", path, gnutls_strerror(rc));
	c->chain_count = count;
	return PW_OK;
}

static enum pw_status load_key(struct credentials *c, const char *path, struct pw_err *err)
{
	struct pem pem = { 0 };
	enum pw_status st = pem_read(path, &pem, err);
	int rc;

	if (st != PW_OK)
		return st;
	rc = gnutls_privkey_init(&c->key);
	if (rc >= 0)
		rc = gnutls_privkey_import_x509_raw(c->key,
						    &(gnutls_datum_t){ (unsigned char *)pem.text, (unsigned)pem.size },
						    GNUTLS_X509_FMT_PEM, NULL, 0);
	pem_wipe(&pem);
	if (rc < 0)
		return pw_fail(err, PW_INVALID, "%s: no PEM private key: %s", path, gnutls_strerror(rc));
	return PW_OK;
}

static bool key_fits(struct credentials *c)
{
	unsigned char of_cert[64], of_key[64];
	size_t cert_size = sizeof of_cert, key_size = sizeof of_key;
	gnutls_pubkey_t pub;
	bool fits;

	if (gnutls_pubkey_init(&pub) < 0)
		return false;
	fits = gnutls_pubkey_import_privkey(pub, c->key, 0, 0) >= 0 &&
	       gnutls_pubkey_get_key_id(pub, GNUTLS_KEYID_USE_SHA256, of_key, &key_size) >= 0 &&
	       gnutls_pubkey_get_key_id(c->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, of_cert, &cert_size) >= 0 &&
	       key_size == cert_size && memcmp(of_key, of_cert, key_size) == 0;
	gnutls_pubkey_deinit(pub);
	return fits;
}

static enum pw_status credentials_load(const struct config *config, struct credentials **out, struct pw_err *err)
{
	struct credentials *c = calloc(1, sizeof *c);
	enum pw_status st;

	if (!c)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the TLS credentials");
	st = load_chain(c, config->tls_cert, err);
	if (st != PW_OK)
		st = pw_wrap(err, "--tls-cert");
	else if (load_key(c, config->tls_key, err) != PW_OK)
		st = pw_wrap(err, "--tls-key");
	if (st == PW_OK && !key_fits(c))
		st = pw_fail(err, PW_INVALID, "%s is not the key of %s", config->tls_key, config->tls_cert);
	if (st != PW_OK) {
		credentials_free(c);
		return st;
	}
	*out = c;
	return PW_OK;
}

static void forget_old(struct credentials *c)
{
	int64_t now = now_s();

	while (c->older && now - c->older->retired_s < RETIRED_FOR_S)
		c = c->older;
	credentials_free(c->older);
	c->older = NULL;
}

enum pw_status tls_reload(struct tls *t, struct pw_err *err)
{
	struct credentials *old = atomic_load(&t->current), *fresh;
	enum pw_status st = credentials_load(t->config, &fresh, err);

	if (st != PW_OK)
		return st;
	old->retired_s = now_s();
	fresh->older = old;
	forget_old(fresh);
	atomic_store(&t->current, fresh);
	return PW_OK;
}

enum pw_status tls_open(const struct config *c, struct tls **out, struct pw_err *err)
{
	struct credentials *credentials = NULL;
	struct tls *t = calloc(1, sizeof *t);
	struct pem ca = { 0 };
	enum pw_status st;

	if (!t)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the TLS credentials");
	t->config = c;
	st = credentials_load(c, &credentials, err);
	if (st != PW_OK)
		goto fail;
	atomic_init(&t->current, credentials);
	if (c->tls_client_ca) {
		st = pem_read(c->tls_client_ca, &ca, err);
		if (st != PW_OK) {
			st = pw_wrap(err, "--tls-client-ca");
			goto fail;
		}
		t->client_ca = ca.text;
	}
	atomic_store(&the_tls, t);
	*out = t;
	return PW_OK;
fail:
	credentials_free(credentials);
	free(t);
	return st;
}

void tls_close(struct tls *t)
{
	if (!t)
		return;
	atomic_store(&the_tls, NULL);
	credentials_free(atomic_load(&t->current));
	free(t->client_ca);
	free(t);
}

const char *tls_client_ca(const struct tls *t)
{
	return t->client_ca;
}

bool tls_is_client_verified(gnutls_session_t session)
{
	gnutls_typed_vdata_st purpose = { .type = GNUTLS_DT_KEY_PURPOSE_OID,
					  .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT };
	unsigned status = 0;

	return gnutls_certificate_verify_peers(session, &purpose, 1, &status) >= 0 && status == 0;
}

static int refuse_unverified(gnutls_session_t session)
{
	return tls_is_client_verified(session) ? 0 : GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR;
}

int tls_retrieve(gnutls_session_t session, const gnutls_datum_t *req_ca, int ca_count,
		 const gnutls_pk_algorithm_t *algos, int algo_count, gnutls_pcert_st **chain, unsigned *chain_count,
		 gnutls_privkey_t *key)
{
	struct tls *t = atomic_load(&the_tls);
	struct credentials *c;

	if (!t)
		return -1;
	c = atomic_load(&t->current);
	*chain = c->chain;
	*chain_count = c->chain_count;
	*key = c->key;
	if (t->client_ca) {
		gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_function(session, refuse_unverified);
	}
	return 0;
}
