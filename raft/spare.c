#include "raft/spare.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "raft/spare_internal.h"

enum { SAY_EVERY_MS = 10000 };

/* --- the end of a stream ---------------------------------------------------------------------------- */

static void stream_gone_cb(void *user)
{
    struct spare *s = user;
    s->streams_closing--;
    spare_closed_maybe(s);
}

static void stream_close(struct spare *s)
{
    struct secure_stream *stream = steal_pointer(&s->stream);
    s->phase = SPARE_IDLE;
    s->neighbour = s->leader = 0;
    s->input_at = s->input_end = 0;
    spare_decoder_free(&s->decoder);
    if (s->job != SPARE_JOB_LOAD)
        buffer_free(&s->snapshot);
    if (stream == NULL)
        return;
    s->streams_closing++;
    secure_stream_close(stream, stream_gone_cb);
}

/* Another neighbour is next. */
static void fail(struct spare *s, const char *why)
{
    unsigned doubled = s->failures < 8 ? s->failures : 8;
    uint64_t pause_ms = s->failures == 0 ? 0 : (uint64_t)SPARE_PAUSE_MS << doubled;
    if (s->phase == SPARE_FOLLOWING)
        log_info("registry", "node %llu feeds this spare no more: %s",
                 (unsigned long long)s->neighbour, why);
    else
        log_debug("registry", "node %llu does not feed this node: %s",
                  (unsigned long long)s->neighbour, why);
    spare_avoid(&s->choice, s->neighbour, s->now_ms + SPARE_AVOID_MS);
    s->failures++;
    s->retry_ms = s->now_ms + (pause_ms < SPARE_PAUSE_MAX_MS ? pause_ms : SPARE_PAUSE_MAX_MS);
    stream_close(s);
    s->options.wake(s->options.user);
}

/* --- what a neighbour says -------------------------------------------------------------------------- */

static void members_take(struct spare *s, const struct spare_record *r)
{
    s->member_count = r->member_count;
    memcpy(s->members, r->members, r->member_count * sizeof s->members[0]);
    s->choice.members = s->members;
    s->choice.member_count = s->member_count;
}

static void refused(struct spare *s, const struct spare_record *r)
{
    if (r->member_count > 0)
        members_take(s, r);
    if (r->why == SPARE_OTHER_GENERATION &&
        (s->refused_said_ms == 0 || s->now_ms - s->refused_said_ms >= SAY_EVERY_MS)) {
        s->refused_said_ms = s->now_ms;
        log_warn("registry", "node %llu does not feed this node: %s",
                 (unsigned long long)s->neighbour, spare_refusal_text(r->why));
    }
    fail(s, spare_refusal_text(r->why));
}

static void follows(struct spare *s)
{
    s->phase = SPARE_FOLLOWING;
    s->failures = 0;
    s->leader_ms = s->heard_ms = s->now_ms;
    log_info("registry", "node %llu feeds this spare, from entry %llu on",
             (unsigned long long)s->neighbour, (unsigned long long)s->applied);
    s->options.wake(s->options.user);
}

static uint64_t applied_least(const struct spare *s)
{
    uint64_t fed = s->state == NULL ? 0 : s->applied;
    return fed > s->want.applied ? fed : s->want.applied;
}

/* Which generation this node is of; 0: none yet. */
static uint64_t own_generation(const struct spare *s)
{
    if (s->state != NULL)
        return s->generation;
    if (s->want.generation != 0)
        return s->want.generation;
    return s->marked == UINT64_MAX ? 0 : s->marked;
}

static void snapshot_comes(struct spare *s, const struct spare_record *r)
{
    uint64_t own = own_generation(s);
    if (own != 0 && own != r->generation) {
        fail(s, "it is of another generation of the cluster");
        return;
    }
    if (r->applied < applied_least(s)) {
        fail(s, "it is behind this node");
        return;
    }
    if (s->job != SPARE_JOB_NONE) { /* of an earlier stream */
        fail(s, "a snapshot is being decoded already");
        return;
    }
    s->phase = SPARE_LOADING;
    s->snapshot_generation = r->generation;
    s->snapshot_applied = r->applied;
    s->snapshot_bytes = r->bytes;
    buffer_init(&s->snapshot, (size_t)r->bytes);
}

