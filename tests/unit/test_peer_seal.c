#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/peer_seal.h"

enum { NODES = 4, BYTES_MAX = 1000 };

struct world {
    struct identity *identities[NODES + 1];
    struct peer_seal *seals[NODES + 1];
    bool removed[NODES + 1];
    bool twins; /* node 3 has the key of node 2 */
};

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    struct world *w = user;
    if (id == 0 || id >= NODES || w->removed[id]) /* 4 is a stranger */
        return false;
    *out = *identity_public(w->identities[w->twins && id == 3 ? 2 : id]);
    return true;
}

static struct peer_seal *new_seal(struct world *w, struct identity *identity, node_id id,
                                  uint64_t boot)
{
    struct peer_seal *s = NULL;
    struct err e;
    struct peer_seal_options options = {.identity = identity,
                                        .id = id,
                                        .boot = boot,
                                        .key_of = key_of,
                                        .user = w,
                                        .bytes_max = BYTES_MAX};
    assert_int_equal(peer_seal_new(&s, &options, &e), 0);
    return s;
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e;
    for (node_id id = 1; id <= NODES; id++) {
        assert_int_equal(identity_new(&w->identities[id], &e), 0);
        w->seals[id] = new_seal(w, w->identities[id], id, 100 + id);
    }
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    for (node_id id = 1; id <= NODES; id++) {
        peer_seal_free(w->seals[id]);
        identity_free(w->identities[id]);
    }
    free(w);
    return 0;
}

static void restart(struct world *w, node_id id, uint64_t boot)
{
    peer_seal_free(w->seals[id]);
    w->seals[id] = new_seal(w, w->identities[id], id, boot);
}

struct letter {
    uint8_t bytes[BYTES_MAX + PEER_SEAL_OVERHEAD_BYTES];
    size_t size;
    uint64_t counter;
};

static struct letter write_content(struct world *w, node_id from, struct peer_seal_content content,
                                   const char *text)
{
    struct letter l;
    struct err e;
    content.what = 7;
    content.payload = (const uint8_t *)text;
    content.size = strlen(text);
    assert_int_equal(peer_seal_message(w->seals[from], &content, l.bytes, &e), 0);
    l.size = content.size + PEER_SEAL_OVERHEAD_BYTES;
    l.counter = content.counter;
    return l;
}

static struct letter ask(struct world *w, node_id from, node_id to, const char *text)
{
    return write_content(w, from, (struct peer_seal_content){.peer = to, .kind = PEER_SEAL_ASK},
                         text);
}

static struct letter reply(struct world *w, node_id from, const struct peer_seal_content *to,
                           enum peer_seal_kind kind, const char *text)
{
    return write_content(
        w, from,
        (struct peer_seal_content){
            .peer = to->peer, .kind = kind, .answers = to->counter, .boot = to->boot},
        text);
}

static enum peer_seal_result read_letter(struct world *w, node_id at, const struct letter *l,
                                         struct peer_seal_content *out)
{
    struct letter copy = *l;
    struct peer_seal_content content;
    return peer_seal_open(w->seals[at], copy.bytes, copy.size, out == NULL ? &content : out);
}

/* Node 1 learns node 2's boot, as it does from the first refusal. */
static void introduce(struct world *w, node_id a, node_id b)
{
    struct peer_seal_content content;
    struct letter first = ask(w, a, b, "");
    if (read_letter(w, b, &first, &content) != PEER_SEAL_EARLIER_LIFE)
        return;
    struct letter refusal = reply(w, b, &content, PEER_SEAL_REFUSAL, "");
    assert_int_equal(read_letter(w, a, &refusal, &content), PEER_SEAL_GOOD);
    assert_int_equal(content.kind, PEER_SEAL_REFUSAL);
    assert_int_equal(content.answers, first.counter);
}

static uint64_t refused(struct world *w, node_id at, enum peer_seal_refusal why)
{
    return refusals_count(peer_seal_refusals(w->seals[at]), why);
}

static void a_message_arrives_as_it_was(void **state)
{
    struct world *w = *state;
    struct peer_seal_content content;
    introduce(w, 1, 2);
    struct letter question = ask(w, 1, 2, "who leads?");
    struct letter copy = question;
    assert_int_equal(peer_seal_open(w->seals[2], copy.bytes, copy.size, &content), PEER_SEAL_GOOD);
    assert_int_equal(content.peer, 1);
    assert_int_equal(content.kind, PEER_SEAL_ASK);
    assert_int_equal(content.what, 7);
    assert_int_equal(content.counter, question.counter);
    assert_int_equal(content.size, 10);
    assert_memory_equal(content.payload, "who leads?", 10);
    assert_null(memmem(question.bytes, question.size, "who leads?", 10));
    struct letter answer = reply(w, 2, &content, PEER_SEAL_ANSWER, "I do");
    copy = answer;
    assert_int_equal(peer_seal_open(w->seals[1], copy.bytes, copy.size, &content), PEER_SEAL_GOOD);
    assert_int_equal(content.kind, PEER_SEAL_ANSWER);
    assert_int_equal(content.answers, question.counter);
    assert_memory_equal(content.payload, "I do", 4);
}

