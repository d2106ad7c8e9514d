#include "node/cluster/peer_seal.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/bytes.h"
#include "base/memory.h"

#define MAGIC "SKR1"
#define MAGIC_BYTES 4u
#define NONCE_AT (MAGIC_BYTES + 8u)
#define BOX_AT (NONCE_AT + crypto_box_NONCEBYTES)
#define INSIDE_AT (BOX_AT + crypto_box_MACBYTES)
#define INSIDE_BYTES 52u
#define WINDOW_WORDS (PEER_SEAL_WINDOW / 64u)

enum { PAYLOAD_AT = INSIDE_AT + INSIDE_BYTES };
_Static_assert(PAYLOAD_AT == PEER_SEAL_OVERHEAD_BYTES, "what a seal adds");
_Static_assert(PEER_SEAL_WINDOW % 64 == 0, "whole words");
_Static_assert(PEER_SEAL_REFUSAL_COUNT <= REFUSALS_REASONS_MAX, "each refusal has its count");

/* What stands in the box before the payload. */
struct inside {
    uint64_t from, to, from_boot, to_boot, counter, answers;
    unsigned kind, zero, what;
};

struct peer {
    node_id id;
    struct identity_public key;
    uint8_t shared[IDENTITY_SHARED_BYTES];
    uint64_t sent; /* the last counter of ours */
    uint64_t boot; /* its newest; 0: not heard yet */
    uint64_t seen; /* the highest counter of that boot, and what was seen up to it: */
    uint64_t window[WINDOW_WORDS]; /* bit c % PEER_SEAL_WINDOW of counter c */
    UT_hash_handle hh;
};

struct peer_seal {
    struct peer_seal_options options;
    struct peer *peers;
    struct refusals refusals;
};

static const char *const refusal_names[PEER_SEAL_REFUSAL_COUNT] = {
    [PEER_SEAL_REFUSED_FORMAT] = "format",     [PEER_SEAL_REFUSED_SIZE] = "size",
    [PEER_SEAL_REFUSED_STRANGER] = "stranger", [PEER_SEAL_REFUSED_KEY] = "key",
    [PEER_SEAL_REFUSED_OTHER] = "other",       [PEER_SEAL_REFUSED_LIFE] = "life",
    [PEER_SEAL_REFUSED_STALE] = "stale",       [PEER_SEAL_REFUSED_REPLAY] = "replay",
    [PEER_SEAL_REFUSED_PEERS] = "peers",
};

int peer_seal_new(struct peer_seal **out, const struct peer_seal_options *options, struct err *e)
{
    assert_always(options->boot > 0 && options->id != 0);
    struct peer_seal *s = calloc(1, sizeof *s);
    if (s == NULL || sodium_init() < 0) {
        free(s);
        return err_set(e, ERR_NO_MEMORY, "seal of peer messages: no memory");
    }
    s->options = *options;
    if (s->options.peers_max == 0)
        s->options.peers_max = PEER_SEAL_PEERS_MAX_DEFAULT;
    if (s->options.bytes_max == 0)
        s->options.bytes_max = PEER_SEAL_BYTES_MAX_DEFAULT;
    s->refusals = (struct refusals){.subject = "peer", .names = refusal_names};
    *out = s;
    return 0;
}

static void peer_free(struct peer_seal *s, struct peer *peer)
{
    HASH_DEL(s->peers, peer);
    sodium_memzero(peer, sizeof *peer);
    free(peer);
}

void peer_seal_free(struct peer_seal *s)
{
    struct peer *peer, *next;
    if (s == NULL)
        return;
    HASH_ITER(hh, s->peers, peer, next)
    peer_free(s, peer);
    free(s);
}

void peer_seal_forget(struct peer_seal *s, node_id id)
{
    struct peer *peer = NULL;
    HASH_FIND(hh, s->peers, &id, sizeof id, peer);
    if (peer != NULL)
        peer_free(s, peer);
}

const struct refusals *peer_seal_refusals(const struct peer_seal *s)
{
    return &s->refusals;
}

/* --- peers ---------------------------------------------------------------------------------------- */

enum found { FOUND, FOUND_NO_KEY, FOUND_NO_ROOM };

