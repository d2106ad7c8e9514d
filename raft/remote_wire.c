#include "raft/remote_wire.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/codec.h"
#include "raft/remote.pb-c.h"

static bool plain(const ProtobufCMessage *message)
{
    return message->n_unknown_fields == 0;
}

/* --- questions ---------------------------------------------------------------------------------------- */

int remote_question_encode(uint8_t **out, size_t *out_size, const struct remote_question *q,
                           struct err *e)
{
    Skerry__Remote__Question m = SKERRY__REMOTE__QUESTION__INIT;
    Skerry__Remote__Propose propose = SKERRY__REMOTE__PROPOSE__INIT;
    Skerry__Remote__Read read = SKERRY__REMOTE__READ__INIT;
    ProtobufCBinaryData commands[REMOTE_COMMANDS_MAX];
    m.version = REMOTE_VERSION;
    m.generation = q->generation;
    if (q->asks == REMOTE_PROPOSE) {
        assert_always(q->count > 0 && q->count <= REMOTE_COMMANDS_MAX);
        for (size_t i = 0; i < q->count; i++)
            commands[i] = (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)q->commands[i].bytes,
                                                .len = q->commands[i].length};
        propose.timeout_ms = q->timeout_ms;
        propose.n_commands = q->count;
        propose.commands = commands;
        m.body_case = SKERRY__REMOTE__QUESTION__BODY_PROPOSE;
        m.propose = &propose;
    } else {
        read.timeout_ms = q->timeout_ms;
        m.body_case = SKERRY__REMOTE__QUESTION__BODY_READ;
        m.read = &read;
    }
    size_t size = skerry__remote__question__get_packed_size(&m);
    uint8_t *bytes = malloc(size);
    if (bytes == NULL)
        return err_set(e, ERR_NO_MEMORY, "a question of %zu bytes: no memory", size);
    skerry__remote__question__pack(&m, bytes);
    *out = bytes;
    *out_size = size;
    return 0;
}

/* What is wrong with it; NULL: nothing. */
static const char *propose_read(struct remote_question *out, const Skerry__Remote__Propose *m)
{
    if (!plain(&m->base))
        return "it has parts that this build does not know";
    if (m->n_commands == 0 || m->n_commands > REMOTE_COMMANDS_MAX)
        return "it has none or too many commands";
    size_t bytes = 0;
    for (size_t i = 0; i < m->n_commands; i++) {
        bytes += m->commands[i].len;
        if (m->commands[i].len > COMMAND_BYTES_MAX || (i > 0 && bytes > REMOTE_COMMANDS_BYTES_MAX))
            return "its commands are too large";
        out->commands[i] =
            (struct remote_bytes){.bytes = m->commands[i].data, .length = m->commands[i].len};
    }
    out->asks = REMOTE_PROPOSE;
    out->count = m->n_commands;
    out->timeout_ms = m->timeout_ms;
    return NULL;
}

static const char *question_read(struct remote_question *out, const Skerry__Remote__Question *m)
{
    if (m->version != REMOTE_VERSION)
        return "it has another version: upgrade all nodes";
    if (!plain(&m->base))
        return "it has parts that this build does not know";
    out->generation = m->generation;
    const char *fault = "it asks for nothing that this build knows";
    if (m->body_case == SKERRY__REMOTE__QUESTION__BODY_PROPOSE) {
        fault = propose_read(out, m->propose);
    } else if (m->body_case == SKERRY__REMOTE__QUESTION__BODY_READ && plain(&m->read->base)) {
        out->asks = REMOTE_READ;
        out->timeout_ms = m->read->timeout_ms;
        fault = NULL;
    }
    if (fault == NULL && out->timeout_ms > REMOTE_TIMEOUT_MS_MAX)
        fault = "it would wait too long";
    return fault;
}

int remote_question_decode(struct remote_question *out, const uint8_t *bytes, size_t size,
                           struct err *e)
{
    memset(out, 0, sizeof *out);
    if (size > REGISTRY_QUESTION_BYTES_MAX)
        return err_set(e, ERR_PROTOCOL, "a question of %zu bytes: %u are the most", size,
                       REGISTRY_QUESTION_BYTES_MAX);
    Skerry__Remote__Question *m = skerry__remote__question__unpack(NULL, size, bytes);
    if (m == NULL)
        return err_set(e, ERR_PROTOCOL, "a question of %zu bytes does not decode", size);
    const char *fault = question_read(out, m);
    out->message = m;
    if (fault == NULL)
        return 0;
    remote_question_free(out);
    return err_set(e, ERR_PROTOCOL, "a question of %zu bytes: %s", size, fault);
}

void remote_question_free(struct remote_question *q)
{
    if (q->message != NULL)
        skerry__remote__question__free_unpacked(q->message, NULL);
    q->message = NULL;
}

