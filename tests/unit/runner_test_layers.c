/* Images and sources through the runner: imported, bound to instances, held while in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/words.h"
#include "sandbox/runner/image_export.h"
#include "tests/lib/runner_fixture.h"
#include "tests/lib/runner_in_process.h"

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

static struct runner_fixture fixture;

static int setup(void **state)
{
    fixture_open(&fixture, runner_in_process);
    *state = &fixture;
    return 0;
}

static int setup_old(void **state)
{
    fixture_open(&fixture, runner_in_process_old);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    return 0;
}

/* Packs a folder and imports it. */
static void import(struct runner_fixture *f, const char *folder, Skerry__Runner__ImportKind kind,
                   char digest[IMAGE_DIGEST_SIZE])
{
    Skerry__Runner__Import import = SKERRY__RUNNER__IMPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct fixture_answer answer;
    import.kind = kind;
    import.name = (char *)(uintptr_t) "test";
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    request.import_stream = &import;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 1);
    pid_t pid = fork();
    if (pid == 0) {
        if (dup2(answer.descriptors[0], 1) < 0)
            _exit(1);
        execl("/bin/tar", "tar", "-C", folder, "-c", ".", (char *)NULL);
        _exit(1);
    }
    fixture_answer_free(&answer);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_IMPORT_ENDED, NULL, FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_string_equal(event->import_ended->message, "");
    assert_true(text_copy(digest, IMAGE_DIGEST_SIZE, event->import_ended->digest));
    fixture_event_forget(f, event);
}

static uint32_t image_remove(struct runner_fixture *f, char *digest)
{
    Skerry__Runner__ImageRemove remove = SKERRY__RUNNER__IMAGE_REMOVE__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    remove.digest = digest;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_REMOVE;
    request.image_remove = &remove;
    return fixture_code(f, &request);
}

static void file_write(const char *folder, const char *name, const char *text, mode_t mode)
{
    char path[200];
    text_format(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void folder_make(char *out, size_t size, const char *below, const char *name)
{
    text_format(out, size, "%s/%s", below, name);
    assert_int_equal(mkdir(out, 0755), 0);
}

static void source_is_read_only_at_app(void **state)
{
    struct runner_fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE], id[32];
    static struct fixture_result r;
    folder_make(folder, sizeof folder, f->directory, "source");
    file_write(folder, "run.sh",
               "#!/bin/sh\npwd\nls -ln run.sh | cut -d' ' -f1,3,4\n"
               "touch new 2>/dev/null && echo wrote\necho done\n",
               0755);
    import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE, digest);
    Skerry__Runner__Prepare p;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("./run.sh"));
    p.source = digest;
    p.uid = p.gid = 0;
    fixture_run_command(f, &p, NULL, &r);
    assert_string_equal(r.message, "");
    assert_string_equal(r.err, "");
    assert_string_equal(r.out, "/app\n-rwxr-xr-x 0 0\ndone\n");
    assert_int_equal(image_remove(f, digest), 0);
}

/* Also while the last of it, its process 1, still goes. */
static void source_is_in_use_until_the_end_is_told(void **state)
{
    struct runner_fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE], id[32];
    static struct fixture_result r;
    folder_make(folder, sizeof folder, f->directory, "source");
    file_write(folder, "run.sh", "#!/bin/sh\n", 0755);
    for (size_t i = 0; i < 50; i++) {
        import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE, digest);
        Skerry__Runner__Prepare p;
        fixture_id(id);
        fixture_prepare_init(&p, id, WORDS("./run.sh"));
        p.source = digest;
        fixture_run_command(f, &p, NULL, &r);
        assert_string_equal(r.message, "");
        assert_int_equal(image_remove(f, digest), 0);
    }
}

