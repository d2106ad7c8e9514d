/* tests/sim/raft_wire.h - libraft's messages as bytes and back. */
#ifndef SKERRY_TESTS_SIM_RAFT_WIRE_H
#define SKERRY_TESTS_SIM_RAFT_WIRE_H

#include <raft.h>
#include <stddef.h>
#include <stdint.h>

/* The caller frees. */
uint8_t *wire_encode(const struct raft_message *m, size_t *size);
/* What it points to is libraft's, by raft_malloc; the addresses are not set. */
void wire_decode(const uint8_t *bytes, size_t size, struct raft_message *out);
/* "append 12+3 commit 11 term 4", for the trace. */
void wire_describe(const struct raft_message *m, char *out, size_t size);

#endif
