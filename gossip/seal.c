#include "gossip/seal.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"

enum {
    VERSION = 1,
    KEY_ID_BYTES = 4,
    NONCE_BYTES = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
    TAG_BYTES = crypto_aead_xchacha20poly1305_ietf_ABYTES,
    OUTER_BYTES = 1 + KEY_ID_BYTES + NONCE_BYTES,
    INNER_BYTES = 5 * 8,
    AAD_BYTES = 1 + KEY_ID_BYTES + SEAL_CLUSTER_BYTES,
};
_Static_assert(SEAL_BYTES == OUTER_BYTES + INNER_BYTES + TAG_BYTES, "as the header says");
_Static_assert(SEAL_KEY_BYTES == crypto_aead_xchacha20poly1305_ietf_KEYBYTES, "libsodium's");

struct key {
    uint8_t secret[SEAL_KEY_BYTES];
    uint8_t id[KEY_ID_BYTES];
    uint64_t opened;
};

/* The window: bit i of `seen` is the counter `newest - i`. */
struct sender {
    node_id id; /* 0: free */
    uint64_t boot, newest, heard;
    uint8_t key_id[KEY_ID_BYTES]; /* of its last packet */
    uint64_t seen[SEAL_WINDOW / 64];
};

struct seal {
    struct seal_options options;
    struct key keys[SEAL_KEYS_MAX];
    size_t key_count, key_used;
    uint64_t counter;
    struct sender *senders; /* open addressing by id */
    size_t sender_places, sender_count;
    uint64_t opened; /* the clock of `heard` */
    uint64_t counts[SEAL_REFUSAL_COUNT];
};

static const char *const refusal_names[SEAL_REFUSAL_COUNT] = {
    "taken", "too short", "unknown key", "forged", "misdirected", "old boot", "replayed"};

const char *seal_refusal_name(enum seal_refusal refusal)
{
    return (unsigned)refusal < SEAL_REFUSAL_COUNT ? refusal_names[refusal] : "unknown";
}

int seal_new(struct seal **out, const struct seal_options *options, struct err *e)
{
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "libsodium does not start");
    if (options->self == 0 || options->boot == 0 || options->senders_max == 0)
        return err_set(e, ERR_INVALID, "the seal needs an id, a boot and room for senders");
    struct seal *s = sodium_malloc(sizeof *s); /* not in a core, not swapped */
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for the seal");
    *s = (struct seal){.options = *options, .sender_places = 4};
    while (s->sender_places < 2ull * options->senders_max)
        s->sender_places *= 2;
    s->senders = calloc(s->sender_places, sizeof *s->senders);
    if (s->senders == NULL) {
        seal_free(s);
        return err_set(e, ERR_NO_MEMORY, "no memory for %u senders", options->senders_max);
    }
    *out = s;
    return 0;
}

void seal_free(struct seal *s)
{
    if (s == NULL)
        return;
    free(s->senders);
    sodium_free(s); /* wipes */
}

/* --- the keyring ------------------------------------------------------------------------------ */

static void key_id(const uint8_t key[SEAL_KEY_BYTES], uint8_t out[KEY_ID_BYTES])
{
    uint8_t hash[crypto_generichash_BYTES];
    static const unsigned char context[] = "skerry gossip key id";
    (void)crypto_generichash(hash, sizeof hash, key, SEAL_KEY_BYTES, context, sizeof context - 1);
    memcpy(out, hash, KEY_ID_BYTES);
}

void seal_key_id(const uint8_t key[SEAL_KEY_BYTES], char out[SEAL_KEY_ID_SIZE])
{
    uint8_t id[KEY_ID_BYTES];
    key_id(key, id);
    (void)sodium_bin2hex(out, SEAL_KEY_ID_SIZE, id, sizeof id);
}

static struct key *key_find(struct seal *s, const uint8_t id[KEY_ID_BYTES])
{
    for (size_t i = 0; i < s->key_count; i++) {
        if (memcmp(s->keys[i].id, id, KEY_ID_BYTES) == 0)
            return &s->keys[i];
    }
    return NULL;
}

static struct key *key_named(struct seal *s, const char *name, struct err *e)
{
    uint8_t id[KEY_ID_BYTES];
    size_t size = 0;
    char shown[TEXT_SHOWN_SIZE];
    const char *end = NULL;
    struct key *key = NULL;
    if (sodium_hex2bin(id, sizeof id, name, strlen(name), NULL, &size, &end) == 0 &&
        size == sizeof id && *end == '\0')
        key = key_find(s, id);
    if (key == NULL)
        err_set(e, ERR_NOT_FOUND, "no key %s in the keyring", text_show(name, shown));
    return key;
}

