/* gateway/ssh.h - joins over SSH: a front of its own thread, on libssh.
 *
 *     ssh client === session === channel (shell, exec, sftp) --- link to exec of the API
 *                       |------- channel (direct-tcpip) -------- link to a port, by the API as well
 *                       '------- link that holds the place of the joiner
 *
 * The user's name says what is joined (ssh_name_parse); a public key that the registry has for it is all
 * that opens it. A session is one joiner, held by `POST .../join` of this node's own API, and each channel
 * one `POST .../exec` there, or one `POST .../connect`: so an instance of another node is reached as every request of the API is,
 * with one hop. Links are connections to the API's unix socket, where the node itself is trusted.
 *
 * Libssh reads hostile bytes before anybody is known. So connections that have not signed in are few, and
 * fewer of one address; they are cut after SSH_LOGIN_MS or SSH_ATTEMPTS_MAX refused keys, counted and told
 * at a bounded rate. Nothing blocks: each libssh session is driven by its descriptor's events.
 *
 * Threads: ssh_front_open and _close: the control thread. Calls of struct ssh_calls: the front's own. */
#ifndef SKERRY_GATEWAY_SSH_H
#define SKERRY_GATEWAY_SSH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define SSH_LOGIN_MS 20000u
#define SSH_ATTEMPTS_MAX 6u
#define SSH_STRANGERS_MAX 32u /* that have not signed in */
#define SSH_STRANGERS_OF_ONE_ADDRESS_MAX 8u
#define SSH_CHANNELS_MAX 10u /* of one session, as OpenSSH's MaxSessions */
#define SSH_FORWARDS_MAX 16u /* connections to ports at a time, of one session */
#define SSH_FORWARDS_IN_ALL_MAX 128u
/* What a shell is, by `/bin/sh -c`: the better one that the image has. */
#define SSH_SHELL "command -v bash >/dev/null 2>&1 && exec bash; exec sh"
#define SSH_JOIN_KEY_MAX 128u

/* What a user's name asks for. */
struct ssh_name {
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* "": `instance` is named */
    char key[SSH_JOIN_KEY_MAX + 1];              /* "": none */
    char instance[INSTANCE_ID_LENGTH_MAX + 1];
};
/* WORKLOAD, WORKLOAD+KEY, or a whole instance id. False: none of them. */
bool ssh_name_parse(struct ssh_name *out, const char *text);

struct ssh_calls {
    void *user;
    /* The seed of the cluster's host key; false: there is none yet. */
    bool (*seed)(void *user, uint8_t out[32]);
    /* Whether this public key (RFC 4253 section 6.6) opens what is named. */
    bool (*may)(void *user, const struct ssh_name *name, const uint8_t *blob, size_t length);
    /* timeouts.stream_idle of an instance's workload; UINT64_MAX: none. */
    uint64_t (*stream_idle_ms)(void *user, const char *instance);
};

struct ssh_front_options {
    const char *listen;     /* "127.0.0.1:2222" */
    const char *api_socket; /* of this node's API */
    unsigned sessions_max;
    struct ssh_calls calls;
};

struct ssh_front;
int ssh_front_open(struct ssh_front **out, const struct ssh_front_options *options,
                   struct err *e) ERR_CHECKED;
/* Ends all sessions and joins the thread. */
void ssh_front_close(struct ssh_front *f);

struct ssh_front_counters {
    uint64_t accepted, signed_in;
    uint64_t refused;  /* connections, for a bound */
    uint64_t denied;   /* keys and passwords that opened nothing */
    uint64_t too_late; /* cut before they had signed in */
    unsigned sessions;
};
/* Any thread. */
void ssh_front_counters(const struct ssh_front *f, struct ssh_front_counters *out);

#endif