/* A program that needs nothing of its image: the shell of the machine and what it is linked to. */
static void image_fill(const char *folder)
{
    char command[600];
    text_format(
        command, sizeof command,
        "cd %s && mkdir -p bin etc data secret && cp /bin/dash bin/sh && cp /bin/ls /bin/cat "
        "/bin/mkdir /bin/rm bin/ && for l in $(ldd /bin/dash /bin/ls /bin/cat /bin/mkdir "
        "/bin/rm | grep -o '/[^ ]*\\.so[^ ]*' | sort -u); do mkdir -p .$(dirname $l) && cp "
        "-L $l .$l; done && echo image > data/file && chown -R 0:0 . && chown -R 1000:1000 data "
        "&& chmod 0700 secret && echo x > secret/x && ln -s /proc/mounts etc/resolv.conf",
        folder);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void image_is_a_root_of_its_own(void **state)
{
    struct runner_fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE], ids[3][32];
    static struct fixture_result r;
    folder_make(folder, sizeof folder, f->directory, "image");
    image_fill(folder);
    import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE, digest);
    Skerry__Runner__Prepare p;
    fixture_id(ids[0]);
    fixture_prepare_init(
        &p, ids[0],
        WORDS("sh", "-c",
              "ls -d /usr/bin /home 2>/dev/null; cat /data/file; echo mine > "
              "/data/file; cat /data/file; mkdir /data/d; rm /data/file; ls /data; "
              "cat /secret/x 2>/dev/null; cat /etc/resolv.conf; ls -ld /secret "
              "/data | while read a b c d e; do echo $a $c; done"));
    p.image = digest;
    fixture_run_command(f, &p, NULL, &r);
    assert_string_equal(r.message, "");
    assert_string_equal(r.err, "");
    assert_string_equal(r.out, "image\nmine\nd\n# Nobody answers names here.\ndrwxr-xr-x 1000\n"
                               "drwx------ 0\n");
    /* What one wrote, no other sees. */
    fixture_id(ids[1]);
    fixture_prepare_init(&p, ids[1], WORDS("cat", "/data/file"));
    p.image = digest;
    fixture_run_command(f, &p, NULL, &r);
    assert_string_equal(r.out, "image\n");
    /* In use, it cannot be removed. */
    struct fixture_answer answer;
    fixture_id(ids[2]);
    fixture_prepare_init(&p, ids[2], WORDS("cat"));
    p.image = digest;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(image_remove(f, digest), ERR_CONFLICT);
    assert_int_equal(fixture_discard(f, ids[2]), 0);
    fixture_answer_free(&answer);
    struct fixture_traces traces;
    assert_true(fixture_settle(f, &traces, FIXTURE_WAIT_MS));
    assert_int_equal(image_remove(f, digest), 0);
    assert_int_equal(image_remove(f, digest), ERR_NOT_FOUND);
}

/* Mounts of a runner go with it; those of an instance stay, and the next runner makes its own. */
static void image_outlives_the_runner(void **state)
{
    struct runner_fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE], ids[2][32];
    struct fixture_answer answer;
    struct fixture_traces traces;
    static struct fixture_result r;
    Skerry__Runner__Prepare p;
    folder_make(folder, sizeof folder, f->directory, "image");
    image_fill(folder);
    import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE, digest);
    fixture_id(ids[0]);
    /* What is read after the runner's end was not read before. */
    fixture_prepare_init(&p, ids[0], WORDS("sh", "-c", "read x; cat /data/file"));
    p.image = digest;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(fixture_commit(f, ids[0]), 0);
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    assert_int_equal(image_remove(f, digest), ERR_CONFLICT);
    fixture_id(ids[1]);
    fixture_prepare_init(&p, ids[1], WORDS("cat", "/data/file"));
    p.image = digest;
    fixture_run_command(f, &p, NULL, &r);
    assert_string_equal(r.out, "image\n");
    assert_int_equal(image_remove(f, digest), ERR_CONFLICT);
    char text[16] = "";
    assert_int_equal(write(answer.descriptors[0], "\n", 1), 1);
    struct pollfd wait = {.fd = answer.descriptors[1], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, FIXTURE_WAIT_MS), 1);
    assert_int_equal(read(answer.descriptors[1], text, sizeof text - 1), 6);
    assert_string_equal(text, "image\n");
    fixture_answer_free(&answer);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, ids[0], FIXTURE_WAIT_MS));
    assert_int_equal(fixture_forget(f, ids[0]), 0);
    assert_true(fixture_settle(f, &traces, FIXTURE_WAIT_MS));
    assert_int_equal(image_remove(f, digest), 0);
}

/* Where we mount and mask, an image may have put links (CVE-2021-30465, 2025-31133, 2025-52565). */
static void links_in_the_places_of_mounts_are_refused(void **state)
{
    struct runner_fixture *f = *state;
    static const char *const places[] = {"proc", "dev", "tmp"};
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        char folder[128], path[200], digest[IMAGE_DIGEST_SIZE], id[32];
        struct fixture_answer answer;
        Skerry__Runner__Prepare p;
        folder_make(folder, sizeof folder, f->directory, places[i]);
        text_format(path, sizeof path, "%s/elsewhere", folder);
        assert_int_equal(mkdir(path, 0755), 0);
        text_format(path, sizeof path, "%s/%s", folder, places[i]);
        assert_int_equal(symlink("elsewhere", path), 0);
        import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE, digest);
        fixture_id(id);
        fixture_prepare_init(&p, id, WORDS("sh"));
        p.image = digest;
        assert_int_not_equal(fixture_prepare(f, &p, &answer), 0);
        assert_non_null(strstr(answer.reply->message, "is not a folder"));
        fixture_answer_free(&answer);
    }
    struct fixture_traces traces;
    assert_true(fixture_settle(f, &traces, FIXTURE_WAIT_MS));
    assert_int_equal(traces.folders, 0);
}

/* --- export ------------------------------------------------------------------------------------- */

/* The archive from byte `skip` on; the caller's. */
static char *export(struct runner_fixture *f, char *digest, Skerry__Runner__ImportKind kind,
                    uint64_t skip, size_t *length)
{
    Skerry__Runner__Export x = SKERRY__RUNNER__EXPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct fixture_answer answer;
    x.kind = kind;
    x.digest = digest;
    x.skip = skip;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM;
    request.export_stream = &x;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 1);
    size_t size = 64 * 1024 * 1024;
    char *data = malloc(size);
    assert_non_null(data);
    *length = 0;
    ssize_t n;
    while ((n = read(answer.descriptors[0], data + *length, size - *length)) > 0)
        *length += (size_t)n;
    assert_int_equal(n, 0);
    fixture_answer_free(&answer);
    return data;
}

