/* What another node says about an errand, as entry or owner: no byte is read beyond what came, and what is
 * taken is within its bounds. The first byte chooses the side. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/errands/errand_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_question(const struct errand_frame *f)
{
    struct errand_question q;
    struct err e = {0};
    if (errand_question_read(&q, f, &e) != 0)
        return;
    assert_always(q.kind >= ERRAND_RUN && q.kind <= ERRAND_KIND_LAST);
    assert_always((q.kind == ERRAND_RUN) == (q.spec != NULL));
    assert_always(q.rows <= 65535 && q.columns <= 65535);
    errand_question_free(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    bool of_owner = data[0] & 1;
    /* In a block of its own, so that a read beyond it is seen. */
    char *bytes = malloc(size);
    assert_always(bytes != NULL);
    memcpy(bytes, data + 1, size - 1);
    size_t at = 0;
    struct errand_frame f;
    while (errand_frame_read(&f, of_owner, bytes + at, size - 1 - at) == ERRAND_WHOLE) {
        struct errand_answer answer;
        struct command_end end;
        assert_always(at + ERRAND_HEADER_BYTES + f.size <= size - 1);
        if (f.type == ERRAND_QUESTION)
            check_question(&f);
        if ((f.type == ERRAND_GRANTED || f.type == ERRAND_REFUSED) &&
            errand_answer_read(&answer, &f))
            assert_always((answer.problem == PROBLEM_NONE) == (f.type == ERRAND_GRANTED));
        if (f.type == ERRAND_ENDED && errand_end_read(&end, &f))
            assert_always(end.reason < END_REASON_COUNT && end.exit_code >= -1);
        at += ERRAND_HEADER_BYTES + f.size;
    }
    free(bytes);
    return 0;
}