static void a_stranger_is_not_heard(void **state)
{
    struct world *w = *state;
    struct letter l = ask(w, 4, 2, "let me in");
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_STRANGER), 1);
    /* The same, in the name of a member. */
    struct peer_seal *liar = new_seal(w, w->identities[4], 1, 101);
    peer_seal_free(w->seals[4]);
    w->seals[4] = liar;
    l = ask(w, 4, 2, "let me in");
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_KEY), 1);
    struct peer_seal_content content = {.peer = 4, .kind = PEER_SEAL_ASK};
    struct err e;
    assert_int_equal(peer_seal_message(w->seals[2], &content, l.bytes, &e), -ERR_NOT_FOUND);
}

static void a_removed_node_is_not_heard(void **state)
{
    struct world *w = *state;
    introduce(w, 1, 2);
    struct letter a = ask(w, 1, 2, "a");
    struct letter b = ask(w, 1, 2, "b");
    assert_int_equal(read_letter(w, 2, &a, NULL), PEER_SEAL_GOOD);
    w->removed[1] = true;
    assert_int_equal(read_letter(w, 2, &b, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_STRANGER), 1);
    /* A map that was behind for a moment makes no replay possible. */
    w->removed[1] = false;
    assert_int_equal(read_letter(w, 2, &a, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_REPLAY), 1);
    peer_seal_forget(w->seals[2], 1);
    peer_seal_forget(w->seals[2], 1);
}

static void every_changed_byte_is_noticed(void **state)
{
    struct world *w = *state;
    introduce(w, 1, 2);
    struct letter l = ask(w, 1, 2, "pay 100");
    for (size_t i = 0; i < l.size; i++) {
        struct letter changed = l;
        changed.bytes[i] ^= 1;
        assert_int_equal(read_letter(w, 2, &changed, NULL), PEER_SEAL_BAD);
    }
    for (size_t size = 0; size < l.size; size++) {
        struct letter cut = l;
        cut.size = size;
        assert_int_equal(read_letter(w, 2, &cut, NULL), PEER_SEAL_BAD);
    }
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_GOOD);
}

static void nothing_is_accepted_twice(void **state)
{
    struct world *w = *state;
    introduce(w, 1, 2);
    struct letter l = ask(w, 1, 2, "once");
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_GOOD);
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_REPLAY), 1);
    /* Back to its sender, whose key makes the same box; and on to a third node. */
    assert_int_equal(read_letter(w, 1, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(read_letter(w, 3, &l, NULL), PEER_SEAL_BAD);
}

static void a_message_is_for_one_node_even_if_keys_are_equal(void **state)
{
    struct world *w = *state;
    w->twins = true;
    introduce(w, 1, 2);
    struct letter l = ask(w, 1, 3, "for three");
    assert_int_equal(read_letter(w, 2, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_OTHER), 1);
    /* Sent back with its sender's name changed, it opens, and is not believed. */
    l = ask(w, 1, 2, "for two");
    l.bytes[11] = 2;
    assert_int_equal(read_letter(w, 1, &l, NULL), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 1, PEER_SEAL_REFUSED_FORMAT), 1);
}

static void messages_may_overtake_each_other_within_the_window(void **state)
{
    struct world *w = *state;
    enum { COUNT = PEER_SEAL_WINDOW + 10 };
    introduce(w, 1, 2);
    struct letter *all = calloc(COUNT, sizeof *all);
    for (size_t i = 0; i < COUNT; i++)
        all[i] = ask(w, 1, 2, "x");
    assert_int_equal(read_letter(w, 2, &all[PEER_SEAL_WINDOW - 1], NULL), PEER_SEAL_GOOD);
    for (size_t i = 0; i < PEER_SEAL_WINDOW - 1; i += 7)
        assert_int_equal(read_letter(w, 2, &all[i], NULL), PEER_SEAL_GOOD);
    for (size_t i = 0; i < PEER_SEAL_WINDOW - 1; i++)
        assert_int_equal(read_letter(w, 2, &all[i], NULL),
                         i % 7 == 0 ? PEER_SEAL_BAD : PEER_SEAL_GOOD);
    /* Ten further: what falls out of the window is refused, seen or not. */
    assert_int_equal(read_letter(w, 2, &all[COUNT - 1], NULL), PEER_SEAL_GOOD);
    for (size_t i = 0; i < COUNT - 1; i++)
        assert_int_equal(read_letter(w, 2, &all[i], NULL),
                         i < PEER_SEAL_WINDOW ? PEER_SEAL_BAD : PEER_SEAL_GOOD);
    free(all);
}