/* Sends an archive back in; the digest that it has there. */
static void import_bytes(struct runner_fixture *f, const char *data, size_t length,
                         Skerry__Runner__ImportKind kind, char digest[IMAGE_DIGEST_SIZE])
{
    char path[120];
    text_format(path, sizeof path, "%s/archive", f->directory);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    Skerry__Runner__Import import = SKERRY__RUNNER__IMPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct fixture_answer answer;
    import.kind = kind;
    import.name = (char *)(uintptr_t) "back";
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    request.import_stream = &import;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.count, 1);
    for (size_t at = 0; at < length;) {
        ssize_t n = write(answer.descriptors[0], data + at, length - at);
        assert_true(n > 0);
        at += (size_t)n;
    }
    fixture_answer_free(&answer);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_IMPORT_ENDED, NULL, FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_string_equal(event->import_ended->message, "");
    assert_true(text_copy(digest, IMAGE_DIGEST_SIZE, event->import_ended->digest));
    fixture_event_forget(f, event);
}

static void exported_layer_comes_back_as_the_same(void **state)
{
    struct runner_fixture *f = *state;
    const Skerry__Runner__ImportKind kind = SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE;
    char folder[128], digest[IMAGE_DIGEST_SIZE], again[IMAGE_DIGEST_SIZE];
    size_t length, rest_length, second_length;
    folder_make(folder, sizeof folder, f->directory, "image");
    image_fill(folder);
    import(f, folder, kind, digest);
    char *whole = export(f, digest, kind, 0, &length);
    assert_true(length > 100000);
    /* A transfer that broke goes on where it was. */
    char *rest = export(f, digest, kind, 70001, &rest_length);
    assert_int_equal(rest_length, length - 70001);
    assert_memory_equal(rest, whole + 70001, rest_length);
    free(rest);
    struct fixture_traces traces;
    assert_true(fixture_settle(f, &traces, FIXTURE_WAIT_MS));
    assert_int_equal(image_remove(f, digest), 0);
    import_bytes(f, whole, length, kind, again);
    assert_string_equal(again, digest);
    /* And again the same bytes, though all times are others. */
    char *second = export(f, again, kind, 0, &second_length);
    assert_int_equal(second_length, length);
    assert_memory_equal(second, whole, length);
    free(second);
    free(whole);
}

static void export_refuses_what_is_not_there(void **state)
{
    struct runner_fixture *f = *state;
    Skerry__Runner__Export x = SKERRY__RUNNER__EXPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM;
    request.export_stream = &x;
    x.digest = (char *)(uintptr_t) "sha256:../../etc/passwd";
    assert_int_equal(fixture_code(f, &request), ERR_INVALID);
    x.digest = (char *)(uintptr_t) "sha256:"
                                   "00000000000000000000000000000000"
                                   "00000000000000000000000000000000";
    assert_int_equal(fixture_code(f, &request), ERR_NOT_FOUND);
}

/* Nobody reads: the runner goes on, holds the layer until the reader is gone, and has a bound. */
static void export_that_nobody_reads_harms_nobody(void **state)
{
    struct runner_fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE];
    struct fixture_answer answers[IMAGE_EXPORTS_MAX];
    folder_make(folder, sizeof folder, f->directory, "image");
    image_fill(folder);
    import(f, folder, SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE, digest);
    Skerry__Runner__Export x = SKERRY__RUNNER__EXPORT__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    x.digest = digest;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM;
    request.export_stream = &x;
    for (size_t i = 0; i < IMAGE_EXPORTS_MAX; i++)
        fixture_ask(f, &request, &answers[i]);
    assert_int_equal(fixture_code(f, &request), ERR_LIMIT);
    assert_int_equal(image_remove(f, digest), ERR_CONFLICT);
    for (size_t i = 0; i < IMAGE_EXPORTS_MAX; i++)
        fixture_answer_free(&answers[i]);
    struct fixture_traces traces;
    assert_true(fixture_settle(f, &traces, FIXTURE_WAIT_MS));
    assert_int_equal(image_remove(f, digest), 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
        return image_import_main();
    if (argc == 2 && strcmp(argv[1], IMAGE_EXPORT_ARGUMENT) == 0)
        return image_export_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(source_is_read_only_at_app, setup, teardown),
        cmocka_unit_test_setup_teardown(source_is_in_use_until_the_end_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(image_is_a_root_of_its_own, setup, teardown),
        cmocka_unit_test_setup_teardown(links_in_the_places_of_mounts_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(image_is_a_root_of_its_own, setup_old, teardown),
        cmocka_unit_test_setup_teardown(image_outlives_the_runner, setup, teardown),
        cmocka_unit_test_setup_teardown(image_outlives_the_runner, setup_old, teardown),
        cmocka_unit_test_setup_teardown(exported_layer_comes_back_as_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(export_refuses_what_is_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(export_that_nobody_reads_harms_nobody, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
