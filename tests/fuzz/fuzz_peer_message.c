/* Messages between nodes: what a stranger may send, and what a member may put inside. The first byte
 * chooses: raw bytes, or the same sealed with a member's key, so that what stands inside the box is
 * reached. What is accepted once is refused the second time, and nothing changed is accepted. */
#include <sodium.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/peer_seal.h"

#define BYTES_MAX 4096u
#define NONCE_AT 12u
#define BOX_AT 36u
#define INSIDE_AT 52u
#define INSIDE_BYTES 52u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Made once: a key takes as long as thousands of inputs. */
static struct identity *identities[3];

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    if (id != 1 && id != 2)
        return false;
    *out = *identity_public(identities[id]);
    return true;
}

static struct peer_seal *open_seal(void)
{
    struct peer_seal *s = NULL;
    struct err e;
    struct peer_seal_options options = {
        .identity = identities[2], .id = 2, .boot = 1, .key_of = key_of, .bytes_max = BYTES_MAX};
    if (identities[1] == NULL) {
        log_setup(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT); /* each refusal of a new seal is told */
        assert_always(identity_new(&identities[1], &e) == 0);
        assert_always(identity_new(&identities[2], &e) == 0);
        options.identity = identities[2];
    }
    assert_always(peer_seal_new(&s, &options, &e) == 0);
    return s;
}

/* `inside` as node 1 would seal it for node 2. */
static size_t seal_raw(uint8_t *out, const uint8_t *inside, size_t size)
{
    uint8_t shared[IDENTITY_SHARED_BYTES];
    assert_always(identity_shared(identities[1], identity_public(identities[2]), shared));
    memcpy(out, "SKR1\0\0\0\0\0\0\0\1", NONCE_AT);
    memset(out + NONCE_AT, 7, BOX_AT - NONCE_AT);
    (void)crypto_box_detached_afternm(out + INSIDE_AT, out + BOX_AT, inside, size, out + NONCE_AT,
                                      shared);
    return INSIDE_AT + size;
}

static enum peer_seal_result open_copy(struct peer_seal *s, const uint8_t *bytes, size_t size)
{
    struct peer_seal_content content;
    uint8_t *copy = malloc(size + 1);
    assert_always(copy != NULL);
    memcpy(copy, bytes, size);
    enum peer_seal_result result = peer_seal_open(s, copy, size, &content);
    if (result == PEER_SEAL_GOOD) {
        assert_always(content.peer == 1 && content.counter > 0);
        assert_always(content.kind >= PEER_SEAL_ASK && content.kind <= PEER_SEAL_REFUSAL);
        assert_always((content.kind == PEER_SEAL_ASK) == (content.answers == 0));
        assert_always(content.payload == copy + PEER_SEAL_OVERHEAD_BYTES);
        assert_always(content.size == size - PEER_SEAL_OVERHEAD_BYTES && content.size <= BYTES_MAX);
    }
    free(copy);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > BYTES_MAX)
        return 0;
    struct peer_seal *s = open_seal();
    if ((data[0] & 1) == 0) {
        assert_always(open_copy(s, data + 1, size - 1) == PEER_SEAL_BAD);
    } else {
        uint8_t *bytes = malloc(INSIDE_AT + size);
        assert_always(bytes != NULL);
        size_t length = seal_raw(bytes, data + 1, size - 1);
        enum peer_seal_result result = open_copy(s, bytes, length);
        enum peer_seal_result second = open_copy(s, bytes, length);
        assert_always(second != PEER_SEAL_GOOD);
        assert_always(result != PEER_SEAL_GOOD || length >= INSIDE_AT + INSIDE_BYTES);
        bytes[length - 1] ^= 1;
        assert_always(open_copy(s, bytes, length) == PEER_SEAL_BAD);
        free(bytes);
    }
    peer_seal_free(s);
    return 0;
}
