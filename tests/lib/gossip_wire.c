#include "tests/lib/gossip_wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"

enum { STEPS_MAX = 100000 };

struct address gossip_wire_address_of(node_id id)
{
    return (struct address){.family = ADDRESS_V4, .port = 7602, .bytes = {10, 0, 0, (uint8_t)id}};
}

struct gossip *gossip_wire_make(node_id id, void (*tune)(struct gossip_options *))
{
    struct gossip_meta meta = {.roles = 5, .label_count = 1};
    struct gossip_options options;
    struct gossip *g = NULL;
    struct err e = {0};
    (void)text_format(meta.name, sizeof meta.name, "node%u", (unsigned)id);
    (void)text_copy(meta.labels[0].key, GOSSIP_LABEL_SIZE, "disk");
    (void)text_copy(meta.labels[0].value, GOSSIP_LABEL_SIZE, "ssd");
    gossip_options_defaults(&options);
    options.self.id = id;
    options.self.boot = GOSSIP_WIRE_BOOT;
    options.self.address = gossip_wire_address_of(id);
    options.self.meta = &meta;
    options.seed = id;
    if (tune != NULL)
        tune(&options);
    if (gossip_new(&g, &options, &e) != 0)
        fail_msg("%s", e.msg);
    return g;
}

void gossip_wire_exchange(struct gossip_wire *w, size_t i, size_t j)
{
    struct buffer state;
    buffer_init(&state, 1u << 20);
    assert_int_equal(gossip_sync_write(w->nodes[i], &state, NULL), 0);
    struct gossip_event event = {.kind = GOSSIP_SYNC,
                                 .from = i + 1,
                                 .data = (const uint8_t *)state.data,
                                 .size = state.length};
    assert_int_equal(gossip_wire_step(w, j, &event), 0);
    buffer_free(&state);
}

static void deliver(struct gossip_wire *w, size_t i, const struct gossip_send *send)
{
    size_t to = (size_t)send->to - 1;
    w->sends++;
    assert_true(send->size <= GOSSIP_PACKET_BYTES_MAX);
    w->pings_of_50 += send->to == 50 && send->data[0] == PACKET_PING;
    if (to >= w->count || w->cut[to] || w->cut[i] || w->broken[i][to] ||
        send->to_boot != GOSSIP_WIRE_BOOT)
        return;
    struct gossip_event event = {.kind = GOSSIP_PACKET,
                                 .from = i + 1,
                                 .from_boot = GOSSIP_WIRE_BOOT,
                                 .address = gossip_wire_address_of(i + 1),
                                 .data = send->data,
                                 .size = send->size};
    assert_int_equal(gossip_wire_step(w, to, &event), 0);
}

int gossip_wire_step(struct gossip_wire *w, size_t i, const struct gossip_event *event)
{
    struct gossip_actions actions;
    struct err e;
    int rc = gossip_step(w->nodes[i], event, w->now_ms, &actions, &e);
    w->next_ms[i] = actions.next_ms;
    w->left |= actions.left;
    w->impostor |= actions.impostor;
    for (size_t k = 0; k < actions.change_count; k++)
        w->changed |= actions.changes[k].changed;
    w->syncs += (unsigned)actions.sync_count;
    /* Answers may step this node again: what is sent has to be kept. */
    size_t count = actions.send_count;
    struct gossip_send sends[64];
    assert_true(count <= ARRAY_SIZE(sends) && ++w->depth < 50);
    uint8_t *bytes = malloc(count * GOSSIP_PACKET_BYTES_MAX + 1);
    for (size_t k = 0; k < count; k++) {
        sends[k] = actions.sends[k];
        sends[k].data = bytes + k * GOSSIP_PACKET_BYTES_MAX;
        memcpy(bytes + k * GOSSIP_PACKET_BYTES_MAX, actions.sends[k].data, sends[k].size);
    }
    for (size_t k = 0; k < actions.sync_count; k++) {
        size_t with = (size_t)actions.syncs[k] - 1;
        if (with < w->count && !w->cut[with] && !w->cut[i] && !w->no_sync) {
            gossip_wire_exchange(w, i, with);
            gossip_wire_exchange(w, with, i);
        }
    }
    for (size_t k = 0; k < count; k++)
        deliver(w, i, &sends[k]);
    free(bytes);
    w->depth--;
    return rc;
}