static void snapshot_goes_on(struct spare *s, const struct spare_record *r)
{
    if (!buffer_append(&s->snapshot, r->data, r->size)) {
        fail(s, "no memory for its snapshot");
        return;
    }
    if (s->snapshot.length < s->snapshot_bytes)
        return;
    s->phase = SPARE_DECODING;
    secure_stream_want(s->stream, 0);
    if (!spare_load_begin(s))
        fail(s, "no thread to decode its snapshot");
}

/* What the state machine cannot take is a lie, or of a later build: nothing is skipped. */
static void entry_apply(struct spare *s, const struct spare_record *r)
{
    struct state_outcome outcome;
    struct err e;
    if (state_apply(s->state, r->applied, r->data, r->size, &outcome, &e) < 0) {
        s->damaged = true;
        log_error("registry", "what node %llu feeds this spare cannot be applied: %s",
                  (unsigned long long)s->neighbour, e.msg);
        fail(s, "an entry that cannot be applied");
        return;
    }
    s->applied = r->applied;
    s->options.applied(s->options.user, &outcome);
    s->options.wake(s->options.user);
}

static void progress_take(struct spare *s, const struct spare_record *r)
{
    bool news = r->applied != s->applied || r->leader != s->leader || r->term != s->term;
    s->applied = r->applied;
    s->commit = r->commit;
    s->term = r->term;
    s->leader = r->leader;
    if (r->leader != 0)
        s->leader_ms = s->now_ms;
    if (news)
        s->options.wake(s->options.user);
}

static void record_take(struct spare *s, const struct spare_record *r)
{
    switch (r->kind) {
    case SPARE_REFUSED:
        refused(s, r);
        break;
    case SPARE_RESUMED:
        if (s->state == NULL || s->damaged || r->applied != s->applied ||
            r->generation != s->generation) {
            fail(s, "it goes on from where this node is not");
            break;
        }
        s->resumed++;
        follows(s);
        break;
    case SPARE_SNAPSHOT:
        snapshot_comes(s, r);
        break;
    case SPARE_DATA:
        snapshot_goes_on(s, r);
        break;
    case SPARE_ENTRY:
        entry_apply(s, r);
        break;
    case SPARE_PROGRESS:
        progress_take(s, r);
        break;
    case SPARE_MEMBERS:
        members_take(s, r);
        s->options.wake(s->options.user);
        break;
    case SPARE_WAIT:  /* it was heard, that is all */
    case SPARE_HELLO: /* the decoder takes none from that side */
    case SPARE_ACK:
        break;
    }
}

/* Until a snapshot is to be decoded, the stream closes, or there is no more. */
static void input_decode(struct spare *s)
{
    while (s->input_at < s->input_end && s->stream != NULL && s->phase != SPARE_DECODING) {
        struct spare_record r;
        struct err e;
        size_t taken = 0;
        int rc = spare_decode(&s->decoder, &r, s->input + s->input_at, s->input_end - s->input_at,
                              &taken, &e);
        s->input_at += taken;
        if (rc < 0)
            fail(s, e.msg);
        else if (rc == 1)
            record_take(s, &r);
    }
}

static void read_some(struct spare *s)
{
    size_t count = 0;
    enum secure_result result = secure_stream_read(s->stream, s->input, sizeof s->input, &count);
    if (result == SECURE_BLOCKED)
        return;
    if (result != SECURE_DONE) {
        const struct err *error = secure_stream_error(s->stream);
        fail(s, error == NULL ? "it ended the stream" : error->msg);
        return;
    }
    s->heard_ms = s->now_ms;
    s->input_at = 0;
    s->input_end = count;
    input_decode(s);
}

static void ready_cb(struct secure_stream *stream, bool readable, bool writable)
{
    struct spare *s = secure_stream_user(stream);
    (void)writable;
    if (!readable || s->stream != stream || s->phase == SPARE_DECODING)
        return;
    s->now_ms = clock_monotonic_ms();
    read_some(s);
}

