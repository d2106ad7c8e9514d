#include "raft/feed.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "raft/feed_internal.h"

/* Of records in one write; a command that is larger goes alone. */
#define BATCH_BYTES 16384u
/* One batch, the largest command behind it, and some heads. */
#define REST_BYTES_MAX ((size_t)2 * 1024 * 1024)
/* Streams that have not greeted, or were refused, beyond those that are fed. */
#define STRANGERS_MAX 64u

/* --- links ------------------------------------------------------------------------------------------ */

static void closed_maybe(struct feed *f);

static void link_gone_cb(void *user)
{
    struct feed_link *l = user;
    struct feed *f = l->feed;
    if (l->previous != NULL)
        l->previous->next = l->next;
    else
        f->links = l->next;
    if (l->next != NULL)
        l->next->previous = l->previous;
    f->count--;
    spare_decoder_free(&l->decoder);
    buffer_free(&l->rest);
    free(l);
    closed_maybe(f);
}

static void link_close(struct feed_link *l)
{
    if (l->state == FEED_CLOSING)
        return;
    l->state = FEED_CLOSING;
    feed_image_drop(l->feed, l->image);
    l->image = NULL;
    secure_stream_close(l->stream, link_gone_cb);
    l->feed->options.wake(l->feed->options.user); /* what was kept for it may go */
}

static void link_cut(struct feed_link *l, const char *why)
{
    log_info("registry", "spare %llu is fed no more: %s", (unsigned long long)l->peer, why);
    l->feed->counts.cut++;
    link_close(l);
}

static bool is_fed(const struct feed_link *l)
{
    return l->state == FEED_WAITING || l->state == FEED_SENDING || l->state == FEED_FOLLOWING;
}

static size_t fed_count(const struct feed *f)
{
    size_t count = 0;
    for (const struct feed_link *l = f->links; l != NULL; l = l->next)
        count += is_fed(l);
    return count;
}

/* --- writing ---------------------------------------------------------------------------------------- */

static void put(struct feed_link *l, const struct spare_record *r)
{
    uint8_t bytes[SPARE_RECORD_BYTES_MAX];
    size_t size = spare_encode(bytes, r), before = l->rest.length;
    if (buffer_append(&l->rest, bytes, size) &&
        (r->size == 0 || buffer_append(&l->rest, r->data, r->size)))
        return;
    l->rest.length = before;
    link_cut(l, "no memory");
}

static void put_members(struct feed_link *l, struct spare_record *r)
{
    const struct feed *f = l->feed;
    r->member_count = f->view.member_count;
    memcpy(r->members, f->members, r->member_count * sizeof r->members[0]);
    l->members_told = f->members_version;
    put(l, r);
}

/* The next part of its snapshot. */
static void fill_snapshot(struct feed_link *l)
{
    struct feed_image *image = l->image;
    if (!l->begun) {
        l->begun = true;
        put(l, &(struct spare_record){.kind = SPARE_SNAPSHOT,
                                      .generation = image->generation,
                                      .applied = image->applied,
                                      .bytes = image->bytes.length});
    }
    if (l->state != FEED_SENDING)
        return;
    size_t size = image->bytes.length - l->image_sent;
    if (size > SPARE_DATA_BYTES_MAX)
        size = SPARE_DATA_BYTES_MAX;
    put(l, &(struct spare_record){.kind = SPARE_DATA,
                                  .data = (const uint8_t *)image->bytes.data + l->image_sent,
                                  .size = size});
    if (l->state != FEED_SENDING)
        return;
    l->image_sent += size;
    if (l->image_sent < image->bytes.length)
        return;
    l->cursor = image->applied;
    l->state = FEED_FOLLOWING;
    l->image = NULL;
    feed_image_drop(l->feed, image);
}

static const char too_slow[] = "it is slower than the registry changes";

static bool is_behind(const struct feed_link *l)
{
    return l->state == FEED_FOLLOWING && !recent_covers(l->feed->options.recent, l->cursor);
}

/* A batch of the ring, not beyond what the view tells: the next turn has another. */
static void fill_entries(struct feed_link *l)
{
    const struct feed *f = l->feed;
    struct recent_entry entry;
    if (is_behind(l)) {
        link_cut(l, too_slow);
        return;
    }
    while (l->state == FEED_FOLLOWING && l->rest.length < BATCH_BYTES) {
        if (!recent_next(f->options.recent, l->cursor, &entry) || entry.index > f->view.applied) {
            l->caught_up = true;
            return;
        }
        put(l, &(struct spare_record){.kind = SPARE_ENTRY,
                                      .applied = entry.index,
                                      .data = entry.bytes,
                                      .size = entry.length});
        l->cursor = entry.index;
    }
}

