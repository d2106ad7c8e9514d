#include "tests/lib/runner_import.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <unistd.h>

#include "base/memory.h"

static int send_cb(void *user, const void *data, size_t length,
                   const struct pack_progress *progress, struct err *e)
{
    const int *fd = user;
    const char *at = data;
    (void)progress;
    while (length > 0) {
        ssize_t n = write(*fd, at, length);
        if (n <= 0)
            return err_sys(e, ERR_IO, errno, "send the source");
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

void runner_import(struct runner_fixture *f, const char *folder, enum pack_kind kind,
                   char digest[IMAGE_DIGEST_SIZE])
{
    struct fixture_answer answer;
    struct err e;
    Skerry__Runner__Import import = SKERRY__RUNNER__IMPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    import.kind = kind == PACK_IMAGE ? SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE
                                     : SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    request.import_stream = &import;
    fixture_ask(f, &request, &answer);
    assert_non_null(answer.reply);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 1);
    struct pack_options options = pack_options_default(kind);
    if (pack_stream(folder, &options, send_cb, &answer.descriptors[0], &e) != 0)
        fail_msg("%s", e.msg);
    fixture_answer_free(&answer);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_IMPORT_ENDED, NULL, RUNNER_IMPORT_MS);
    assert_non_null(event);
    if (event->import_ended->error != 0)
        fail_msg("%s", event->import_ended->message);
    assert_true(text_copy(digest, IMAGE_DIGEST_SIZE, event->import_ended->digest));
}
