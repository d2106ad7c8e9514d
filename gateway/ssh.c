/* gateway/ssh.c - the thread, the listener, and the cluster's host key. */
#include "gateway/ssh.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/ssh_internal.h"

#define SWEEP_MS 500u
#define ACCEPT_IN_A_ROW_MAX 32u
#define LISTEN_BACKLOG 64

/* No SHA-1, no CBC; no group exchange, whose large primes cost a stranger nothing and us a lot. */
#define KEY_EXCHANGES                                                                              \
    "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384"
#define CIPHERS                                                                                    \
    "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,"      \
    "aes128-ctr"
#define MACS                                                                                       \
    "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512"
#define KEY_TYPES                                                                                  \
    "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,"        \
    "rsa-sha2-256,sk-ssh-ed25519@openssh.com,sk-ecdsa-sha2-nistp256@openssh.com"

static const char *const refusal_names[] = {"full", "strangers", "late", "key", "forward"};

/* --- the host key ----------------------------------------------------------------------------------- */

static bool put_string(struct buffer *b, const void *data, size_t length)
{
    const unsigned char head[4] = {(unsigned char)(length >> 24), (unsigned char)(length >> 16),
                                   (unsigned char)(length >> 8), (unsigned char)length};
    return buffer_append(b, head, sizeof head) && buffer_append(b, data, length);
}

static bool put_text(struct buffer *b, const char *text)
{
    return put_string(b, text, strlen(text));
}

/* The two halves of OpenSSH's file format (PROTOCOL.key), unencrypted, which libssh reads. */
static bool key_file(const uint8_t seed[32], struct buffer *out)
{
    unsigned char public_key[crypto_sign_PUBLICKEYBYTES], secret[crypto_sign_SECRETKEYBYTES];
    static const unsigned char one_key[4] = {0, 0, 0, 1}, check[8] = {0};
    struct buffer blob, part;
    buffer_init(&blob, 4096);
    buffer_init(&part, 4096);
    (void)crypto_sign_seed_keypair(public_key, secret, seed);
    bool done =
        put_text(&part, "ssh-ed25519") && put_string(&part, public_key, sizeof public_key) &&
        buffer_append(&blob, "openssh-key-v1", 15) && put_text(&blob, "none") &&
        put_text(&blob, "none") && put_text(&blob, "") &&
        buffer_append(&blob, one_key, sizeof one_key) && put_string(&blob, part.data, part.length);
    buffer_consume(&part, part.length);
    done = done && buffer_append(&part, check, sizeof check) && put_text(&part, "ssh-ed25519") &&
           put_string(&part, public_key, sizeof public_key) &&
           put_string(&part, secret, sizeof secret) && put_text(&part, "");
    for (char pad = 1; done && part.length % 8 != 0; pad++)
        done = buffer_append(&part, &pad, 1);
    done = done && put_string(&blob, part.data, part.length);
    char text[2048];
    if (done)
        (void)sodium_bin2base64(text, sizeof text, (const unsigned char *)blob.data, blob.length,
                                sodium_base64_VARIANT_ORIGINAL);
    done = done && buffer_append_text(out, "-----BEGIN OPENSSH PRIVATE KEY-----\n");
    for (size_t at = 0, all = done ? strlen(text) : 0; done && at < all; at += 70)
        done = buffer_append(out, text + at, all - at < 70 ? all - at : 70) &&
               buffer_append_text(out, "\n");
    done = done && buffer_append_text(out, "-----END OPENSSH PRIVATE KEY-----\n") &&
           buffer_append(out, "", 1);
    sodium_memzero(secret, sizeof secret);
    sodium_memzero(text, sizeof text);
    if (part.data != NULL)
        sodium_memzero(part.data, part.capacity);
    if (blob.data != NULL)
        sodium_memzero(blob.data, blob.capacity);
    buffer_free(&part);
    buffer_free(&blob);
    return done;
}