void spare_loaded(struct spare *s)
{
    struct err e;
    struct state *state = NULL;
    s->now_ms = clock_monotonic_ms();
    bool decoding = s->stream != NULL && s->phase == SPARE_DECODING;
    bool wanted = s->loaded == 0 && !s->closing && s->snapshot_applied >= applied_least(s);
    int rc = wanted ? state_new(&state, &e) : -1;
    if (rc < 0) {
        if (s->loaded == 0)
            state_content_release(&s->content);
        else
            log_warn("registry", "the snapshot of node %llu: %s", (unsigned long long)s->neighbour,
                     s->load_error.msg);
        if (decoding)
            fail(s, "its snapshot is of no use");
        return;
    }
    state_restore(state, &s->content);
    spare_retire(s);
    s->state = state;
    s->damaged = false;
    s->generation = s->snapshot_generation;
    s->applied = s->snapshot_applied;
    s->snapshots++;
    s->options.wake(s->options.user);
    if (!decoding)
        return;
    follows(s);
    secure_stream_want(s->stream, SECURE_WANT_READ);
    input_decode(s);
}

/* --- the beginning of a stream ---------------------------------------------------------------------- */

static bool say(struct spare *s, const struct spare_record *r)
{
    uint8_t bytes[SPARE_RECORD_BYTES_MAX];
    const struct iovec part = {bytes, spare_encode(bytes, r)};
    size_t count = 0;
    return secure_stream_write(s->stream, &part, 1, &count) == SECURE_DONE && count == part.iov_len;
}

static void opened_cb(struct secure_stream *stream, const struct err *error)
{
    struct spare *s = secure_stream_user(stream);
    if (s->stream != stream)
        return;
    s->now_ms = clock_monotonic_ms();
    bool goes_on = s->state != NULL && !s->damaged && s->applied >= s->want.applied;
    const struct spare_record hello = {.kind = SPARE_HELLO,
                                       .version = SPARE_WIRE_VERSION,
                                       .generation = own_generation(s),
                                       .applied = goes_on ? s->applied : 0};
    if (error != NULL) {
        fail(s, error->msg);
        return;
    }
    if (!say(s, &hello)) {
        fail(s, "it takes no greeting");
        return;
    }
    s->phase = SPARE_GREETED;
    s->heard_ms = s->acked_ms = s->now_ms;
    s->acked = hello.applied;
    secure_stream_want(stream, SECURE_WANT_READ);
}

static void begin(struct spare *s)
{
    struct sockaddr_storage where;
    struct err e;
    s->neighbour = spare_choose(&s->choice, s->now_ms);
    if (s->neighbour == 0)
        return;
    if (!s->options.address(s->options.user, s->neighbour, &where)) {
        fail(s, "nobody knows where it is");
        return;
    }
    spare_decoder_init(&s->decoder, SPARE_FEEDS);
    const struct secure_connect_options options = {
        .context = s->options.secure,
        .address = &where,
        .protocol = SECURE_SPARE,
        .peer = s->neighbour,
        .events = {.opened = opened_cb, .ready = ready_cb},
        .user = s};
    if (secure_stream_connect(&s->stream, s->options.loop, &options, &e) < 0)
        fail(s, e.msg);
    else
        s->phase = SPARE_OPENING;
}

/* --- turns ------------------------------------------------------------------------------------------ */

static void timer_cb(uv_timer_t *timer)
{
    struct spare *s = container_of(timer, struct spare, timer);
    s->options.wake(s->options.user);
}

static void stream_turn(struct spare *s)
{
    bool reads =
        s->phase == SPARE_GREETED || s->phase == SPARE_LOADING || s->phase == SPARE_FOLLOWING;
    uint64_t silent_ms = s->phase == SPARE_LOADING ? SPARE_LOADING_MS : SPARE_SILENT_MS;
    if (reads && s->now_ms - s->heard_ms >= silent_ms) {
        fail(s, "it is silent");
        return;
    }
    if (s->phase == SPARE_FOLLOWING && s->now_ms - s->leader_ms >= SPARE_LEADERLESS_MS) {
        fail(s, "it hears of no leader");
        return;
    }
    if (s->phase <= SPARE_OPENING || s->now_ms - s->acked_ms < SPARE_ACK_MS)
        return;
    s->acked_ms = s->now_ms;
    if (s->phase == SPARE_FOLLOWING)
        s->acked = s->applied;
    if (!say(s, &(struct spare_record){.kind = SPARE_ACK, .applied = s->acked}))
        fail(s, "it takes nothing");
}

