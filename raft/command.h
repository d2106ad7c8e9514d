/* raft/command.h - the registry's commands as bytes of the Raft log.
 *
 *     4 bytes   format, little endian: COMMAND_FORMAT
 *     4 bytes   length of the message, little endian
 *     length    Command (raft/registry.proto)
 *     0-7       zeros up to a multiple of 8, which libraft asks for
 *
 * Encoding checks all bounds, so that what stands in the log always decodes. A command whose format,
 * kind or any field is not known to this build does not decode: the node must halt, for to skip it
 * would let replicas differ.
 *
 * Thread: any. */
#ifndef SKERRY_RAFT_COMMAND_H
#define SKERRY_RAFT_COMMAND_H

#include <stddef.h>
#include <stdint.h>

#include "raft/registry.h"

#define COMMAND_FORMAT 1u
/* The largest is a workload: its JSON, at most 1 MiB, and some 200 bytes around it. */
#define COMMAND_WORKLOAD_JSON_MAX (1024u * 1024u)
#define COMMAND_BYTES_MAX (COMMAND_WORKLOAD_JSON_MAX + 1024u)

/* Who asks: answered once for each number. */
struct command_session {
    node_id node;
    uint64_t boot;
    uint64_t sequence;
};

/* What breaks a bound in it, or NULL. Encoding and decoding ask this. */
const char *command_fault(const struct registry_command *command);

/* Which level of the registry a kind of command needs, so that nodes of two releases run together: a
 * new kind gets the next level, and is not proposed before every node has it. */
uint32_t command_feature_level(enum registry_command_kind kind);

/* *out is malloc'ed, the caller's; *out_length a multiple of 8. */
int command_encode(uint8_t **out, size_t *out_length, const struct command_session *session,
                   const struct registry_command *command, struct err *e) ERR_CHECKED;

struct command {
    struct command_session session;
    struct registry_command body; /* points into the members below, or into `message` */
    struct registry_instance instance;
    struct registry_token token;
    struct registry_image image;
    struct registry_node node;
    struct registry_ssh_key ssh_key;
    struct registry_domain domain;
    struct registry_ticket ticket;
    void *message;
};

int command_decode(struct command *out, const void *data, size_t length, struct err *e) ERR_CHECKED;
void command_free(struct command *c);

#endif
