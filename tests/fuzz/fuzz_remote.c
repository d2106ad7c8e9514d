/* Any bytes as a question or an answer between registries: refused with a text, or within all bounds, and
 * encoded again they decode to the same.
 *
 * Input: one byte (even: a question, odd: an answer), then the message. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/remote_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void question(const uint8_t *data, size_t size)
{
    struct remote_question q, again;
    uint8_t *bytes;
    size_t length;
    struct err e = {0};
    if (remote_question_decode(&q, data, size, &e) < 0) {
        assert_always(e.code == ERR_PROTOCOL && e.msg[0] != '\0');
        return;
    }
    assert_always(q.asks == REMOTE_READ || (q.count > 0 && q.count <= REMOTE_COMMANDS_MAX));
    assert_always(q.timeout_ms <= REMOTE_TIMEOUT_MS_MAX);
    assert_always(remote_question_encode(&bytes, &length, &q, &e) == 0);
    assert_always(remote_question_decode(&again, bytes, length, &e) == 0);
    assert_always(again.asks == q.asks && again.count == q.count &&
                  again.generation == q.generation && again.timeout_ms == q.timeout_ms);
    for (size_t i = 0; i < q.count; i++)
        assert_always(
            q.commands[i].length == again.commands[i].length &&
            (q.commands[i].length == 0 ||
             memcmp(q.commands[i].bytes, again.commands[i].bytes, q.commands[i].length) == 0));
    remote_question_free(&again);
    remote_question_free(&q);
    free(bytes);
}

static void outcome_same(const struct remote_outcome *a, const struct remote_outcome *b)
{
    const struct registry_result *x = &a->result, *y = &b->result;
    assert_always(a->fate == b->fate && strcmp(a->text, b->text) == 0);
    assert_always(strcmp(x->detail, y->detail) == 0 &&
                  strcmp(x->existing.text, y->existing.text) == 0);
    assert_always(x->problem == y->problem && x->index == y->index && x->version == y->version &&
                  x->changed == y->changed && x->epoch == y->epoch && x->node == y->node &&
                  x->replaced == y->replaced);
}

static void answer(const uint8_t *data, size_t size)
{
    struct remote_answer a, again;
    uint8_t *bytes;
    size_t length;
    struct err e = {0};
    if (remote_answer_decode(&a, data, size, &e) < 0) {
        assert_always(e.code == ERR_PROTOCOL && e.msg[0] != '\0');
        return;
    }
    assert_always(remote_answer_encode(&bytes, &length, &a, &e) == 0);
    assert_always(remote_answer_decode(&again, bytes, length, &e) == 0);
    assert_always(again.says == a.says && again.count == a.count && again.index == a.index &&
                  again.leader == a.leader && strcmp(again.text, a.text) == 0);
    for (size_t i = 0; i < a.count; i++)
        outcome_same(&a.outcomes[i], &again.outcomes[i]);
    remote_answer_free(&again);
    remote_answer_free(&a);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2 == 0)
        question(data + 1, size - 1);
    else
        answer(data + 1, size - 1);
    return 0;
}