/* The table holds only nodes that have, or had, a key. */
static enum found peer_find(struct peer_seal *s, node_id id, struct peer **out)
{
    struct identity_public key;
    struct peer *peer = NULL;
    HASH_FIND(hh, s->peers, &id, sizeof id, peer);
    if (id == 0 || !s->options.key_of(s->options.user, id, &key))
        return FOUND_NO_KEY; /* what is known stays until peer_seal_forget, lest a replay pass */
    if (peer != NULL && identity_public_equal(&peer->key, &key)) {
        *out = peer;
        return FOUND;
    }
    if (peer != NULL)
        peer_free(s, peer);
    if (HASH_COUNT(s->peers) >= s->options.peers_max)
        return FOUND_NO_ROOM;
    peer = calloc(1, sizeof *peer);
    if (peer == NULL)
        return FOUND_NO_ROOM;
    peer->id = id;
    peer->key = key;
    if (!identity_shared(s->options.identity, &key, peer->shared)) {
        free(peer);
        return FOUND_NO_KEY;
    }
    HASH_ADD(hh, s->peers, id, sizeof peer->id, peer);
    *out = peer;
    return FOUND;
}

/* --- what is inside the box ------------------------------------------------------------------------ */

static void put_inside(uint8_t out[INSIDE_BYTES], const struct inside *in)
{
    bytes_put(out, 8, in->from);
    bytes_put(out + 8, 8, in->to);
    bytes_put(out + 16, 8, in->from_boot);
    bytes_put(out + 24, 8, in->to_boot);
    bytes_put(out + 32, 8, in->counter);
    bytes_put(out + 40, 8, in->answers);
    out[48] = (uint8_t)in->kind;
    out[49] = 0;
    out[50] = (uint8_t)(in->what >> 8);
    out[51] = (uint8_t)in->what;
}

static void get_inside(const uint8_t in[INSIDE_BYTES], struct inside *out)
{
    *out = (struct inside){
        .from = bytes_get(in, 8),
        .to = bytes_get(in + 8, 8),
        .from_boot = bytes_get(in + 16, 8),
        .to_boot = bytes_get(in + 24, 8),
        .counter = bytes_get(in + 32, 8),
        .answers = bytes_get(in + 40, 8),
        .kind = in[48],
        .zero = in[49],
        .what = (unsigned)in[50] << 8 | in[51],
    };
}

/* --- sealing -------------------------------------------------------------------------------------- */

int peer_seal_message(struct peer_seal *s, struct peer_seal_content *content, uint8_t *out,
                      struct err *e)
{
    struct peer *peer = NULL;
    if (content->size > s->options.bytes_max)
        return err_set(e, ERR_LIMIT, "a message of %zu bytes for node %" PRIu64 "; at most %zu",
                       content->size, content->peer, s->options.bytes_max);
    enum found found = peer_find(s, content->peer, &peer);
    if (found == FOUND_NO_KEY)
        return err_set(e, ERR_NOT_FOUND, "node %" PRIu64 " is no member of the cluster",
                       content->peer);
    if (found == FOUND_NO_ROOM)
        return err_set(e, ERR_LIMIT, "more than %zu nodes", s->options.peers_max);
    content->counter = ++peer->sent;
    struct inside inside = {.from = s->options.id,
                            .to = content->peer,
                            .from_boot = s->options.boot,
                            .to_boot = content->kind == PEER_SEAL_ASK ? peer->boot : content->boot,
                            .counter = content->counter,
                            .answers = content->answers,
                            .kind = content->kind,
                            .what = content->what};
    memcpy(out, MAGIC, MAGIC_BYTES);
    bytes_put(out + MAGIC_BYTES, 8, s->options.id);
    randombytes_buf(out + NONCE_AT, crypto_box_NONCEBYTES);
    put_inside(out + INSIDE_AT, &inside);
    if (content->size > 0)
        memmove(out + PAYLOAD_AT, content->payload, content->size);
    (void)crypto_box_detached_afternm(out + INSIDE_AT, out + BOX_AT, out + INSIDE_AT,
                                      INSIDE_BYTES + content->size, out + NONCE_AT, peer->shared);
    return 0;
}

/* --- opening -------------------------------------------------------------------------------------- */

static enum peer_seal_result bad(struct peer_seal *s, enum peer_seal_refusal why, node_id from,
                                 const char *text)
{
    refusals_note(&s->refusals, why, "a message that says it is from node %" PRIu64 ": %s", from,
                  text);
    return PEER_SEAL_BAD;
}

/* A life of the sender that is newer than the one known: nothing of the earlier one counts. */
static void new_life(struct peer *peer, uint64_t boot)
{
    peer->boot = boot;
    peer->seen = 0;
    memset(peer->window, 0, sizeof peer->window);
}