/* --- answers ------------------------------------------------------------------------------------------ */

/* An outcome's messages, as they lie in memory while they are packed. */
struct outcome {
    Skerry__Remote__Outcome message;
    Skerry__Remote__Result result;
    Skerry__Remote__Refused refused;
};

static void result_write(Skerry__Remote__Result *m, const struct registry_result *r)
{
    skerry__remote__result__init(m);
    m->problem = (uint32_t)r->problem;
    m->detail = codec_borrow(r->detail);
    m->index = r->index;
    m->version = r->version;
    m->changed = r->changed;
    m->epoch = r->epoch;
    m->existing = codec_borrow(r->existing.text);
    m->node = r->node;
    m->replaced = r->replaced;
}

static bool result_read(struct registry_result *r, const Skerry__Remote__Result *m)
{
    *r = (struct registry_result){.problem = (enum problem)m->problem,
                                  .index = m->index,
                                  .version = m->version,
                                  .changed = m->changed,
                                  .epoch = m->epoch,
                                  .node = m->node,
                                  .replaced = m->replaced};
    if (!plain(&m->base) || m->problem >= PROBLEM_COUNT ||
        !codec_text_read(r->detail, sizeof r->detail, m->detail))
        return false;
    return m->existing[0] == '\0' ||
           instance_id_parse(&r->existing, m->existing, strlen(m->existing));
}

static void outcome_write(struct outcome *out, const struct remote_outcome *o)
{
    Skerry__Remote__Outcome *m = &out->message;
    skerry__remote__outcome__init(m);
    switch (o->fate) {
    case REMOTE_RESULT:
        result_write(&out->result, &o->result);
        m->body_case = SKERRY__REMOTE__OUTCOME__BODY_RESULT;
        m->result = &out->result;
        return;
    case REMOTE_NOT_PROPOSED:
        m->body_case = SKERRY__REMOTE__OUTCOME__BODY_NOT_PROPOSED;
        m->not_proposed = 1;
        return;
    case REMOTE_UNKNOWN:
        m->body_case = SKERRY__REMOTE__OUTCOME__BODY_UNKNOWN;
        m->unknown = 1;
        return;
    case REMOTE_DENIED:
        skerry__remote__refused__init(&out->refused);
        out->refused.text = codec_borrow(o->text);
        m->body_case = SKERRY__REMOTE__OUTCOME__BODY_REFUSED;
        m->refused = &out->refused;
        return;
    }
}

static bool outcome_read(struct remote_outcome *o, const Skerry__Remote__Outcome *m)
{
    if (!plain(&m->base))
        return false;
    switch (m->body_case) {
    case SKERRY__REMOTE__OUTCOME__BODY_RESULT:
        o->fate = REMOTE_RESULT;
        return result_read(&o->result, m->result);
    case SKERRY__REMOTE__OUTCOME__BODY_NOT_PROPOSED:
        o->fate = REMOTE_NOT_PROPOSED;
        return m->not_proposed == 1;
    case SKERRY__REMOTE__OUTCOME__BODY_UNKNOWN:
        o->fate = REMOTE_UNKNOWN;
        return m->unknown == 1;
    case SKERRY__REMOTE__OUTCOME__BODY_REFUSED:
        o->fate = REMOTE_DENIED;
        return plain(&m->refused->base) &&
               codec_text_read(o->text, sizeof o->text, m->refused->text);
    case SKERRY__REMOTE__OUTCOME__BODY__NOT_SET:
    case _SKERRY__REMOTE__OUTCOME__BODY__CASE_IS_INT_SIZE:
        break;
    }
    return false;
}

static int answer_pack(uint8_t **out, size_t *out_size, const Skerry__Remote__Answer *m,
                       struct err *e)
{
    size_t size = skerry__remote__answer__get_packed_size(m);
    uint8_t *bytes = malloc(size);
    if (bytes == NULL)
        return err_set(e, ERR_NO_MEMORY, "an answer of %zu bytes: no memory", size);
    skerry__remote__answer__pack(m, bytes);
    *out = bytes;
    *out_size = size;
    return 0;
}

static int proposed_encode(uint8_t **out, size_t *out_size, const struct remote_answer *a,
                           struct err *e)
{
    Skerry__Remote__Answer m = SKERRY__REMOTE__ANSWER__INIT;
    Skerry__Remote__Proposed proposed = SKERRY__REMOTE__PROPOSED__INIT;
    Skerry__Remote__Outcome *pointers[REMOTE_COMMANDS_MAX];
    assert_always(a->count <= REMOTE_COMMANDS_MAX);
    struct outcome *outcomes = calloc(a->count + 1, sizeof *outcomes);
    if (outcomes == NULL)
        return err_set(e, ERR_NO_MEMORY, "an answer for %zu commands: no memory", a->count);
    for (size_t i = 0; i < a->count; i++) {
        outcome_write(&outcomes[i], &a->outcomes[i]);
        pointers[i] = &outcomes[i].message;
    }
    proposed.n_outcomes = a->count;
    proposed.outcomes = pointers;
    m.version = REMOTE_VERSION;
    m.body_case = SKERRY__REMOTE__ANSWER__BODY_PROPOSED;
    m.proposed = &proposed;
    int rc = answer_pack(out, out_size, &m, e);
    free(outcomes);
    return rc;
}