static void fill_following(struct feed_link *l)
{
    const struct feed *f = l->feed;
    if (l->members_told != f->members_version)
        put_members(l, &(struct spare_record){.kind = SPARE_MEMBERS});
    if (l->state == FEED_FOLLOWING)
        fill_entries(l);
    if (l->state != FEED_FOLLOWING || l->rest.length >= BATCH_BYTES)
        return;
    if (f->view.applied <= l->cursor && l->rest.length == 0 &&
        f->now_ms - l->said_ms < FEED_HEARTBEAT_MS)
        return;
    if (f->view.applied > l->cursor)
        l->cursor = f->view.applied;
    put(l, &(struct spare_record){.kind = SPARE_PROGRESS,
                                  .applied = l->cursor,
                                  .commit = f->view.commit,
                                  .term = f->view.term,
                                  .leader = f->view.following ? f->view.leader : 0});
}

/* So that it knows that this node is alive while its snapshot is made. */
static void fill_waiting(struct feed_link *l)
{
    if (l->feed->now_ms - l->said_ms >= FEED_HEARTBEAT_MS)
        put(l, &(struct spare_record){.kind = SPARE_WAIT});
}

/* False: something of it waits, or the link closes. */
static bool flush(struct feed_link *l)
{
    struct feed *f = l->feed;
    if (l->state == FEED_CLOSING)
        return false;
    if (l->rest.length == 0)
        return true;
    const struct iovec part = {l->rest.data, l->rest.length};
    size_t taken = 0;
    f->counts.writes++;
    enum secure_result result = secure_stream_write(l->stream, &part, 1, &taken);
    if (result != SECURE_DONE && result != SECURE_BLOCKED) {
        link_close(l);
        return false;
    }
    if (taken > 0)
        l->moved_ms = l->said_ms = f->now_ms;
    buffer_consume(&l->rest, taken);
    return l->rest.length == 0;
}

/* Says what there is to say, as far as the stream takes it. */
static void pump(struct feed_link *l)
{
    if (l->rest.length == 0)
        l->moved_ms = l->feed->now_ms;
    while (flush(l)) {
        if (l->state == FEED_SENDING)
            fill_snapshot(l);
        else if (l->state == FEED_FOLLOWING)
            fill_following(l);
        else if (l->state == FEED_WAITING)
            fill_waiting(l);
        if (l->state == FEED_CLOSING || l->rest.length == 0)
            break;
    }
    if (l->state != FEED_CLOSING)
        secure_stream_want(l->stream,
                           SECURE_WANT_READ | (l->rest.length > 0 ? SECURE_WANT_WRITE : 0u));
}

/* --- reading ---------------------------------------------------------------------------------------- */

static void heard(struct feed_link *l, const struct spare_record *r)
{
    l->heard_ms = l->feed->now_ms;
    if (r->kind != SPARE_HELLO)
        return;
    l->hello = *r;
    l->state = FEED_ASKED;
    l->feed->options.wake(l->feed->options.user);
}

static void read_some(struct feed_link *l)
{
    uint8_t bytes[256];
    size_t count = 0;
    enum secure_result result = secure_stream_read(l->stream, bytes, sizeof bytes, &count);
    if (result == SECURE_BLOCKED)
        return;
    if (result != SECURE_DONE) {
        link_close(l);
        return;
    }
    for (size_t at = 0; at < count && l->state != FEED_CLOSING;) {
        struct spare_record r;
        struct err e;
        size_t taken = 0;
        int rc = spare_decode(&l->decoder, &r, bytes + at, count - at, &taken, &e);
        at += taken;
        if (rc < 0)
            link_cut(l, e.msg);
        else if (rc == 1)
            heard(l, &r);
    }
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct feed_link *l = secure_stream_user(s);
    l->feed->now_ms = clock_monotonic_ms();
    if (readable && l->state != FEED_CLOSING)
        read_some(l);
    if (writable && l->state != FEED_CLOSING)
        pump(l);
}

