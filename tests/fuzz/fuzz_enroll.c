/* The two messages of the join handshake and the text of a token. The first byte chooses which. What is
 * read is written again to the same bytes: there is one form for each content. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/enroll_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same(struct buffer *again, const uint8_t *data, size_t size)
{
    assert_always(again->length == size + ENROLL_LENGTH_BYTES);
    assert_always(memcmp(again->data + ENROLL_LENGTH_BYTES, data, size) == 0);
    assert_always(enroll_length_read((uint8_t *)again->data, ENROLL_ANSWER_BYTES_MAX) == size);
}

static void request(const uint8_t *data, size_t size)
{
    struct enroll_request r;
    struct buffer again;
    if (enroll_request_read(&r, data, size, NULL) != 0)
        return;
    buffer_init(&again, ENROLL_LENGTH_BYTES + ENROLL_REQUEST_BYTES_MAX);
    assert_always(enroll_request_write(&r, &again));
    same(&again, data, size);
    buffer_free(&again);
}

static void answer(const uint8_t *data, size_t size)
{
    struct enroll_answer a;
    struct buffer again;
    if (enroll_answer_read(&a, data, size, NULL) == 0) {
        buffer_init(&again, ENROLL_LENGTH_BYTES + ENROLL_ANSWER_BYTES_MAX);
        assert_always(enroll_answer_write(&a, &again));
        same(&again, data, size);
        buffer_free(&again);
    }
    known_free(&a.known);
    membership_wipe(&a.membership);
}

static void token(const uint8_t *data, size_t size)
{
    struct enroll_token t;
    char *text = malloc(size + 1);
    assert_always(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    if (enroll_token_parse(&t, text, NULL) == 0)
        assert_always(strlen(t.id) == ENROLL_ID_SIZE - 1 &&
                      strlen(t.secret) == ENROLL_SECRET_SIZE - 1 &&
                      membership_cluster_valid(t.cluster_id));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > ENROLL_ANSWER_BYTES_MAX)
        return 0;
    switch (data[0] % 3) {
    case 0:
        if (size <= ENROLL_REQUEST_BYTES_MAX)
            request(data + 1, size - 1);
        break;
    case 1:
        answer(data + 1, size - 1);
        break;
    default:
        token(data + 1, size - 1);
    }
    return 0;
}