static ssh_key host_key(const uint8_t seed[32])
{
    ssh_key key = NULL;
    struct buffer file;
    buffer_init(&file, 4096);
    if (key_file(seed, &file) &&
        ssh_pki_import_privkey_base64(file.data, NULL, NULL, NULL, &key) != SSH_OK)
        key = NULL;
    if (file.data != NULL)
        sodium_memzero(file.data, file.capacity);
    buffer_free(&file);
    return key;
}

static bool options_set(ssh_bind bind, ssh_key key)
{
    bool no = false;
    return ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PROCESS_CONFIG, &no) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_KEY_EXCHANGE, KEY_EXCHANGES) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_C_S, CIPHERS) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_S_C, CIPHERS) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_C_S, MACS) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_S_C, MACS) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HOSTKEY_ALGORITHMS, "ssh-ed25519") == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PUBKEY_ACCEPTED_KEY_TYPES, KEY_TYPES) == 0 &&
           ssh_bind_options_set(bind, SSH_BIND_OPTIONS_IMPORT_KEY, key) == 0;
}

/* Once the registry has a host key; until then clients are not served. */
static void bind_make(struct ssh_front *f)
{
    const struct ssh_calls *calls = &f->options.calls;
    uint8_t seed[32];
    if (f->bind != NULL || !calls->seed(calls->user, seed))
        return;
    ssh_key key = host_key(seed);
    sodium_memzero(seed, sizeof seed);
    ssh_bind bind = key == NULL ? NULL : ssh_bind_new();
    if (bind == NULL || !options_set(bind, key)) {
        log_error("ssh", "libssh takes no host key or algorithms: %s",
                  bind == NULL ? "no key" : ssh_get_error(bind));
        ssh_bind_free(bind);
        return;
    }
    f->bind = bind;
}

/* --- connections ------------------------------------------------------------------------------------ */

static unsigned strangers_of(const struct ssh_front *f, const char *address)
{
    unsigned count = 0;
    for (const struct ssh_session *s = f->sessions; s != NULL; s = s->next)
        count += s->phase < SSH_PHASE_OPEN && strcmp(s->address, address) == 0;
    return count;
}

static void refuse(struct ssh_front *f, int fd, unsigned reason, const char *peer, const char *why)
{
    atomic_fetch_add(&f->refused, 1);
    refusals_note(&f->refusals, reason, "%s: %s", peer, why);
    (void)close(fd);
}

static void connection_take(struct ssh_front *f, int fd, const struct sockaddr_storage *from)
{
    char address[INET6_ADDRSTRLEN] = "?", port[8] = "?", peer[64];
    int on = 1;
    (void)getnameinfo((const struct sockaddr *)from, sizeof *from, address, sizeof address, port,
                      sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    (void)text_format(peer, sizeof peer, "%s port %s", address, port);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    atomic_fetch_add(&f->accepted, 1);
    bind_make(f);
    if (f->bind == NULL)
        refuse(f, fd, SSH_REFUSED_FULL, peer, "the cluster has no host key yet");
    else if (f->session_count >= f->options.sessions_max)
        refuse(f, fd, SSH_REFUSED_FULL, peer, "there are ssh.sessions_max sessions");
    else if (f->stranger_count >= SSH_STRANGERS_MAX ||
             strangers_of(f, address) >= SSH_STRANGERS_OF_ONE_ADDRESS_MAX)
        refuse(f, fd, SSH_REFUSED_STRANGERS, peer, "too many have not signed in");
    else
        ssh_session_open(f, fd, address, peer);
}

static void accept_cb(uv_poll_t *poll, int status, int events)
{
    struct ssh_front *f = poll->data;
    (void)status;
    (void)events;
    for (unsigned i = 0; i < ACCEPT_IN_A_ROW_MAX; i++) {
        struct sockaddr_storage from = {0};
        socklen_t length = sizeof from;
        int fd = accept4(f->fd, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            connection_take(f, fd, &from);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            (void)uv_poll_stop(poll); /* the sweep tries again */
            return;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            return;
        }
    }
}

static void sweep_cb(uv_timer_t *timer)
{
    struct ssh_front *f = timer->data;
    uint64_t now_ms = clock_monotonic_ms();
    struct ssh_session *next;
    for (struct ssh_session *s = f->sessions; s != NULL; s = next) {
        next = s->next;
        ssh_session_sweep(s, now_ms);
    }
    bind_make(f);
    if (!f->stopping)
        (void)uv_poll_start(&f->accept, UV_READABLE, accept_cb);
}

/* --- life ------------------------------------------------------------------------------------------- */

static void stop_cb(uv_async_t *async)
{
    struct ssh_front *f = async->data;
    f->stopping = true;
    while (f->sessions != NULL)
        ssh_session_close(f->sessions);
    uv_close((uv_handle_t *)&f->accept, NULL);
    uv_close((uv_handle_t *)&f->sweep, NULL);
    uv_close((uv_handle_t *)&f->stop, NULL);
}

static void *thread_main(void *user)
{
    struct ssh_front *f = user;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    (void)pthread_setname_np(pthread_self(), "skerry-ssh");
    (void)uv_run(&f->loop, UV_RUN_DEFAULT);
    return NULL;
}

static int listen_at(const char *text, struct err *e)
{
    struct sockaddr_storage address;
    int one = 1;
    if (address_parse(&address, text, 2222, e) != 0)
        return -(int)e->code;
    CLEANUP_FD int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (const struct sockaddr *)&address,
             address.ss_family == AF_INET ? sizeof(struct sockaddr_in)
                                          : sizeof(struct sockaddr_in6)) != 0 ||
        listen(fd, LISTEN_BACKLOG) != 0)
        return err_sys(e, ERR_IO, errno, "listen for SSH on %s", text);
    return steal_fd(&fd);
}