int remote_answer_encode(uint8_t **out, size_t *out_size, const struct remote_answer *a,
                         struct err *e)
{
    Skerry__Remote__Answer m = SKERRY__REMOTE__ANSWER__INIT;
    Skerry__Remote__NotLeader not_leader = SKERRY__REMOTE__NOT_LEADER__INIT;
    Skerry__Remote__Index index = SKERRY__REMOTE__INDEX__INIT;
    Skerry__Remote__Refused refused = SKERRY__REMOTE__REFUSED__INIT;
    m.version = REMOTE_VERSION;
    switch (a->says) {
    case REMOTE_PROPOSED:
        return proposed_encode(out, out_size, a, e);
    case REMOTE_NOT_LEADER:
        not_leader.leader = a->leader;
        m.body_case = SKERRY__REMOTE__ANSWER__BODY_NOT_LEADER;
        m.not_leader = &not_leader;
        break;
    case REMOTE_INDEX:
        index.index = a->index;
        m.body_case = SKERRY__REMOTE__ANSWER__BODY_INDEX;
        m.index = &index;
        break;
    case REMOTE_REFUSED:
        refused.text = codec_borrow(a->text);
        m.body_case = SKERRY__REMOTE__ANSWER__BODY_REFUSED;
        m.refused = &refused;
        break;
    }
    return answer_pack(out, out_size, &m, e);
}

static bool proposed_read(struct remote_answer *out, const Skerry__Remote__Proposed *m)
{
    if (!plain(&m->base) || m->n_outcomes == 0 || m->n_outcomes > REMOTE_COMMANDS_MAX)
        return false;
    out->says = REMOTE_PROPOSED;
    out->outcomes = calloc(m->n_outcomes, sizeof *out->outcomes);
    if (out->outcomes == NULL)
        return false;
    out->count = m->n_outcomes;
    for (size_t i = 0; i < m->n_outcomes; i++)
        if (!outcome_read(&out->outcomes[i], m->outcomes[i]))
            return false;
    return true;
}

static bool answer_read(struct remote_answer *out, const Skerry__Remote__Answer *m)
{
    if (m->version != REMOTE_VERSION || !plain(&m->base))
        return false;
    switch (m->body_case) {
    case SKERRY__REMOTE__ANSWER__BODY_NOT_LEADER:
        out->says = REMOTE_NOT_LEADER;
        out->leader = m->not_leader->leader;
        return plain(&m->not_leader->base);
    case SKERRY__REMOTE__ANSWER__BODY_PROPOSED:
        return proposed_read(out, m->proposed);
    case SKERRY__REMOTE__ANSWER__BODY_INDEX:
        out->says = REMOTE_INDEX;
        out->index = m->index->index;
        return plain(&m->index->base);
    case SKERRY__REMOTE__ANSWER__BODY_REFUSED:
        out->says = REMOTE_REFUSED;
        return plain(&m->refused->base) &&
               codec_text_read(out->text, sizeof out->text, m->refused->text);
    case SKERRY__REMOTE__ANSWER__BODY__NOT_SET:
    case _SKERRY__REMOTE__ANSWER__BODY__CASE_IS_INT_SIZE:
        break;
    }
    return false;
}

int remote_answer_decode(struct remote_answer *out, const uint8_t *bytes, size_t size,
                         struct err *e)
{
    memset(out, 0, sizeof *out);
    if (size > REGISTRY_QUESTION_BYTES_MAX)
        return err_set(e, ERR_PROTOCOL, "an answer of %zu bytes: %u are the most", size,
                       REGISTRY_QUESTION_BYTES_MAX);
    Skerry__Remote__Answer *m = skerry__remote__answer__unpack(NULL, size, bytes);
    if (m == NULL)
        return err_set(e, ERR_PROTOCOL, "an answer of %zu bytes does not decode", size);
    bool read = answer_read(out, m);
    skerry__remote__answer__free_unpacked(m, NULL);
    if (read)
        return 0;
    remote_answer_free(out);
    return err_set(e, ERR_PROTOCOL,
                   "an answer of %zu bytes has parts that this build does not know, or no memory",
                   size);
}

void remote_answer_free(struct remote_answer *a)
{
    free(a->outcomes);
    a->outcomes = NULL;
    a->count = 0;
}