void gossip_wire_run(struct gossip_wire *w, uint64_t ms)
{
    uint64_t end_ms = w->now_ms + ms;
    for (unsigned n = 0; n < STEPS_MAX; n++) {
        size_t next = w->count;
        for (size_t i = 0; i < w->count; i++) {
            if (!w->cut[i] && (next == w->count || w->next_ms[i] < w->next_ms[next]))
                next = i;
        }
        if (next == w->count || w->next_ms[next] > end_ms) {
            w->now_ms = end_ms;
            return;
        }
        if (w->next_ms[next] > w->now_ms)
            w->now_ms = w->next_ms[next];
        struct gossip_event tick = {.kind = GOSSIP_TICK};
        assert_int_equal(gossip_wire_step(w, next, &tick), 0);
    }
    fail_msg("time stands still");
}

void gossip_wire_open_tuned(struct gossip_wire *w, size_t count,
                            void (*tune)(struct gossip_options *))
{
    struct gossip_event tick = {.kind = GOSSIP_TICK};
    *w = (struct gossip_wire){.count = count, .now_ms = 1000};
    for (size_t i = 0; i < count; i++)
        w->nodes[i] = gossip_wire_make(i + 1, tune);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(gossip_wire_step(w, i, &tick), 0);
    for (size_t i = 1; i < count; i++)
        gossip_wire_exchange(w, i, 0);
    for (size_t i = 1; i < count; i++)
        gossip_wire_exchange(w, 0, i);
}

void gossip_wire_open(struct gossip_wire *w, size_t count)
{
    gossip_wire_open_tuned(w, count, NULL);
}

void gossip_wire_close(struct gossip_wire *w)
{
    for (size_t i = 0; i < w->count; i++)
        gossip_free(w->nodes[i]);
}

struct gossip_member gossip_wire_look(struct gossip_wire *w, size_t i, node_id id)
{
    struct gossip_member m = {.state = GOSSIP_STATE_COUNT};
    (void)gossip_member_get(w->nodes[i], id, &m);
    return m;
}

void gossip_wire_tell(struct gossip_wire *w, size_t i, node_id from,
                      const struct packet_item *items, size_t count)
{
    uint8_t bytes[GOSSIP_PACKET_BYTES_MAX];
    struct packet_writer writer = {bytes, sizeof bytes, 0};
    struct packet_head head = {.kind = PACKET_GOSSIP};
    assert_true(packet_write_head(&writer, &head));
    for (size_t k = 0; k < count; k++)
        assert_true(packet_write_item(&writer, &items[k]));
    struct gossip_event event = {.kind = GOSSIP_PACKET,
                                 .from = from,
                                 .from_boot = GOSSIP_WIRE_BOOT,
                                 .address = gossip_wire_address_of(from),
                                 .data = bytes,
                                 .size = writer.length};
    assert_int_equal(gossip_wire_step(w, i, &event), 0);
}

struct packet_item gossip_wire_statement(node_id id, uint64_t boot, uint32_t incarnation,
                                         enum gossip_state state)
{
    return (struct packet_item){.kind = PACKET_STATE,
                                .id = id,
                                .boot = boot,
                                .incarnation = incarnation,
                                .state = state,
                                .address = gossip_wire_address_of(id),
                                .by_count = state == GOSSIP_SUSPECT ? 1 : 0,
                                .by = {90}};
}

void gossip_wire_all_alive(struct gossip_wire *w)
{
    for (size_t i = 0; i < w->count; i++) {
        for (node_id id = 1; id <= w->count; id++)
            assert_int_equal(gossip_wire_look(w, i, id).state, GOSSIP_ALIVE);
    }
}