static void a_jump_beyond_the_window_forgets_nothing_newer(void **state)
{
    struct world *w = *state;
    introduce(w, 1, 2);
    struct letter first = ask(w, 1, 2, "x");
    for (size_t i = 0; i < 3 * PEER_SEAL_WINDOW; i++)
        (void)ask(w, 1, 2, "x");
    struct letter before = ask(w, 1, 2, "x");
    struct letter last = ask(w, 1, 2, "x");
    assert_int_equal(read_letter(w, 2, &last, NULL), PEER_SEAL_GOOD);
    assert_int_equal(read_letter(w, 2, &last, NULL), PEER_SEAL_BAD);
    assert_int_equal(read_letter(w, 2, &before, NULL), PEER_SEAL_GOOD);
    assert_int_equal(read_letter(w, 2, &before, NULL), PEER_SEAL_BAD);
    assert_int_equal(read_letter(w, 2, &first, NULL), PEER_SEAL_BAD);
}

static void an_earlier_life_of_the_sender_is_refused(void **state)
{
    struct world *w = *state;
    introduce(w, 1, 2);
    struct letter old = ask(w, 1, 2, "old");
    struct letter seen = ask(w, 1, 2, "seen");
    assert_int_equal(read_letter(w, 2, &seen, NULL), PEER_SEAL_GOOD);
    restart(w, 1, 500);
    introduce(w, 1, 2);
    struct letter fresh = ask(w, 1, 2, "fresh");
    assert_int_equal(read_letter(w, 2, &fresh, NULL), PEER_SEAL_GOOD);
    assert_int_equal(read_letter(w, 2, &old, NULL), PEER_SEAL_OUTLIVED);
    assert_int_equal(read_letter(w, 2, &seen, NULL), PEER_SEAL_OUTLIVED);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_STALE), 2);
}

static void a_restarted_receiver_takes_nothing_of_before(void **state)
{
    struct world *w = *state;
    struct peer_seal_content content;
    introduce(w, 1, 2);
    struct letter seen = ask(w, 1, 2, "seen");
    assert_int_equal(read_letter(w, 2, &seen, NULL), PEER_SEAL_GOOD);
    restart(w, 2, 900);
    assert_int_equal(read_letter(w, 2, &seen, &content), PEER_SEAL_EARLIER_LIFE);
    assert_int_equal(content.peer, 1);
    introduce(w, 1, 2);
    struct letter again = ask(w, 1, 2, "again");
    assert_int_equal(read_letter(w, 2, &again, NULL), PEER_SEAL_GOOD);
    assert_int_equal(read_letter(w, 2, &seen, NULL), PEER_SEAL_EARLIER_LIFE);
}

static void sizes_are_bounded(void **state)
{
    struct world *w = *state;
    struct err e;
    static uint8_t large[2 * BYTES_MAX + PEER_SEAL_OVERHEAD_BYTES];
    struct peer_seal_content content = {
        .peer = 2, .kind = PEER_SEAL_ASK, .payload = large, .size = BYTES_MAX + 1};
    assert_int_equal(peer_seal_message(w->seals[1], &content, large, &e), -ERR_LIMIT);
    struct letter l = ask(w, 1, 2, "x");
    memcpy(large, l.bytes, l.size);
    assert_int_equal(peer_seal_open(w->seals[2], large, sizeof large, &content), PEER_SEAL_BAD);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_SIZE), 1);
}

static void the_table_of_peers_is_bounded(void **state)
{
    struct world *w = *state;
    struct err e;
    struct peer_seal *s = NULL;
    struct letter l;
    struct peer_seal_options options = {.identity = w->identities[1],
                                        .id = 1,
                                        .boot = 1,
                                        .key_of = key_of,
                                        .user = w,
                                        .peers_max = 1};
    struct peer_seal_content content = {.peer = 2, .kind = PEER_SEAL_ASK};
    assert_int_equal(peer_seal_new(&s, &options, &e), 0);
    assert_int_equal(peer_seal_message(s, &content, l.bytes, &e), 0);
    content.peer = 3;
    assert_int_equal(peer_seal_message(s, &content, l.bytes, &e), -ERR_LIMIT);
    peer_seal_forget(s, 2);
    assert_int_equal(peer_seal_message(s, &content, l.bytes, &e), 0);
    peer_seal_free(s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_message_arrives_as_it_was),
        TEST(a_stranger_is_not_heard),
        TEST(a_removed_node_is_not_heard),
        TEST(every_changed_byte_is_noticed),
        TEST(nothing_is_accepted_twice),
        TEST(a_message_is_for_one_node_even_if_keys_are_equal),
        TEST(messages_may_overtake_each_other_within_the_window),
        TEST(a_jump_beyond_the_window_forgets_nothing_newer),
        TEST(an_earlier_life_of_the_sender_is_refused),
        TEST(a_restarted_receiver_takes_nothing_of_before),
        TEST(sizes_are_bounded),
        TEST(the_table_of_peers_is_bounded),
    };
    return cmocka_run_group_tests_name("peer_seal", tests, NULL, NULL);
}
