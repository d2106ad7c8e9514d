/* gateway/ssh_internal.h - what the files of gateway/ssh.h share. All of it belongs to the front's thread. */
#ifndef SKERRY_GATEWAY_SSH_INTERNAL_H
#define SKERRY_GATEWAY_SSH_INTERNAL_H

/* Old names of libssh, one of which base/buffer.h has too; libssh itself calls none of them. */
#define LEGACY_H_
#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "base/buffer.h"
#include "base/refusals.h"
#include "gateway/ssh.h"

#define SSH_LINK_BYTES_MAX (256u * 1024u) /* of one direction, besides SSH_INPUT_BYTES_MAX */
/* What libssh may hold of one channel. It lets a client send 1,280,000 bytes more (WINDOWBASE) whenever it
 * reads when less than 640,000 are allowed (WINDOWLIMIT), whatever waits here already: of each read of a
 * part, an allowance comes. So all is read at once, or nothing. */
#define SSH_INPUT_BYTES_MAX (2u * 1024u * 1024u)
#define SSH_VARIABLES_MAX 16u
#define SSH_VARIABLE_MAX 256u
#define SSH_COMMAND_MAX 32768u /* as the API takes in one word */
#define SSH_COMMAND_TOO_LONG                                                                       \
    "a command may have 32768 bytes; send what is longer to the stdin of `sh`"

#define SSH_RUNS_MAX (SSH_CHANNELS_MAX + SSH_FORWARDS_MAX)

struct ssh_session;

/* --- ssh_link.c: one request to the API; behind its head, bytes both ways --- */
enum ssh_link_phase { SSH_LINK_HEAD, SSH_LINK_BODY, SSH_LINK_OVER };
struct ssh_link {
    uv_poll_t poll;
    int fd;
    enum ssh_link_phase phase;
    struct ssh_session *session; /* pumped when something came; NULL: let go */
    struct buffer out, in;       /* `in`: the head, then what follows it */
    unsigned status;
    uint64_t body_length; /* UINT64_MAX: until the node closes */
    char code[48], instance[INSTANCE_ID_LENGTH_MAX + 1];
};
/* NULL: it could not be asked. `upgrade`: to skerry-exec/1. */
struct ssh_link *ssh_link_open(struct ssh_session *s, const char *path, const char *body,
                               bool upgrade);
/* Reads what is there and writes what waits; the caller looks at phase, in and out. True if something was
 * read or written, or it is over now: no event will tell of that again. */
bool ssh_link_pump(struct ssh_link *l);
void ssh_link_close(struct ssh_link **l);
/* Of a link that is over and was no success: what to tell the client. */
void ssh_link_problem(const struct ssh_link *l, char *out, size_t size);

/* --- ssh_channel.c: a shell, a command or a subsystem, or a port (ssh_forward.c) --- */
struct ssh_run {
    struct ssh_session *session;
    ssh_channel channel;
    struct ssh_channel_callbacks_struct callbacks;
    unsigned port;           /* of the instance's loopback; 0: a command */
    char host[16];           /* with a port: localhost, 127.0.0.1 or ::1 */
    uint64_t drain_until_ms; /* with a port whose channel the client has closed */
    bool wanted;             /* a command was asked for, or a port */
    bool too_long;
    bool tty;
    unsigned rows, columns;
    char *command; /* NULL: a shell */
    char *variables[SSH_VARIABLES_MAX];
    size_t variable_count;
    struct ssh_link *link;
    struct buffer output; /* of stdout, then of stderr: what the client has no room for yet */
    bool output_errors;   /* `output` is of stderr */
    bool input_ended, ended, closed;
    int exit_code;
    unsigned signal;
    size_t unread; /* what libssh holds for us */
};
ssh_channel ssh_run_new(struct ssh_session *s);
/* One for a port, on a channel that is open, which it frees from then on; the caller sees to the bounds. */
struct ssh_run *ssh_run_new_port(struct ssh_session *s, ssh_channel channel);
/* False: the client's channel is over and gone. */
bool ssh_run_pump(struct ssh_run *r);
void ssh_run_free(struct ssh_run *r);

/* --- ssh_forward.c: what libssh has no callback for; of that, connections to ports are taken --- */
int ssh_forward_message_cb(ssh_session ssh, ssh_message message, void *session);
/* To who follows with `ssh -v`: a channel to a port has no other place for words. */
void ssh_forward_told(struct ssh_session *s, const char *text);

/* --- ssh_session.c --- */
enum ssh_phase { SSH_PHASE_KEYS, SSH_PHASE_LOGIN, SSH_PHASE_OPEN, SSH_PHASE_CLOSING };
struct ssh_session {
    struct ssh_front *front;
    struct ssh_session *previous, *next;
    enum ssh_phase phase;
    ssh_session ssh;
    ssh_event event;
    struct ssh_server_callbacks_struct callbacks;
    uv_poll_t poll;
    char peer[64], address[48];
    unsigned attempts;
    uint64_t deadline_ms, active_ms, stream_idle_ms;
    struct ssh_name name;
    char user[SSH_JOIN_KEY_MAX + WORKLOAD_NAME_LENGTH_MAX + 2];
    uint8_t *blob; /* the key that it signed in with */
    size_t blob_length;
    struct ssh_link *place; /* of the joiner */
    unsigned joins_tried;
    bool joined, again, cut;
    /* The client has done something since the channels were last looked at. Libssh reads the client also
     * where it is written to: no event will tell of that. */
    bool stirred;
    bool blocked;                       /* a channel waited until libssh has sent what it holds */
    char refusal[600];                  /* why there is no place */
    struct ssh_run *runs[SSH_RUNS_MAX]; /* SSH_CHANNELS_MAX of commands, then of ports */
    unsigned forward_count;
};
/* Takes the descriptor. */
void ssh_session_open(struct ssh_front *f, int fd, const char *address, const char *peer);
void ssh_session_pump(struct ssh_session *s);
void ssh_session_close(struct ssh_session *s);
/* Once a second: deadlines, keys that are gone. */
void ssh_session_sweep(struct ssh_session *s, uint64_t now_ms);

/* --- ssh.c --- */
enum {
    SSH_REFUSED_FULL,
    SSH_REFUSED_STRANGERS,
    SSH_REFUSED_LATE,
    SSH_REFUSED_KEY,
    SSH_REFUSED_FORWARD
};
struct ssh_front {
    struct ssh_front_options options;
    char *listen, *api_socket;
    pthread_t thread;
    uv_loop_t loop;
    uv_async_t stop;
    uv_timer_t sweep;
    uv_poll_t accept;
    int fd;
    bool stopping;
    ssh_bind bind; /* NULL until there is a host key */
    struct ssh_session *sessions;
    unsigned session_count, stranger_count, forward_count;
    struct refusals refusals;
    _Atomic uint64_t accepted, signed_in, refused, denied, too_late;
    _Atomic unsigned sessions_now;
    char input[SSH_INPUT_BYTES_MAX]; /* what was read of one channel, until it is framed */
};

#endif
