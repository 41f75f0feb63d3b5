/* agents/kvm_vault.h
 *
 * Where the kvm backend keeps the content of paged-out pages: encrypted (XChaCha20-Poly1305) under a key that is made
 * for one VM, lives in locked memory of this process, and dies with the VM. The guest frame number is authenticated,
 * so that no page can come back in another's place. Plain content never stays here (law L10).
 */
#ifndef PW_AGENTS_KVM_VAULT_H
#define PW_AGENTS_KVM_VAULT_H
#include "engine/status.h"

#define VAULT_PAGE 4096

struct vault_page;
struct vault {
	unsigned char *key;
	uint64_t nonce; /* counts up; the key is never used with one twice */
	struct vault_page **buckets;
	size_t bucket_count, pages;
};

/* Empty, under a fresh key. */
enum pw_status vault_init(struct vault *v, struct pw_err *err) PW_MUST_CHECK;
void vault_release(struct vault *v);

/* Keeps a page's content, in place of what was kept for this GFN. PW_NO_MEMORY: nothing changed. */
enum pw_status vault_put(struct vault *v, uint64_t gfn, const void *page, struct pw_err *err) PW_MUST_CHECK;

/* Writes the content kept for gfn to `page`, and keeps it still. *found is false, and page untouched, if there is none.
 * PW_BACKEND  it was tampered with. */
enum pw_status vault_get(const struct vault *v, uint64_t gfn, void *page, bool *found,
			 struct pw_err *err) PW_MUST_CHECK;

void vault_drop(struct vault *v, uint64_t gfn, uint64_t count);

#endif