void feed_accept(struct feed *f, struct secure_stream *s)
{
    static const struct secure_events events = {.ready = ready_cb};
    node_id peer = secure_stream_peer(s);
    struct feed_link *l = NULL;
    if (!f->closing && peer != 0 && secure_stream_protocol(s) == SECURE_SPARE &&
        f->count < FEED_LINKS_MAX + STRANGERS_MAX)
        l = calloc(1, sizeof *l);
    if (l == NULL) {
        secure_stream_close(s, NULL);
        return;
    }
    /* One from each node: the newer. */
    for (struct feed_link *other = f->links; other != NULL; other = other->next)
        if (other->peer == peer)
            link_close(other);
    *l = (struct feed_link){.feed = f, .peer = peer, .stream = s, .next = f->links};
    l->heard_ms = l->moved_ms = l->said_ms = f->now_ms = clock_monotonic_ms();
    spare_decoder_init(&l->decoder, SPARE_ASKS);
    buffer_init(&l->rest, REST_BYTES_MAX);
    if (l->next != NULL)
        l->next->previous = l;
    f->links = l;
    f->count++;
    secure_stream_set_events(s, &events, l);
    secure_stream_want(s, SECURE_WANT_READ);
    f->options.wake(f->options.user);
}

/* --- turns ------------------------------------------------------------------------------------------ */

static bool is_member(const struct feed *f, node_id id)
{
    for (size_t i = 0; i < f->view.member_count; i++)
        if (f->members[i].id == id)
            return f->members[i].role == REGISTRY_ROLE_VOTER ||
                   f->members[i].role == REGISTRY_ROLE_STANDBY;
    return false;
}

/* 0: none. */
static enum spare_refusal refusal_of(const struct feed_link *l)
{
    const struct feed *f = l->feed;
    const struct spare_record *hello = &l->hello;
    if (hello->version != SPARE_WIRE_VERSION)
        return SPARE_OTHER_VERSION;
    if (!f->view.following || f->view.generation == 0)
        return SPARE_NOT_FOLLOWING;
    if (hello->generation != 0 && hello->generation != f->view.generation)
        return SPARE_OTHER_GENERATION;
    if (is_member(f, l->peer))
        return SPARE_IS_MEMBER;
    if (hello->applied > f->view.applied)
        return SPARE_BEHIND;
    return fed_count(f) >= FEED_LINKS_MAX ? SPARE_FULL : 0;
}

static void judge(struct feed_link *l)
{
    struct feed *f = l->feed;
    const struct spare_record *hello = &l->hello;
    enum spare_refusal why = refusal_of(l);
    if (why != 0) {
        f->counts.refused++;
        l->state = FEED_REFUSED;
        put_members(l, &(struct spare_record){.kind = SPARE_REFUSED, .why = why});
        return;
    }
    if (hello->applied == 0 || hello->generation == 0 ||
        !recent_covers(f->options.recent, hello->applied)) {
        l->state = FEED_WAITING;
        return;
    }
    f->counts.resumed++;
    l->state = FEED_FOLLOWING;
    l->begun = l->caught_up = true;
    l->cursor = hello->applied;
    put(l, &(struct spare_record){
               .kind = SPARE_RESUMED, .generation = hello->generation, .applied = hello->applied});
}

static void wait_for_image(struct feed_link *l)
{
    struct feed *f = l->feed;
    l->image = feed_image_take(f);
    if (l->image == NULL) {
        feed_image_make(f);
        return;
    }
    f->counts.snapshots++;
    l->state = FEED_SENDING;
}

static const char *fault_of(const struct feed_link *l)
{
    uint64_t now_ms = l->feed->now_ms;
    if (l->state == FEED_HELLO || l->state == FEED_REFUSED)
        return now_ms - l->heard_ms >= FEED_HELLO_MS ? "it does not go on" : NULL;
    if (now_ms - l->heard_ms >= FEED_SILENT_MS)
        return "it is silent";
    if (is_behind(l))
        return too_slow;
    return l->rest.length > 0 && now_ms - l->moved_ms >= FEED_STALL_MS ? "its stream does not move"
                                                                       : NULL;
}

/* Not each of many in each turn. */
static uint64_t pace_ms(const struct feed *f)
{
    return f->count * 1000 / f->options.sends_per_second;
}

static void link_turn(struct feed_link *l)
{
    struct feed *f = l->feed;
    const char *fault = fault_of(l);
    if (l->state == FEED_CLOSING)
        return;
    if (fault != NULL) {
        link_cut(l, fault);
        return;
    }
    if (l->state == FEED_ASKED)
        judge(l);
    if (l->state == FEED_WAITING)
        wait_for_image(l);
    if (l->state != FEED_FOLLOWING || f->now_ms - l->said_ms >= pace_ms(f))
        pump(l);
}

static void view_take(struct feed *f, const struct feed_view *view)
{
    size_t count = view->member_count < SPARE_MEMBERS_MAX ? view->member_count : SPARE_MEMBERS_MAX;
    bool same = count == f->view.member_count && f->members_version > 0;
    for (size_t i = 0; i < count && same; i++)
        same =
            f->members[i].id == view->members[i].id && f->members[i].role == view->members[i].role;
    if (!same) {
        for (size_t i = 0; i < count; i++)
            f->members[i] = view->members[i];
        f->members_version++;
    }
    f->view = *view;
    f->view.members = f->members;
    f->view.member_count = count;
}

