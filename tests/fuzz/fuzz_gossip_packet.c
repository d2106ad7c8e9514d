/* Packets and syncs of gossip: whatever comes from a member that has the key, the machine holds its
 * bounds, what it says is well-formed, and what was read is written alike. The first byte chooses
 * between packet, sync and seal. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/gossip.h"
#include "gossip/packet.h"
#include "gossip/seal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What was read and is written reads the same. */
static void check_items(const uint8_t *data, size_t size)
{
    struct packet_reader r = {data, data + size};
    struct packet_head head;
    struct packet_item item, again;
    uint8_t bytes[2 * GOSSIP_PACKET_BYTES_MAX];
    if (!packet_read_head(&r, &head))
        return;
    while (packet_read_item(&r, &item) > 0) {
        assert_always(item.bytes == NULL || (item.bytes >= data && item.bytes <= data + size &&
                                             item.size <= (size_t)(data + size - item.bytes)));
        struct packet_writer w = {bytes, sizeof bytes, 0};
        assert_always(packet_write_item(&w, &item));
        struct packet_reader second = {bytes, bytes + w.length};
        assert_always(packet_read_item(&second, &again) == 1);
        assert_always(again.id == item.id && again.boot == item.boot && again.size == item.size &&
                      again.incarnation == item.incarnation && again.by_count == item.by_count &&
                      address_pack_equal(&again.address, &item.address));
        struct gossip_meta meta;
        struct gossip_load load;
        if (item.kind == PACKET_META)
            assert_always(packet_decode_meta(&meta, item.bytes, item.size) &&
                          meta.label_count <= GOSSIP_LABELS_MAX);
        if (item.kind == PACKET_LOAD)
            assert_always(packet_decode_load(&load, item.bytes, item.size));
    }
}

static void check_actions(const struct gossip_actions *actions, uint64_t now_ms)
{
    assert_always(actions->next_ms + 60000 >= now_ms);
    assert_always(actions->sync_count <= GOSSIP_SYNCS_MAX);
    for (size_t i = 0; i < actions->send_count; i++) {
        struct packet_reader r = {actions->sends[i].data,
                                  actions->sends[i].data + actions->sends[i].size};
        struct packet_head head;
        struct packet_item item;
        int rc;
        assert_always(actions->sends[i].size <= GOSSIP_PACKET_BYTES_MAX);
        assert_always(packet_read_head(&r, &head));
        while ((rc = packet_read_item(&r, &item)) > 0)
            ;
        assert_always(rc == 0);
    }
}

static void check_machine(enum gossip_event_kind kind, const uint8_t *data, size_t size)
{
    struct gossip_meta meta = {.name = "a"};
    struct gossip_options options;
    struct gossip_actions actions;
    struct gossip *g = NULL;
    uint64_t now_ms = 1000;
    gossip_options_defaults(&options);
    options.self.id = 1;
    options.self.boot = 5;
    options.self.address = (struct address){.family = ADDRESS_V4, .port = 1};
    options.self.meta = &meta;
    options.members_max = 16;
    if (gossip_new(&g, &options, NULL) != 0)
        return;
    struct gossip_event event = {.kind = kind,
                                 .from = 2,
                                 .from_boot = 3,
                                 .address = options.self.address,
                                 .data = data,
                                 .size = size};
    (void)!gossip_step(g, &event, now_ms, &actions, NULL);
    check_actions(&actions, now_ms);
    for (unsigned i = 0; i < 40; i++) {
        struct gossip_event tick = {.kind = GOSSIP_TICK};
        now_ms = actions.next_ms > now_ms ? actions.next_ms : now_ms;
        assert_always(gossip_step(g, &tick, now_ms, &actions, NULL) == 0);
        check_actions(&actions, now_ms);
    }
    struct gossip_counts counts;
    gossip_counts(g, &counts);
    uint32_t members = 0;
    for (unsigned i = 0; i < GOSSIP_STATE_COUNT; i++)
        members += counts.members[i];
    assert_always(members >= 1 && members <= options.members_max);
    struct buffer state;
    buffer_init(&state, options.members_max * GOSSIP_SYNC_MEMBER_BYTES_MAX + 2);
    assert_always(gossip_sync_write(g, &state, NULL) == 0);
    buffer_free(&state);
    gossip_free(g);
}

static void check_seal(uint8_t *data, size_t size)
{
    struct seal_options options = {.self = 1, .boot = 1, .senders_max = 2};
    static const uint8_t key[SEAL_KEY_BYTES] = {1};
    struct seal_opened opened;
    struct seal *s = NULL;
    if (seal_new(&s, &options, NULL) != 0)
        return;
    assert_always(seal_key_add(s, key, NULL) == 0);
    char shown[SEAL_KEY_ID_SIZE];
    seal_key_id(key, shown);
    assert_always(seal_open(s, data, size, &opened) != SEAL_TAKEN);
    seal_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 1 << 16)
        return 0;
    uint8_t *rest = malloc(size);
    if (rest == NULL)
        return 0;
    memcpy(rest, data + 1, size - 1);
    if (data[0] % 4 == 0) {
        check_seal(rest, size - 1);
    } else if (data[0] % 4 == 1) {
        check_machine(GOSSIP_SYNC, rest, size - 1);
    } else {
        check_items(rest, size - 1);
        check_machine(GOSSIP_PACKET, rest, size - 1);
    }
    free(rest);
    return 0;
}
