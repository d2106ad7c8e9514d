#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/inbox.h"
#include "base/memory.h"
#include "node/layers/transfer.h"
#include "tests/lib/secure_pair.h"

enum { ARCHIVE_BYTES = 3 * 1024 * 1024 + 512, ZEROS = 1024, TURNS_MAX = 4 };

/* What the n-th node that is asked does. */
enum turn { SAYS_MISSING, BREAKS_HALFWAY, SENDS_NONSENSE, SENDS_ALL, SENDS_NOTHING };

struct scene {
    struct secure_world w;
    struct inbox *inbox;
    char *archive;
    enum turn turns[TURNS_MAX];
    unsigned asked;
    uint64_t skips[TURNS_MAX];
    struct layer_transfer *serving;
    struct secure_stream *stream;
    uint8_t question[LAYER_ASK_BYTES];
    size_t question_length;
    bool refused, said;
    int feed_fd;
    size_t feed_from, feed_to;
    pthread_t feeder;
    bool feeding;

    char *got;
    size_t got_length;
    pthread_t reader;
    int read_fd;
    bool fetched, inbox_closed;
    struct err error;
    bool failed;
    uint64_t bytes;
};

static const char digest[] = "sha256:00112233445566778899aabbccddeeff"
                             "00112233445566778899aabbccddeeff";

/* --- the node that has it ------------------------------------------------------------------------- */

static void *feed(void *user)
{
    struct scene *s = user;
    size_t at = s->feed_from;
    while (at < s->feed_to) {
        ssize_t n = write(s->feed_fd, s->archive + at, s->feed_to - at);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    memory_close(&s->feed_fd);
    return NULL;
}

static void served_cb(struct layer_transfer *t, void *user, const struct layer_done *done)
{
    struct scene *s = user;
    (void)done;
    assert_ptr_equal(t, s->serving);
    layer_transfer_free(t);
    s->serving = NULL;
    pthread_join(s->feeder, NULL);
    s->feeding = false;
}

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    struct scene *s = user;
    struct err e;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    s->feed_fd = ends[1];
    assert_int_equal(pthread_create(&s->feeder, NULL, feed, s), 0);
    s->feeding = true;
    assert_int_equal(
        layer_serve(&s->serving, s->w.contexts[2], s->inbox, parcel, ends[0], served_cb, s, &e), 0);
}

static void say(struct scene *s, const char *bytes, size_t length)
{
    size_t count = 0;
    struct iovec part = {(char *)(uintptr_t)bytes, length};
    assert_int_equal(secure_stream_write(s->stream, &part, 1, &count), SECURE_DONE);
    assert_int_equal(secure_stream_end(s->stream), SECURE_DONE);
    s->said = true;
}

static void act(struct scene *s, enum turn turn, uint64_t skip)
{
    static const char missing[] = {LAYER_MISSING};
    static const char nonsense[] = {LAYER_HERE, 'n', 'o', ' ', 'l', 'z', '4',
                                    ' ',        'f', 'r', 'a', 'm', 'e', '!'};
    s->feed_from = (size_t)skip;
    s->feed_to = turn == BREAKS_HALFWAY ? ARCHIVE_BYTES / 2 : ARCHIVE_BYTES;
    if (turn == SAYS_MISSING)
        say(s, missing, sizeof missing);
    else if (turn == SENDS_NONSENSE)
        say(s, nonsense, sizeof nonsense);
    else if (turn == SENDS_NOTHING)
        say(s, nonsense, 1);
    else
        secure_stream_detach(s->stream, detached_cb);
}

static void ready_cb(struct secure_stream *stream, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    struct scene *s = secure_stream_user(stream);
    size_t count = 0;
    char byte;
    if (s->said) {
        if (secure_stream_read(stream, &byte, 1, &count) != SECURE_BLOCKED)
            secure_stream_close(stream, NULL);
        return;
    }
    if (secure_stream_read(stream, s->question + s->question_length,
                           LAYER_ASK_BYTES - s->question_length, &count) != SECURE_DONE)
        return;
    s->question_length += count;
    if (s->question_length < LAYER_ASK_BYTES)
        return;
    struct layer_ask ask;
    assert_true(layer_ask_read(&ask, s->question));
    assert_string_equal(ask.digest, digest);
    assert_true(s->asked < TURNS_MAX);
    s->skips[s->asked] = ask.skip;
    act(s, s->turns[s->asked++], ask.skip);
}

static void accepted_cb(void *user, struct secure_stream *stream)
{
    struct scene *s = user;
    const struct secure_events events = {.ready = ready_cb};
    s->stream = stream;
    s->question_length = 0;
    s->said = false;
    secure_stream_set_events(stream, &events, s);
    secure_stream_want(stream, SECURE_WANT_READ);
}

/* --- the node that wants it ----------------------------------------------------------------------- */

static void *read_all(void *user)
{
    struct scene *s = user;
    ssize_t n;
    while ((n = read(s->read_fd, s->got + s->got_length, ARCHIVE_BYTES + 1 - s->got_length)) > 0)
        s->got_length += (size_t)n;
    return NULL;
}

static void fetched_cb(struct layer_transfer *t, void *user, const struct layer_done *done)
{
    struct scene *s = user;
    s->fetched = true;
    s->failed = done->error != NULL;
    if (s->failed)
        s->error = *done->error;
    s->bytes = done->bytes;
    layer_transfer_free(t);
}

