/* node/cluster/enroll_internal.h - the answering side of the join handshake, in two files. */
#ifndef SKERRY_NODE_CLUSTER_ENROLL_INTERNAL_H
#define SKERRY_NODE_CLUSTER_ENROLL_INTERNAL_H

#include "node/cluster/enroll.h"
#include "node/cluster/enroll_wire.h"

/* What was decided of a request. */
struct enroll_verdict_of {
    enum enroll_refusal refusal; /* ENROLL_REFUSAL_COUNT: none */
    char words[ENROLL_WORDS_SIZE];
    node_id member; /* its key is this node's already; 0: it is to be proposed */
};

struct enroll_asking {
    const struct enroll_request *request;
    const struct identity_public *key; /* proved by the handshake */
    const struct registry_root *root;
    const char *name; /* of this node */
    uint64_t wall_ms;
    uint64_t nodes_max; /* 0: as many as come */
};
/* Everything that can be said without asking the registry's leader. */
void enroll_check(const struct enroll_asking *a, struct enroll_verdict_of *out);
/* Of a request with a member's id. An old root may not know of a node yet, never of one that it was
 * removed though it was not. */
void enroll_confirm(const struct enroll_asking *a, struct enroll_answer *out);
/* Words and refusal of a request that was not read. */
void enroll_check_unread(const struct enroll_request *request, int rc,
                         struct enroll_verdict_of *out);
/* What a node is told that joined as `id`. -ERR_NO_MEMORY or -ERR_LIMIT. */
int enroll_tell(struct enroll_answer *out, const struct registry_root *root, node_id id,
                struct err *e) ERR_CHECKED;

#endif
