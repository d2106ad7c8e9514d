/* raft/codec.h - the things of the registry to and from their messages, for commands and snapshots.
 *
 * Messages made here borrow their text from the struct, which must outlive them. Reading checks every
 * bound: a text too long for its array, a word that is none, a field that this build does not know.
 *
 * Thread: any. */
#ifndef SKERRY_RAFT_CODEC_H
#define SKERRY_RAFT_CODEC_H

#include <stdbool.h>

#include "raft/registry.h"
#include "raft/registry.pb-c.h"

void codec_node_write(Skerry__Registry__Node *out, const struct registry_node *node);
bool codec_node_read(struct registry_node *out, const Skerry__Registry__Node *in);

struct codec_instance {
    Skerry__Registry__Instance message;
    Skerry__Registry__Marks marks;
    Skerry__Registry__Usage usage;
};
void codec_usage_write(Skerry__Registry__Usage *out, const struct registry_usage *usage);
void codec_usage_read(struct registry_usage *out, const Skerry__Registry__Usage *in /* or NULL */);

void codec_instance_write(struct codec_instance *out, const struct registry_instance *instance);
bool codec_instance_read(struct registry_instance *out, const Skerry__Registry__Instance *in);

void codec_token_write(Skerry__Registry__Token *out, const struct registry_token *token);
bool codec_token_read(struct registry_token *out, const Skerry__Registry__Token *in);

void codec_ssh_key_write(Skerry__Registry__SshKey *out, const struct registry_ssh_key *key);
bool codec_ssh_key_read(struct registry_ssh_key *out, const Skerry__Registry__SshKey *in);

void codec_domain_write(Skerry__Registry__Domain *out, const struct registry_domain *domain);
bool codec_domain_read(struct registry_domain *out, const Skerry__Registry__Domain *in);

void codec_ticket_write(Skerry__Registry__Ticket *out, const struct registry_ticket *ticket);
bool codec_ticket_read(struct registry_ticket *out, const Skerry__Registry__Ticket *in);

void codec_image_write(Skerry__Registry__Image *out, const struct registry_image *image);
bool codec_image_read(struct registry_image *out, const Skerry__Registry__Image *in);

/* False if the message or one inside it has a field that this build does not know. */
bool codec_known(const ProtobufCMessage *message);
/* protobuf-c never writes through the pointers of a message that it packs. */
static inline char *codec_borrow(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* Little endian. */
static inline void codec_put32(uint8_t *out, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static inline uint32_t codec_get32(const uint8_t *in)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < 4; i++)
        value |= (uint32_t)in[i] << (8 * i);
    return value;
}

/* Copies `in` into an array, or false if it does not fit whole. */
bool codec_text_read(char *out, size_t size, const char *in);
/* True if `text` is ended within its array. */
bool codec_text_ended(const char *text, size_t size);

#endif
