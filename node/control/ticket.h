/* node/control/ticket.h - tickets of browsers, and the cookies that they become, as text.
 *
 *     skj_ base64url( u8 version | u8 kind | u64 expires ms | u32 session s | 16 nonce | 16 host
 *                     | u8 length, token id | u8 length, subject | 32 tag )
 *
 * The tag is a keyed BLAKE2b over all before it, under a key that is derived from the secret of the
 * registry: every node makes and reads them. Whoever has one joins with it as with the token that it was
 * made with, no longer than that token lives.
 *
 * Thread: any; pure functions. */
#ifndef SKERRY_NODE_CONTROL_TICKET_H
#define SKERRY_NODE_CONTROL_TICKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/words.h"
#include "raft/registry.h"

#define TICKET_PREFIX "skj_"
#define TICKET_HOST_BYTES 16
#define TICKET_TEXT_SIZE 256

#define TICKET_TTL_MS 60000u /* unless another is asked for */
#define TICKET_TTL_MAX_MS 600000u
#define TICKET_SESSION_MS 3600000u
#define TICKET_SESSION_MAX_MS 86400000u

enum ticket_kind {
    TICKET_OF_WORKLOAD = 1,
    TICKET_OF_INSTANCE,
    TICKET_COOKIE_OF_WORKLOAD,
    TICKET_COOKIE_OF_INSTANCE,
};

struct ticket {
    enum ticket_kind kind;
    uint64_t expires_wall_ms;
    uint32_t session_s; /* how long the cookie will be good */
    uint8_t nonce[REGISTRY_TICKET_NONCE_BYTES];
    uint8_t host[TICKET_HOST_BYTES]; /* of a cookie: ticket_host of where it was given */
    char token[17]; /* id of the token that it stands for; "": an admin's of this machine */
    char subject[WORKLOAD_NAME_LENGTH_MAX + 1]; /* the workload, or the instance's whole id */
};

void ticket_write(const struct ticket *t, const uint8_t secret[REGISTRY_SSH_SEED_BYTES],
                  char out[TICKET_TEXT_SIZE]);
/* False unless it was written under this secret; takes as long for any text of its length. */
bool ticket_read(struct ticket *out, const uint8_t secret[REGISTRY_SSH_SEED_BYTES],
                 const char *text, size_t length);
void ticket_host(const char *host, uint8_t out[TICKET_HOST_BYTES]);

/* Whether it lets somebody join now: PROBLEM_NONE, _UNAUTHORIZED (over, or its token is), _FORBIDDEN (for
 * something else). `instance` NULL: a join by workload. */
enum problem ticket_judge(const struct registry_root *root, const struct ticket *t,
                          const char *workload, const char *instance, uint64_t wall_ms);

#endif
