/* gateway/ssh_session.c - one connection of a client of SSH, from the first byte to the end.
 *
 *     KEYS --exchanged--> LOGIN --a key that is known--> OPEN --the client left, cut--> CLOSING
 *       |-------- SSH_LOGIN_MS, SSH_ATTEMPTS_MAX ----------^ cut
 *
 * Libssh is driven by the descriptor's events (`pump`), never waited for; its callbacks only note what was
 * asked, so that nothing is freed beneath it. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/words.h"
#include "gateway/ssh_internal.h"

#define TURNS_MAX 16u  /* reads of one session in a row: then others have theirs */
#define ENDED_MS 2000u /* for the channels of an instance that has ended */
#define JOINS_MAX 3u

/* --- who it is -------------------------------------------------------------------------------------- */

static int deny(struct ssh_session *s, const char *what, const char *user)
{
    struct ssh_front *f = s->front;
    char shown[TEXT_SHOWN_SIZE];
    atomic_fetch_add(&f->denied, 1);
    refusals_note(&f->refusals, SSH_REFUSED_KEY, "%s: %s for \"%s\"", s->peer, what,
                  text_show(user == NULL ? "" : user, shown));
    if (++s->attempts >= SSH_ATTEMPTS_MAX)
        s->cut = true;
    return SSH_AUTH_DENIED;
}

static int none_cb(ssh_session ssh, const char *user, void *data)
{
    (void)ssh;
    (void)user;
    (void)data;
    return SSH_AUTH_DENIED; /* how clients ask for the methods */
}

static int password_cb(ssh_session ssh, const char *user, const char *password, void *data)
{
    (void)ssh;
    (void)password;
    return deny(data, "a password, which opens nothing,", user);
}

static bool blob_of(ssh_key key, uint8_t **out, size_t *out_length)
{
    char *text = NULL;
    *out = NULL;
    if (ssh_pki_export_pubkey_base64(key, &text) != SSH_OK)
        return false;
    size_t size = strlen(text);
    *out = malloc(size + 1);
    bool done = *out != NULL && sodium_base642bin(*out, size, text, size, NULL, out_length, NULL,
                                                  sodium_base64_VARIANT_ORIGINAL) == 0;
    ssh_string_free_char(text);
    if (!done) {
        free(*out);
        *out = NULL;
    }
    return done;
}

static int key_cb(ssh_session ssh, const char *user, struct ssh_key_struct *key, char state,
                  void *data)
{
    struct ssh_session *s = data;
    const struct ssh_calls *calls = &s->front->options.calls;
    struct ssh_name name;
    uint8_t *blob = NULL;
    size_t length = 0;
    (void)ssh;
    if (s->phase != SSH_PHASE_LOGIN || s->cut)
        return SSH_AUTH_DENIED;
    bool may = user != NULL && ssh_name_parse(&name, user) && blob_of(key, &blob, &length) &&
               calls->may(calls->user, &name, blob, length);
    if (!may || (state != SSH_PUBLICKEY_STATE_NONE && state != SSH_PUBLICKEY_STATE_VALID)) {
        free(blob);
        return deny(s, may ? "a wrong signature" : "a key that opens nothing", user);
    }
    if (state == SSH_PUBLICKEY_STATE_VALID) {
        s->name = name;
        (void)text_copy(s->user, sizeof s->user, user);
        free(s->blob);
        s->blob = steal_pointer(&blob);
        s->blob_length = length;
    }
    free(blob);
    return SSH_AUTH_SUCCESS;
}

static ssh_channel open_cb(ssh_session ssh, void *data)
{
    struct ssh_session *s = data;
    (void)ssh;
    return s->phase == SSH_PHASE_OPEN || s->blob != NULL ? ssh_run_new(s) : NULL;
}

/* --- its place -------------------------------------------------------------------------------------- */

static void place_ask(struct ssh_session *s)
{
    char path[512];
    char key[3 * SSH_JOIN_KEY_MAX + 1];
    size_t at = 0;
    for (const char *c = s->name.key; *c != '\0'; c++)
        at += (size_t)snprintf(key + at, sizeof key - at, "%%%02X", (unsigned)(unsigned char)*c);
    key[at] = '\0';
    if (s->name.instance[0] != '\0')
        (void)text_format(path, sizeof path, "/v1/instances/%s/join", s->name.instance);
    else
        (void)text_format(path, sizeof path, "/v1/workloads/%s/join?again=%d%s%s", s->name.workload,
                          s->joins_tried > 0, at > 0 ? "&key=" : "", key);
    s->joins_tried++;
    s->place = ssh_link_open(s, path, "", false);
    if (s->place == NULL)
        (void)text_copy(s->refusal, sizeof s->refusal, "the node takes no more requests");
}