static bool is_over(void *user)
{
    const struct scene *s = user;
    return s->fetched && s->serving == NULL;
}

static void closed_inbox_cb(void *owner)
{
    ((struct scene *)owner)->inbox_closed = true;
}

static bool is_closed(void *user)
{
    return ((struct scene *)user)->inbox_closed;
}

static void play(struct scene *s, size_t peers, const enum turn *turns)
{
    struct err e;
    int ends[2];
    struct layer_transfer *t;
    struct layers_peer list[TURNS_MAX];
    struct layer_ask ask = {.kind = SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE};
    memset(s, 0, sizeof *s);
    s->archive = calloc(1, ARCHIVE_BYTES);
    s->got = malloc(ARCHIVE_BYTES + 1);
    for (size_t i = 0; i < ARCHIVE_BYTES - ZEROS; i++)
        s->archive[i] = (char)(i * i >> 7 | i % 251);
    memcpy(s->turns, turns, peers * sizeof turns[0]);
    secure_world_open(&s->w);
    assert_int_equal(inbox_open(&s->inbox, &s->w.loop, s, 16, &e), 0);
    secure_world_listen(&s->w, 2,
                        (struct secure_listen_options){
                            .protocols = 1u << SECURE_IMAGE, .accepted = accepted_cb, .user = s});
    for (size_t i = 0; i < peers; i++)
        list[i] = (struct layers_peer){.id = 2, .address = s->w.address};
    text_copy(ask.digest, sizeof ask.digest, digest);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    s->read_fd = ends[0];
    assert_int_equal(pthread_create(&s->reader, NULL, read_all, s), 0);
    assert_int_equal(
        layer_fetch(&t, s->w.contexts[1], s->inbox, &ask, list, peers, ends[1], fetched_cb, s, &e),
        0);
    assert_true(secure_world_wait(&s->w, is_over, s));
    pthread_join(s->reader, NULL);
    memory_close(&s->read_fd);
    inbox_close(s->inbox, closed_inbox_cb);
    assert_true(secure_world_wait(&s->w, is_closed, s));
    secure_world_close(&s->w);
}

static void assert_whole(const struct scene *s)
{
    assert_false(s->failed);
    assert_int_equal(s->bytes, ARCHIVE_BYTES);
    assert_int_equal(s->got_length, ARCHIVE_BYTES);
    assert_memory_equal(s->got, s->archive, ARCHIVE_BYTES);
}

static void scene_free(struct scene *s)
{
    free(s->archive);
    free(s->got);
}

/* --- what must hold --------------------------------------------------------------------------------- */

static void a_layer_comes_whole(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 1, (enum turn[]){SENDS_ALL});
    assert_whole(&s);
    assert_int_equal(s.skips[0], 0);
    scene_free(&s);
}

static void who_has_it_not_is_passed_over(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 2, (enum turn[]){SAYS_MISSING, SENDS_ALL});
    assert_whole(&s);
    assert_int_equal(s.asked, 2);
    scene_free(&s);
}

static void one_that_breaks_off_goes_on_with_the_next(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 3, (enum turn[]){BREAKS_HALFWAY, SAYS_MISSING, SENDS_ALL});
    assert_whole(&s);
    assert_int_equal(s.skips[0], 0);
    assert_true(s.skips[2] > 0 && s.skips[2] <= ARCHIVE_BYTES / 2);
    scene_free(&s);
}

static void nonsense_is_not_taken(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 3, (enum turn[]){SENDS_NONSENSE, SENDS_NOTHING, SENDS_ALL});
    assert_whole(&s);
    assert_int_equal(s.asked, 3);
    scene_free(&s);
}

static void nobody_having_it_is_said(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 2, (enum turn[]){SAYS_MISSING, SENDS_NONSENSE});
    assert_true(s.failed);
    assert_int_equal(s.error.code, ERR_NOT_FOUND);
    assert_non_null(strstr(s.error.msg, "no node could give sha256:"));
    assert_int_equal(s.got_length, 0);
    scene_free(&s);
}

static void without_another_node_it_ends_at_once(void **state)
{
    (void)state;
    static struct scene s;
    play(&s, 0, (enum turn[]){SENDS_ALL});
    assert_true(s.failed);
    assert_non_null(strstr(s.error.msg, "there is no other node"));
    scene_free(&s);
}

static void questions_are_read_strictly(void **state)
{
    (void)state;
    uint8_t bytes[LAYER_ASK_BYTES];
    struct layer_ask ask = {.kind = SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE, .skip = 1u << 30};
    struct layer_ask read;
    text_copy(ask.digest, sizeof ask.digest, digest);
    layer_ask_write(bytes, &ask);
    assert_true(layer_ask_read(&read, bytes));
    assert_int_equal(read.kind, ask.kind);
    assert_int_equal(read.skip, ask.skip);
    assert_string_equal(read.digest, digest);
    bytes[1] = 2;
    assert_false(layer_ask_read(&read, bytes));
    bytes[1] = 0;
    bytes[0] = LAYER_ASK_VERSION + 1;
    assert_false(layer_ask_read(&read, bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_comes_whole),
        cmocka_unit_test(who_has_it_not_is_passed_over),
        cmocka_unit_test(one_that_breaks_off_goes_on_with_the_next),
        cmocka_unit_test(nonsense_is_not_taken),
        cmocka_unit_test(nobody_having_it_is_said),
        cmocka_unit_test(without_another_node_it_ends_at_once),
        cmocka_unit_test(questions_are_read_strictly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