int seal_key_add(struct seal *s, const uint8_t key[SEAL_KEY_BYTES], struct err *e)
{
    struct key *k = &s->keys[s->key_count];
    uint8_t id[KEY_ID_BYTES];
    char shown[SEAL_KEY_ID_SIZE];
    key_id(key, id);
    seal_key_id(key, shown);
    /* Also another key of the same id, one in four billion: make another. */
    if (key_find(s, id) != NULL)
        return err_set(e, ERR_EXISTS, "key %s is in the keyring already", shown);
    if (s->key_count == SEAL_KEYS_MAX)
        return err_set(e, ERR_LIMIT, "the keyring holds %d keys already: remove one first",
                       SEAL_KEYS_MAX);
    *k = (struct key){0};
    memcpy(k->secret, key, SEAL_KEY_BYTES);
    memcpy(k->id, id, KEY_ID_BYTES);
    s->key_count++;
    return 0;
}

int seal_key_use(struct seal *s, const char *id, struct err *e)
{
    struct key *key = key_named(s, id, e);
    if (key == NULL)
        return -ERR_NOT_FOUND;
    s->key_used = (size_t)(key - s->keys);
    return 0;
}

int seal_key_remove(struct seal *s, const char *id, struct err *e)
{
    struct key *key = key_named(s, id, e);
    if (key == NULL)
        return -ERR_NOT_FOUND;
    size_t at = (size_t)(key - s->keys);
    if (at == s->key_used)
        return err_set(e, ERR_CONFLICT, "key %s is in use: use another one first", id);
    memmove(key, key + 1, (s->key_count - at - 1) * sizeof *key);
    s->key_count--;
    if (s->key_used > at)
        s->key_used--;
    sodium_memzero(&s->keys[s->key_count], sizeof *key);
    return 0;
}

bool seal_key_get(const struct seal *s, size_t i, struct seal_key_shown *out)
{
    if (i >= s->key_count)
        return false;
    *out = (struct seal_key_shown){.used = i == s->key_used, .opened = s->keys[i].opened};
    (void)sodium_bin2hex(out->id, sizeof out->id, s->keys[i].id, KEY_ID_BYTES);
    return true;
}

/* --- sealing ---------------------------------------------------------------------------------- */

static void aad_make(const struct seal *s, const uint8_t *outer, uint8_t aad[AAD_BYTES])
{
    memcpy(aad, outer, 1 + KEY_ID_BYTES);
    memcpy(aad + 1 + KEY_ID_BYTES, s->options.cluster, SEAL_CLUSTER_BYTES);
}

int seal_packet(struct seal *s, node_id to, uint64_t to_boot, const uint8_t *data, size_t size,
                uint8_t *out, size_t *out_size, struct err *e)
{
    if (s->key_count == 0)
        return err_set(e, ERR_CONFLICT, "the keyring is empty");
    const struct key *key = &s->keys[s->key_used];
    uint8_t aad[AAD_BYTES], *inner = out + OUTER_BYTES;
    out[0] = VERSION;
    memcpy(out + 1, key->id, KEY_ID_BYTES);
    /* 192 random bits never meet twice. */
    randombytes_buf(out + 1 + KEY_ID_BYTES, NONCE_BYTES);
    bytes_put(inner, 8, s->options.self);
    bytes_put(inner + 8, 8, s->options.boot);
    bytes_put(inner + 16, 8, to);
    bytes_put(inner + 24, 8, to_boot);
    bytes_put(inner + 32, 8, ++s->counter);
    memmove(inner + INNER_BYTES, data, size);
    aad_make(s, out, aad);
    unsigned long long sealed = 0;
    (void)crypto_aead_xchacha20poly1305_ietf_encrypt(inner, &sealed, inner, INNER_BYTES + size, aad,
                                                     sizeof aad, NULL, out + 1 + KEY_ID_BYTES,
                                                     key->secret);
    *out_size = OUTER_BYTES + (size_t)sealed;
    return 0;
}

/* --- senders ---------------------------------------------------------------------------------- */

static size_t place_of(const struct seal *s, node_id id)
{
    return (size_t)((id * 0x9e3779b97f4a7c15ull) >> 32) & (s->sender_places - 1);
}

static struct sender *sender_slot(const struct seal *s, node_id id)
{
    size_t at = place_of(s, id);
    while (s->senders[at].id != 0 && s->senders[at].id != id)
        at = (at + 1) & (s->sender_places - 1);
    return &s->senders[at];
}

/* Leaves no hole in the way to others (Knuth 6.4, algorithm R). */
static void sender_remove(struct seal *s, struct sender *sender)
{
    size_t mask = s->sender_places - 1, hole = (size_t)(sender - s->senders), at = hole;
    s->sender_count--;
    for (;;) {
        s->senders[hole].id = 0;
        size_t home;
        do {
            at = (at + 1) & mask;
            if (s->senders[at].id == 0)
                return;
            home = place_of(s, s->senders[at].id);
        } while (((at - home) & mask) < ((at - hole) & mask));
        s->senders[hole] = s->senders[at];
        hole = at;
    }
}