/* Another node that was asked first may have no room any more: this one decides then. */
static bool again(const struct ssh_session *s)
{
    return s->name.instance[0] == '\0' && s->place->status == 503 &&
           (s->joins_tried == 1 ||
            (s->joins_tried < JOINS_MAX && strcmp(s->place->code, "owner_unreachable") == 0));
}

static void place_look(struct ssh_session *s)
{
    const struct ssh_calls *calls = &s->front->options.calls;
    if (s->place == NULL)
        return;
    (void)ssh_link_pump(s->place);
    struct ssh_link *l = s->place;
    if (!s->joined && l->phase == SSH_LINK_BODY && l->status == 200 && l->instance[0] != '\0') {
        s->joined = true;
        s->active_ms = clock_monotonic_ms();
        s->stream_idle_ms = calls->stream_idle_ms(calls->user, l->instance);
        log_info("ssh", "%s joined instance %s as %s", s->peer, l->instance, s->user);
    } else if (!s->joined && l->phase == SSH_LINK_OVER && s->refusal[0] == '\0') {
        if (again(s)) {
            ssh_link_close(&s->place);
            place_ask(s);
            return;
        }
        ssh_link_problem(l, s->refusal, sizeof s->refusal);
        s->deadline_ms = clock_monotonic_ms() + SSH_LOGIN_MS; /* to hear of it */
    } else if (s->joined && l->phase == SSH_LINK_OVER && s->deadline_ms == UINT64_MAX) {
        s->deadline_ms = clock_monotonic_ms() + ENDED_MS;
    } else if (s->joined) {
        buffer_consume(&l->in, l->in.length);
    }
}

/* --- driving it ------------------------------------------------------------------------------------- */

static void ready_cb(uv_poll_t *poll, int status, int events)
{
    struct ssh_session *s = poll->data;
    (void)events;
    if (status < 0)
        s->cut = true;
    ssh_session_pump(s);
}

static void login_done(struct ssh_session *s)
{
    struct ssh_front *f = s->front;
    s->phase = SSH_PHASE_OPEN;
    s->deadline_ms = UINT64_MAX;
    s->active_ms = clock_monotonic_ms();
    f->stranger_count--;
    atomic_fetch_add(&f->signed_in, 1);
    place_ask(s);
}

static void libssh_step(struct ssh_session *s)
{
    if (s->phase == SSH_PHASE_KEYS) {
        int rc = ssh_handle_key_exchange(s->ssh);
        if (rc == SSH_ERROR || (rc == SSH_OK && ssh_event_add_session(s->event, s->ssh) != SSH_OK))
            s->cut = true;
        else if (rc == SSH_OK)
            s->phase = SSH_PHASE_LOGIN;
        if (rc != SSH_OK)
            return;
    }
    for (unsigned i = 0; i < TURNS_MAX && !s->cut; i++) {
        if (ssh_event_dopoll(s->event, 0) == SSH_ERROR)
            s->cut = true;
        if (s->phase == SSH_PHASE_LOGIN && s->blob != NULL)
            login_done(s);
    }
}

/* Libssh closes the descriptor by itself, wherever it meets an error; nothing may wait for it then. */
static bool is_closed(const struct ssh_session *s)
{
    return ssh_get_fd(s->ssh) < 0 ||
           (ssh_get_status(s->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR)) != 0;
}

static void runs_pump(struct ssh_session *s)
{
    for (size_t i = 0; i < SSH_RUNS_MAX && !s->cut; i++)
        if (s->runs[i] != NULL && !ssh_run_pump(s->runs[i])) {
            ssh_run_free(s->runs[i]);
            s->runs[i] = NULL;
        }
}

/* While libssh has bytes that the client does not take, nothing more is read of it: answers to what it
 * asks would pile up. */
static void wait_for(struct ssh_session *s)
{
    bool full = (ssh_get_poll_flags(s->ssh) & SSH_WRITE_PENDING) != 0;
    int events = full ? UV_WRITABLE : UV_READABLE;
    /* There is more to do, or it was sent meanwhile: a socket with room for more says so at once. */
    if (s->again || s->blocked)
        events |= UV_WRITABLE;
    s->again = s->blocked = false;
    (void)uv_poll_start(&s->poll, events, ready_cb);
}

void ssh_session_pump(struct ssh_session *s)
{
    if (s->phase == SSH_PHASE_CLOSING)
        return;
    libssh_step(s);
    s->cut |= is_closed(s);
    s->stirred = true;
    for (unsigned i = 0; s->phase == SSH_PHASE_OPEN && s->stirred && !s->cut && i < TURNS_MAX;
         i++) {
        s->stirred = false;
        place_look(s);
        runs_pump(s);
    }
    s->again |= s->stirred && s->phase == SSH_PHASE_OPEN;
    if (s->cut || is_closed(s))
        ssh_session_close(s);
    else
        wait_for(s);
}