static void front_free(struct ssh_front *f)
{
    ssh_bind_free(f->bind);
    memory_close(&f->fd);
    free(f->listen);
    free(f->api_socket);
    free(f);
}

int ssh_front_open(struct ssh_front **out, const struct ssh_front_options *options, struct err *e)
{
    int fd = listen_at(options->listen, e);
    struct ssh_front *f = fd < 0 ? NULL : calloc(1, sizeof *f);
    if (f == NULL) {
        memory_close(&fd);
        return fd < 0 ? -(int)e->code : err_set(e, ERR_NO_MEMORY, "open the SSH front");
    }
    f->fd = fd;
    f->options = *options;
    f->listen = strdup(options->listen);
    f->api_socket = strdup(options->api_socket);
    f->refusals = (struct refusals){.subject = "ssh", .names = refusal_names};
    if (f->api_socket == NULL || ssh_init() != SSH_OK || uv_loop_init(&f->loop) != 0) {
        front_free(f);
        return err_set(e, ERR_INTERNAL, "open the SSH front: no memory, or libssh does not start");
    }
    (void)uv_async_init(&f->loop, &f->stop, stop_cb);
    (void)uv_timer_init(&f->loop, &f->sweep);
    (void)uv_poll_init(&f->loop, &f->accept, f->fd);
    f->stop.data = f->sweep.data = f->accept.data = f;
    (void)uv_timer_start(&f->sweep, sweep_cb, 0, SWEEP_MS);
    if (pthread_create(&f->thread, NULL, thread_main, f) != 0) {
        stop_cb(&f->stop);
        (void)uv_run(&f->loop, UV_RUN_DEFAULT);
        (void)uv_loop_close(&f->loop);
        front_free(f);
        return err_set(e, ERR_NO_MEMORY, "start the thread of SSH");
    }
    *out = f;
    return 0;
}

void ssh_front_close(struct ssh_front *f)
{
    (void)uv_async_send(&f->stop);
    (void)pthread_join(f->thread, NULL);
    assert_always(uv_loop_close(&f->loop) == 0);
    front_free(f);
}

void ssh_front_counters(const struct ssh_front *f, struct ssh_front_counters *out)
{
    struct ssh_front *g = (struct ssh_front *)(uintptr_t)f;
    *out = (struct ssh_front_counters){
        .accepted = atomic_load(&g->accepted),
        .signed_in = atomic_load(&g->signed_in),
        .refused = atomic_load(&g->refused),
        .denied = atomic_load(&g->denied),
        .too_late = atomic_load(&g->too_late),
        .sessions = atomic_load(&g->sessions_now),
    };
}
