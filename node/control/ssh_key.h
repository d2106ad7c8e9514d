/* node/control/ssh_key.h - public keys of SSH: from the text that ssh-keygen writes to the registry's form.
 *
 *     ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI... me@home
 *
 * Thread: any. */
#ifndef SKERRY_NODE_CONTROL_SSH_KEY_H
#define SKERRY_NODE_CONTROL_SSH_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "raft/registry.h"

#define SSH_KEY_TYPE_SIZE 40
#define SSH_KEY_FINGERPRINT_SIZE 52 /* "SHA256:" and 43 of base64 */
#define SSH_KEY_TEXT_MAX 4096

/* Reads one key, with its comment as the name; lines that are empty or begin with # may stand around
 * it. Ed25519, ECDSA and RSA of 2048 to 8192 bits, and the first two as kept by a security key. A
 * private key, options before the key, and several keys are refused with a text that says so. Fills
 * blob and name; id and workload are for ssh_key_name. */
int ssh_key_parse(struct registry_ssh_key *out, const char *text, size_t length,
                  struct err *e) ERR_CHECKED;
/* For this workload (NULL: any); makes the id. False: no name of a workload. */
bool ssh_key_name(struct registry_ssh_key *key, const char *workload);
void ssh_key_kind(const struct registry_ssh_key *key, char out[SSH_KEY_TYPE_SIZE]);
/* As ssh-keygen -l has it. */
void ssh_key_fingerprint(const struct registry_ssh_key *key, char out[SSH_KEY_FINGERPRINT_SIZE]);
/* Whether the registry has this key for the workload, or for any; "" asks for any alone. `id` is that of
 * the entry. */
bool ssh_key_known(const struct registry_root *root, const char *workload, const uint8_t *blob,
                   size_t length, char id[17]);

#endif