static struct sender *sender_get(struct seal *s, node_id id)
{
    struct sender *sender = sender_slot(s, id);
    if (sender->id == id)
        return sender;
    if (s->sender_count == s->options.senders_max) {
        struct sender *oldest = NULL;
        for (size_t i = 0; i < s->sender_places; i++) {
            struct sender *other = &s->senders[i];
            if (other->id != 0 && (oldest == NULL || other->heard < oldest->heard))
                oldest = other;
        }
        sender_remove(s, oldest);
        sender = sender_slot(s, id);
    }
    *sender = (struct sender){.id = id};
    s->sender_count++;
    return sender;
}

void seal_forget(struct seal *s, node_id id)
{
    struct sender *sender = id == 0 ? NULL : sender_slot(s, id);
    if (sender != NULL && sender->id == id)
        sender_remove(s, sender);
}

bool seal_sender_uses(const struct seal *s, node_id id, const char *name)
{
    char used[SEAL_KEY_ID_SIZE];
    const struct sender *sender = id == 0 ? NULL : sender_slot(s, id);
    if (sender == NULL || sender->id != id || sender->heard == 0)
        return false;
    (void)sodium_bin2hex(used, sizeof used, sender->key_id, sizeof sender->key_id);
    return strcmp(used, name) == 0;
}

static void window_shift(struct sender *sender, uint64_t by)
{
    enum { WORDS = SEAL_WINDOW / 64 };
    if (by >= SEAL_WINDOW) {
        memset(sender->seen, 0, sizeof sender->seen);
        return;
    }
    size_t words = (size_t)by / 64, bits = (size_t)by % 64;
    for (size_t i = WORDS; i-- > 0;) {
        uint64_t low = i >= words ? sender->seen[i - words] : 0;
        uint64_t carry = bits > 0 && i > words ? sender->seen[i - words - 1] >> (64 - bits) : 0;
        sender->seen[i] = low << bits | carry;
    }
}

static enum seal_refusal sender_accept(struct seal *s, node_id id, uint64_t boot, uint64_t counter,
                                       const struct key *key)
{
    struct sender *sender = sender_get(s, id);
    if (boot < sender->boot)
        return SEAL_OLD_BOOT;
    if (boot > sender->boot) {
        *sender = (struct sender){.id = id, .boot = boot};
    }
    if (counter > sender->newest) {
        window_shift(sender, counter - sender->newest);
        sender->newest = counter;
    }
    uint64_t behind = sender->newest - counter;
    if (behind >= SEAL_WINDOW || (sender->seen[behind / 64] >> (behind % 64) & 1) != 0)
        return SEAL_REPLAYED;
    sender->seen[behind / 64] |= 1ull << (behind % 64);
    sender->heard = ++s->opened;
    if (behind == 0)
        memcpy(sender->key_id, key->id, sizeof sender->key_id);
    return SEAL_TAKEN;
}

/* --- opening ---------------------------------------------------------------------------------- */

static enum seal_refusal open_it(struct seal *s, uint8_t *datagram, size_t size,
                                 struct seal_opened *out)
{
    if (size < SEAL_BYTES || datagram[0] != VERSION)
        return SEAL_SHORT;
    struct key *key = key_find(s, datagram + 1);
    if (key == NULL)
        return SEAL_UNKNOWN_KEY;
    uint8_t aad[AAD_BYTES], *inner = datagram + OUTER_BYTES;
    aad_make(s, datagram, aad);
    unsigned long long opened = 0;
    if (crypto_aead_xchacha20poly1305_ietf_decrypt(inner, &opened, NULL, inner, size - OUTER_BYTES,
                                                   aad, sizeof aad, datagram + 1 + KEY_ID_BYTES,
                                                   key->secret) != 0)
        return SEAL_FORGED;
    node_id from = bytes_get(inner, 8);
    uint64_t boot = bytes_get(inner + 8, 8), counter = bytes_get(inner + 32, 8);
    if (bytes_get(inner + 16, 8) != s->options.self ||
        bytes_get(inner + 24, 8) != s->options.boot || from == s->options.self || from == 0 ||
        boot == 0 || counter == 0)
        return SEAL_MISDIRECTED;
    key->opened++;
    enum seal_refusal refusal = sender_accept(s, from, boot, counter, key);
    *out = (struct seal_opened){from, boot, inner + INNER_BYTES, (size_t)opened - INNER_BYTES};
    return refusal;
}

enum seal_refusal seal_open(struct seal *s, uint8_t *datagram, size_t size, struct seal_opened *out)
{
    enum seal_refusal refusal = open_it(s, datagram, size, out);
    s->counts[refusal]++;
    return refusal;
}

uint64_t seal_count(const struct seal *s, enum seal_refusal refusal)
{
    return (unsigned)refusal < SEAL_REFUSAL_COUNT ? s->counts[refusal] : 0;
}