static uint64_t *window_word(struct peer *peer, uint64_t counter, uint64_t *bit)
{
    uint64_t at = counter % PEER_SEAL_WINDOW;
    *bit = 1ull << (at % 64);
    return &peer->window[at / 64];
}

/* Marks the counter; false when it was seen, or is too old to know. */
static bool first_time(struct peer *peer, uint64_t counter)
{
    uint64_t bit = 0;
    if (counter == 0 || counter + PEER_SEAL_WINDOW <= peer->seen)
        return false;
    if (counter > peer->seen + PEER_SEAL_WINDOW) {
        memset(peer->window, 0, sizeof peer->window);
        peer->seen = counter;
    }
    while (peer->seen < counter) {
        uint64_t *word = window_word(peer, ++peer->seen, &bit);
        *word &= ~bit;
    }
    uint64_t *word = window_word(peer, counter, &bit);
    if ((*word & bit) != 0)
        return false;
    *word |= bit;
    return true;
}

static bool inside_valid(const struct inside *in, node_id from)
{
    bool asks = in->kind == PEER_SEAL_ASK;
    return in->from == from && in->zero == 0 && in->kind >= PEER_SEAL_ASK &&
           in->kind <= PEER_SEAL_REFUSAL && asks == (in->answers == 0) && in->from_boot > 0 &&
           in->counter > 0 && in->counter < UINT64_MAX - PEER_SEAL_WINDOW;
}

/* What an authentic message may do. No state changes before all of it is known to be new. */
static enum peer_seal_result admit(struct peer_seal *s, struct peer *peer, const struct inside *in)
{
    if (!inside_valid(in, peer->id))
        return bad(s, PEER_SEAL_REFUSED_FORMAT, peer->id, "nonsense inside");
    if (in->to != s->options.id)
        return bad(s, PEER_SEAL_REFUSED_OTHER, peer->id, "meant for another node");
    if (in->to_boot != s->options.boot) {
        refusals_add(&s->refusals, PEER_SEAL_REFUSED_LIFE);
        return in->kind == PEER_SEAL_ASK ? PEER_SEAL_EARLIER_LIFE : PEER_SEAL_BAD;
    }
    if (in->from_boot < peer->boot) {
        (void)bad(s, PEER_SEAL_REFUSED_STALE, peer->id, "from an earlier life of it");
        return in->kind == PEER_SEAL_ASK ? PEER_SEAL_OUTLIVED : PEER_SEAL_BAD;
    }
    if (in->from_boot > peer->boot)
        new_life(peer, in->from_boot);
    if (!first_time(peer, in->counter))
        return bad(s, PEER_SEAL_REFUSED_REPLAY, peer->id, "seen before");
    return PEER_SEAL_GOOD;
}

enum peer_seal_result peer_seal_open(struct peer_seal *s, uint8_t *bytes, size_t size,
                                     struct peer_seal_content *out)
{
    struct peer *peer = NULL;
    struct inside inside;
    if (size < PEER_SEAL_OVERHEAD_BYTES || memcmp(bytes, MAGIC, MAGIC_BYTES) != 0)
        return bad(s, PEER_SEAL_REFUSED_FORMAT, 0, "no sealed message");
    node_id from = bytes_get(bytes + MAGIC_BYTES, 8);
    if (size > s->options.bytes_max + PEER_SEAL_OVERHEAD_BYTES)
        return bad(s, PEER_SEAL_REFUSED_SIZE, from, "too large");
    enum found found = peer_find(s, from, &peer);
    if (found == FOUND_NO_KEY)
        return bad(s, PEER_SEAL_REFUSED_STRANGER, from, "it is no member of the cluster");
    if (found == FOUND_NO_ROOM)
        return bad(s, PEER_SEAL_REFUSED_PEERS, from, "too many nodes");
    if (crypto_box_open_detached_afternm(bytes + INSIDE_AT, bytes + INSIDE_AT, bytes + BOX_AT,
                                         size - INSIDE_AT, bytes + NONCE_AT, peer->shared) != 0)
        return bad(s, PEER_SEAL_REFUSED_KEY, from, "sealed with another key, or altered");
    get_inside(bytes + INSIDE_AT, &inside);
    *out = (struct peer_seal_content){.peer = from,
                                      .kind = (enum peer_seal_kind)inside.kind,
                                      .what = (uint16_t)inside.what,
                                      .counter = inside.counter,
                                      .answers = inside.answers,
                                      .boot = inside.from_boot,
                                      .payload = bytes + PAYLOAD_AT,
                                      .size = size - PAYLOAD_AT};
    return admit(s, peer, &inside);
}