/* The ring is large while a snapshot is on its way, and until what was applied meanwhile has followed it. */
static void ring_follow(struct feed *f)
{
    bool large = false, waits = false;
    for (const struct feed_link *l = f->links; l != NULL; l = l->next) {
        waits |= l->state == FEED_WAITING;
        large |= is_fed(l) && !l->caught_up;
    }
    if (!waits && !f->encoding)
        feed_image_forget(f);
    if (large == f->ring_large)
        return;
    f->ring_large = large;
    recent_bound(f->options.recent, large ? FEED_ENTRIES_MAX : RECENT_ENTRIES_MAX,
                 large ? FEED_BYTES_MAX : RECENT_BYTES_MAX);
}

static void timer_cb(uv_timer_t *timer)
{
    struct feed *f = container_of(timer, struct feed, timer);
    f->options.wake(f->options.user);
}

/* When somebody is to be told something next. */
static void timer_follow(struct feed *f)
{
    bool behind = false;
    if (f->count == 0) {
        (void)uv_timer_stop(&f->timer);
        return;
    }
    for (const struct feed_link *l = f->links; l != NULL; l = l->next)
        behind |= l->state == FEED_FOLLOWING && l->rest.length == 0 && l->cursor < f->view.applied;
    uint64_t wait_ms = behind ? pace_ms(f) + 1 : FEED_HEARTBEAT_MS / 2;
    (void)uv_timer_start(&f->timer, timer_cb, wait_ms, 0);
}

bool feed_wanted(const struct feed *f)
{
    return f->links != NULL && !f->closing;
}

void feed_turn(struct feed *f, uint64_t now_ms, const struct feed_view *view)
{
    if (!feed_wanted(f))
        return;
    f->now_ms = now_ms;
    view_take(f, view);
    /* Before the first look for a place in the ring: it must not end while a snapshot is made. */
    ring_follow(f);
    for (struct feed_link *l = f->links; l != NULL; l = l->next)
        link_turn(l);
    ring_follow(f);
    timer_follow(f);
}

void feed_image_made(struct feed *f, bool done)
{
    for (struct feed_link *l = f->links; l != NULL && !done; l = l->next)
        if (l->state == FEED_WAITING)
            link_close(l);
    f->options.wake(f->options.user);
    closed_maybe(f);
}

void feed_review(struct feed *f)
{
    for (struct feed_link *l = f->links; l != NULL; l = l->next)
        if (l->state != FEED_CLOSING && !secure_stream_trusted(l->stream))
            link_cut(l, "it was removed");
}

struct feed_counts feed_counts(const struct feed *f)
{
    struct feed_counts counts = f->counts;
    counts.links = f->count;
    for (const struct feed_link *l = f->links; l != NULL; l = l->next)
        counts.following += l->state == FEED_FOLLOWING;
    return counts;
}

/* --- life ------------------------------------------------------------------------------------------- */

static void handle_closed_cb(uv_handle_t *handle)
{
    struct feed *f = handle->data;
    if (--f->handles > 0)
        return;
    void (*closed)(void *user) = f->closed;
    void *user = f->closed_user;
    free(f);
    if (closed != NULL)
        closed(user);
}

/* Streams and the encoding have ended. */
static void closed_maybe(struct feed *f)
{
    if (!f->closing || f->links != NULL || f->encoding || uv_is_closing((uv_handle_t *)&f->timer))
        return;
    feed_image_forget(f);
    uv_close((uv_handle_t *)&f->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&f->worker_done, handle_closed_cb);
}

void feed_close(struct feed *f, void (*cb)(void *user), void *user)
{
    f->closing = true;
    f->closed = cb;
    f->closed_user = user;
    for (struct feed_link *l = f->links; l != NULL; l = l->next)
        link_close(l);
    closed_maybe(f);
}

int feed_new(struct feed **out, const struct feed_options *options, struct err *e)
{
    struct feed *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(e, ERR_NO_MEMORY, "what feeds spares: no memory");
    f->options = *options;
    if (f->options.sends_per_second == 0)
        f->options.sends_per_second = FEED_SENDS_PER_SECOND;
    int rc = uv_timer_init(options->loop, &f->timer);
    rc |= feed_image_open(f);
    assert_always(rc == 0);
    f->timer.data = f->worker_done.data = f;
    f->handles = 2;
    *out = f;
    return 0;
}