void ssh_session_sweep(struct ssh_session *s, uint64_t now_ms)
{
    struct ssh_front *f = s->front;
    const struct ssh_calls *calls = &f->options.calls;
    bool late = now_ms >= s->deadline_ms;
    if (late && s->phase != SSH_PHASE_OPEN) {
        atomic_fetch_add(&f->too_late, 1);
        refusals_note(&f->refusals, SSH_REFUSED_LATE, "%s: it did not sign in within %u s", s->peer,
                      SSH_LOGIN_MS / 1000);
    }
    if (s->phase == SSH_PHASE_OPEN && s->joined && s->stream_idle_ms != UINT64_MAX &&
        now_ms > s->active_ms + s->stream_idle_ms) {
        log_info("ssh", "%s: %s: no byte for its timeouts.stream_idle",
                 problem_word(PROBLEM_STREAM_IDLE)->code, s->peer);
        late = true;
    }
    if (s->phase == SSH_PHASE_OPEN && !calls->may(calls->user, &s->name, s->blob, s->blob_length)) {
        log_info("ssh", "%s: its key was removed", s->peer);
        late = true;
    }
    if (late)
        ssh_session_close(s);
    else if (s->forward_count > 0)
        ssh_session_pump(s); /* one may have waited long enough for its port */
}

/* --- life ------------------------------------------------------------------------------------------- */

static void freed_cb(uv_handle_t *handle)
{
    struct ssh_session *s = handle->data;
    free(s->blob);
    free(s);
}

void ssh_session_close(struct ssh_session *s)
{
    struct ssh_front *f = s->front;
    if (s->phase == SSH_PHASE_CLOSING)
        return;
    if (s->phase != SSH_PHASE_OPEN)
        f->stranger_count--;
    s->phase = SSH_PHASE_CLOSING;
    if (s->previous != NULL)
        s->previous->next = s->next;
    else
        f->sessions = s->next;
    if (s->next != NULL)
        s->next->previous = s->previous;
    f->session_count--;
    atomic_store(&f->sessions_now, f->session_count);
    for (size_t i = 0; i < SSH_RUNS_MAX; i++)
        if (s->runs[i] != NULL)
            ssh_run_free(s->runs[i]);
    ssh_link_close(&s->place);
    /* The descriptor is libssh's: our poll lets go of it before it is closed. */
    uv_close((uv_handle_t *)&s->poll, freed_cb);
    if (s->event != NULL) {
        (void)ssh_event_remove_session(s->event, s->ssh);
        ssh_event_free(s->event);
    }
    ssh_disconnect(s->ssh);
    ssh_free(s->ssh);
}

static bool ssh_make(struct ssh_session *s, int fd)
{
    s->ssh = ssh_new();
    s->event = ssh_event_new();
    if (s->ssh == NULL || s->event == NULL)
        return false;
    ssh_set_blocking(s->ssh, 0);
    s->callbacks.userdata = s;
    s->callbacks.auth_none_function = none_cb;
    s->callbacks.auth_password_function = password_cb;
    s->callbacks.auth_pubkey_function = key_cb;
    s->callbacks.channel_open_request_session_function = open_cb;
    ssh_callbacks_init(&s->callbacks);
    (void)ssh_set_server_callbacks(s->ssh, &s->callbacks);
    ssh_set_message_callback(s->ssh, ssh_forward_message_cb, s);
    ssh_set_auth_methods(s->ssh, SSH_AUTH_METHOD_PUBLICKEY);
    if (ssh_bind_accept_fd(s->front->bind, s->ssh, fd) != SSH_OK)
        return false;
    ssh_set_blocking(s->ssh, 0);
    return true;
}

void ssh_session_open(struct ssh_front *f, int fd, const char *address, const char *peer)
{
    struct ssh_session *s = calloc(1, sizeof *s);
    if (s == NULL || uv_poll_init(&f->loop, &s->poll, fd) != 0) {
        free(s);
        (void)close(fd);
        return;
    }
    s->front = f;
    s->poll.data = s;
    s->deadline_ms = clock_monotonic_ms() + SSH_LOGIN_MS;
    s->stream_idle_ms = UINT64_MAX;
    (void)text_copy(s->address, sizeof s->address, address);
    (void)text_copy(s->peer, sizeof s->peer, peer);
    s->next = f->sessions;
    if (s->next != NULL)
        s->next->previous = s;
    f->sessions = s;
    f->session_count++;
    f->stranger_count++;
    atomic_store(&f->sessions_now, f->session_count);
    if (ssh_make(s, fd)) {
        ssh_session_pump(s);
        return;
    }
    log_warn("ssh", "%s: libssh took no connection: %s", peer,
             s->ssh == NULL ? "no memory" : ssh_get_error(s->ssh));
    ssh_session_close(s);
}