/* Raft has come as far as what was fed. */
static void drop(struct spare *s)
{
    if (s->state != NULL)
        log_info("registry", "raft brings the log: this node is fed no more");
    stream_close(s);
    spare_retire(s);
    s->applied = s->generation = 0;
    s->damaged = false;
    s->failures = 0;
    s->retry_ms = 0;
    spare_unmark(s);
}

void spare_turn(struct spare *s, uint64_t now_ms, const struct spare_want *want)
{
    s->now_ms = now_ms;
    s->want = *want;
    if (s->closing || s->options.secure == NULL)
        return;
    if (want->follows && want->applied >= s->applied)
        drop(s);
    else if (s->stream != NULL)
        stream_turn(s);
    if (want->feed && s->stream == NULL && s->now_ms >= s->retry_ms)
        begin(s);
    bool busy = want->feed || s->stream != NULL || s->marked != 0 || s->retired != NULL;
    if (!busy)
        (void)uv_timer_stop(&s->timer);
    else if (!uv_is_active((uv_handle_t *)&s->timer))
        (void)uv_timer_start(&s->timer, timer_cb, SPARE_TICK_MS, SPARE_TICK_MS);
}

void spare_peers(struct spare *s, const struct registry_peer *peers, size_t count)
{
    if (count > SPARE_PEERS_MAX)
        count = SPARE_PEERS_MAX;
    struct registry_peer *copy = calloc(count + 1, sizeof *copy);
    if (copy == NULL)
        return; /* those from before serve */
    memcpy(copy, peers, count * sizeof *copy);
    free(s->peers);
    s->peers = copy;
    s->choice.peers = copy;
    s->choice.peer_count = count;
}

void spare_review(struct spare *s)
{
    if (s->stream != NULL && secure_stream_distrusted(s->stream))
        fail(s, "it was removed");
}

struct spare_view spare_view(const struct spare *s)
{
    bool fed = s->phase == SPARE_FOLLOWING;
    return (struct spare_view){.state = s->state,
                               .generation = s->generation,
                               .applied = s->state == NULL ? 0 : s->applied,
                               .neighbour = fed ? s->neighbour : 0,
                               .leader = fed ? s->leader : 0,
                               .commit = s->commit,
                               .term = s->term,
                               .members = s->members,
                               .member_count = s->member_count,
                               .snapshots = s->snapshots,
                               .resumed = s->resumed};
}

/* --- life ------------------------------------------------------------------------------------------- */

static void release(struct spare *s)
{
    state_free(s->state);
    state_free(s->retired);
    spare_decoder_free(&s->decoder);
    buffer_free(&s->snapshot);
    free(s->peers);
    free(s->directory);
    free(s);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    struct spare *s = handle->data;
    if (--s->handles > 0)
        return;
    void (*closed)(void *user) = s->closed;
    void *user = s->closed_user;
    release(s);
    if (closed != NULL)
        closed(user);
}

void spare_closed_maybe(struct spare *s)
{
    if (!s->closing || s->streams_closing > 0 || s->job != SPARE_JOB_NONE ||
        uv_is_closing((uv_handle_t *)&s->timer))
        return;
    uv_close((uv_handle_t *)&s->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&s->worker_done, handle_closed_cb);
}

void spare_close(struct spare *s, void (*cb)(void *user), void *user)
{
    s->closing = true;
    s->closed = cb;
    s->closed_user = user;
    stream_close(s);
    spare_closed_maybe(s);
}

int spare_new(struct spare **out, const struct spare_options *options, struct err *e)
{
    struct spare *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "a spare: no memory");
    s->options = *options;
    s->directory = strdup(options->directory);
    if (s->directory == NULL) {
        free(s);
        return err_set(e, ERR_NO_MEMORY, "a spare: no memory");
    }
    s->options.directory = s->directory;
    s->choice.self = options->id;
    s->choice.seed = options->seed;
    s->marked = spare_mark_read(s->directory);
    spare_decoder_free(&s->decoder);
    int rc = uv_timer_init(options->loop, &s->timer);
    rc |= spare_load_open(s);
    assert_always(rc == 0);
    s->timer.data = s->worker_done.data = s;
    s->handles = 2;
    *out = s;
    return 0;
}
