#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/inbox.h"
#include "base/memory.h"

enum { SENDERS = 4, MESSAGES = 20000, WAITING_MAX = 64 };

struct note {
    struct inbox_message message;
    unsigned sender, number;
};

/* What the loop's thread has seen. */
struct seen {
    unsigned next[SENDERS];
    size_t count;
    size_t count_wanted;
    struct inbox *inbox;
    bool closed;
    bool order_broken;
};

static void closed_cb(void *owner)
{
    struct seen *seen = owner;
    seen->closed = true;
}

static void deliver(struct inbox_message *message, void *owner)
{
    struct note *note = container_of(message, struct note, message);
    struct seen *seen = owner;
    seen->order_broken |= seen->next[note->sender] != note->number;
    seen->next[note->sender]++;
    seen->count++;
    free(note);
    if (seen->count == seen->count_wanted)
        inbox_close(seen->inbox, closed_cb);
}

static struct note *note_new(unsigned sender, unsigned number)
{
    struct note *note = malloc(sizeof *note);
    assert_always(note != NULL);
    *note = (struct note){.message = {.deliver = deliver}, .sender = sender, .number = number};
    return note;
}

struct sender {
    uv_thread_t thread;
    struct inbox *inbox;
    unsigned number;
    size_t refused;
};

static void send_all(void *argument)
{
    struct sender *s = argument;
    for (unsigned i = 0; i < MESSAGES; i++) {
        struct note *note = note_new(s->number, i);
        /* Every tenth is one that must not be refused. */
        while (!(i % 10 == 0 ? inbox_post_always(s->inbox, &note->message)
                             : inbox_post(s->inbox, &note->message))) {
            s->refused++;
            uv_sleep(0);
        }
    }
}

static void messages_of_each_thread_arrive_once_and_in_order(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct seen seen = {.count_wanted = SENDERS * MESSAGES};
    struct err e;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(inbox_open(&seen.inbox, &loop, &seen, WAITING_MAX, &e), 0);
    struct sender senders[SENDERS] = {0};
    for (unsigned i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){.inbox = seen.inbox, .number = i};
        assert_int_equal(uv_thread_create(&senders[i].thread, send_all, &senders[i]), 0);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < SENDERS; i++)
        assert_int_equal(uv_thread_join(&senders[i].thread), 0);
    assert_int_equal(seen.count, SENDERS * MESSAGES);
    assert_false(seen.order_broken);
    assert_true(seen.closed);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void a_full_inbox_refuses_all_but_what_must_not_be_lost(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct seen seen = {.count_wanted = 4};
    struct err e;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(inbox_open(&seen.inbox, &loop, &seen, 3, &e), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_true(inbox_post(seen.inbox, &note_new(0, i)->message));
    struct note *fourth = note_new(0, 3);
    assert_false(inbox_post(seen.inbox, &fourth->message));
    assert_true(inbox_post_always(seen.inbox, &fourth->message));
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(seen.count, 4);
    assert_false(seen.order_broken);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void closing_delivers_what_waits_and_takes_no_more(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct seen seen = {.count_wanted = 1000};
    struct err e;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(inbox_open(&seen.inbox, &loop, &seen, 10, &e), 0);
    assert_true(inbox_post(seen.inbox, &note_new(1, 0)->message));
    assert_true(inbox_post(seen.inbox, &note_new(1, 1)->message));
    inbox_close(seen.inbox, closed_cb);
    assert_int_equal(seen.count, 2);
    struct note *late = note_new(1, 2);
    assert_false(inbox_post(seen.inbox, &late->message));
    assert_false(inbox_post_always(seen.inbox, &late->message));
    free(late);
    assert_false(seen.closed);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(seen.closed);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_of_each_thread_arrive_once_and_in_order),
        cmocka_unit_test(a_full_inbox_refuses_all_but_what_must_not_be_lost),
        cmocka_unit_test(closing_delivers_what_waits_and_takes_no_more),
    };
    return cmocka_run_group_tests_name("inbox", tests, NULL, NULL);
}
