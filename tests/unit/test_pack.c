/* A folder or file as a tar stream: the same bytes for the same content, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "node/cli/pack.h"

struct fixture {
    char directory[64];
    struct buffer stream;
};

static int remove_cb(const char *path, const struct stat *st, int type, struct FTW *place)
{
    (void)st;
    (void)type;
    (void)place;
    return remove(path);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    (void)text_copy(f->directory, sizeof f->directory, "/tmp/skerry-test-pack-XXXXXX");
    buffer_init(&f->stream, 8u << 20);
    *state = f;
    return mkdtemp(f->directory) == NULL;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    buffer_free(&f->stream);
    int rc = nftw(f->directory, remove_cb, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return rc;
}

static const char *path_of(const struct fixture *f, const char *name)
{
    static char path[256];
    (void)text_format(path, sizeof path, "%s/%s", f->directory, name);
    return path;
}

static void make_file(const struct fixture *f, const char *name, mode_t mode, const char *text)
{
    CLEANUP_FD int fd = open(path_of(f, name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
}

static void make_folder(const struct fixture *f, const char *name, mode_t mode)
{
    assert_int_equal(mkdir(path_of(f, name), 0700), 0);
    assert_int_equal(chmod(path_of(f, name), mode), 0);
}

static int take_cb(void *user, const void *data, size_t length,
                   const struct pack_progress *progress, struct err *e)
{
    assert_true(progress->bytes <= progress->bytes_total);
    assert_true(progress->files <= progress->files_total);
    if (!buffer_append(user, data, length))
        return err_set(e, ERR_LIMIT, "the sink is full");
    return 0;
}

static int pack_all(struct fixture *f, const char *path, enum pack_kind kind, struct err *e)
{
    struct pack_options options = pack_options_default(kind);
    buffer_consume(&f->stream, f->stream.length);
    return pack_stream(path, &options, take_cb, &f->stream, e);
}

static void assert_packed(struct fixture *f, const char *path, enum pack_kind kind)
{
    struct err e;
    if (pack_all(f, path, kind, &e) != 0)
        fail_msg("%s", e.msg);
}

/* The stream as one line an entry: type, mode, owner, time, size, name, target. */
static void listing(struct fixture *f, char *out, size_t size)
{
    struct archive *reader = archive_read_new();
    struct archive_entry *entry;
    struct buffer text;
    buffer_init(&text, size - 1);
    archive_read_support_format_tar(reader);
    assert_int_equal(archive_read_open_memory(reader, f->stream.data, f->stream.length),
                     ARCHIVE_OK);
    int rc;
    while ((rc = archive_read_next_header(reader, &entry)) == ARCHIVE_OK) {
        const char *target = archive_entry_symlink(entry);
        assert_true(buffer_printf(&text, "%o %d:%d %lld %lld %s%s%s\n", archive_entry_mode(entry),
                                  (int)archive_entry_uid(entry), (int)archive_entry_gid(entry),
                                  (long long)archive_entry_mtime(entry),
                                  (long long)archive_entry_size(entry),
                                  archive_entry_pathname(entry), target != NULL ? " -> " : "",
                                  target != NULL ? target : ""));
    }
    assert_int_equal(rc, ARCHIVE_EOF);
    archive_read_free(reader);
    memcpy(out, text.data, text.length);
    out[text.length] = '\0';
    buffer_free(&text);
}

static void make_tree(const struct fixture *f)
{
    make_folder(f, "app", 0700);
    make_folder(f, "app/z", 0711);
    make_file(f, "app/z/inner", 04755, "12345");
    make_file(f, "app/main.py", 0600, "print(1)\n");
    make_file(f, "app/Zero", 0640, "");
    assert_int_equal(symlink("z/inner", path_of(f, "app/link")), 0);
}

static void entries_are_in_order_and_tell_little_of_the_machine(void **state)
{
    struct fixture *f = *state;
    static const char *const files[] = {"app/Zero", "app/main.py", "app/z/inner"};
    static const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1700000000}};
    char text[1024];
    make_tree(f);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        assert_int_equal(utimensat(AT_FDCWD, path_of(f, files[i]), times, 0), 0);
    assert_packed(f, path_of(f, "app"), PACK_IMAGE);
    listing(f, text, sizeof text);
    assert_string_equal(text, "100640 0:0 1700000000 0 Zero\n"
                              "120777 0:0 0 0 link -> z/inner\n"
                              "100600 0:0 1700000000 9 main.py\n"
                              "40711 0:0 0 0 z/\n"
                              "100755 0:0 1700000000 5 z/inner\n");
    assert_packed(f, path_of(f, "app"), PACK_SOURCE);
    listing(f, text, sizeof text);
    assert_string_equal(text, "100644 0:0 0 0 Zero\n"
                              "120777 0:0 0 0 link -> z/inner\n"
                              "100644 0:0 0 9 main.py\n"
                              "40755 0:0 0 0 z/\n"
                              "100755 0:0 0 5 z/inner\n");
}

static void same_content_gives_the_same_bytes(void **state)
{
    struct fixture *f = *state;
    struct buffer first;
    make_tree(f);
    assert_packed(f, path_of(f, "app"), PACK_SOURCE);
    buffer_init(&first, 8u << 20);
    assert_true(buffer_append(&first, f->stream.data, f->stream.length));
    assert_int_equal(utimensat(AT_FDCWD, path_of(f, "app/main.py"), NULL, 0), 0);
    assert_int_equal(chmod(path_of(f, "app/main.py"), 0664), 0);
    assert_int_equal(unlink(path_of(f, "app/Zero")), 0);
    make_file(f, "app/Zero", 0600, "");
    assert_packed(f, path_of(f, "app"), PACK_SOURCE);
    assert_int_equal(first.length, f->stream.length);
    assert_memory_equal(first.data, f->stream.data, first.length);
    buffer_free(&first);
}

static void single_file_is_a_source_and_an_archive_is_an_image(void **state)
{
    struct fixture *f = *state;
    char text[256];
    make_file(f, "job.sh", 0755, "#!/bin/sh\n");
    assert_packed(f, path_of(f, "job.sh"), PACK_SOURCE);
    listing(f, text, sizeof text);
    assert_string_equal(text, "100755 0:0 0 10 job.sh\n");
    assert_packed(f, path_of(f, "job.sh"), PACK_IMAGE);
    assert_int_equal(f->stream.length, 10);
    assert_memory_equal(f->stream.data, "#!/bin/sh\n", 10);
}

static void large_file_and_long_names_come_whole(void **state)
{
    struct fixture *f = *state;
    char name[200] = "app/";
    char text[512];
    make_folder(f, "app", 0755);
    memset(name + 4, 'n', 180);
    make_file(f, name, 0644, "x");
    make_file(f, "app/\xc3\xa9t\xc3\xa9", 0644, "x");
    CLEANUP_FD int fd = open(path_of(f, "app/large"), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    assert_int_equal(ftruncate(fd, 300001), 0);
    assert_packed(f, path_of(f, "app"), PACK_IMAGE);
    listing(f, text, sizeof text);
    assert_non_null(strstr(text, "300001 large\n"));
    assert_non_null(strstr(text, name + 4));
    assert_non_null(strstr(text, "\xc3\xa9t\xc3\xa9"));
}

static void what_cannot_be_packed_is_named_before_a_byte_is_sent(void **state)
{
    struct fixture *f = *state;
    struct err e;
    make_tree(f);
    assert_int_equal(mkfifo(path_of(f, "app/z/pipe"), 0600), 0);
    assert_int_equal(pack_all(f, path_of(f, "app"), PACK_SOURCE, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "z/pipe is a named pipe"));
    assert_int_equal(f->stream.length, 0);
    assert_int_equal(unlink(path_of(f, "app/z/pipe")), 0);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert_true(text_copy(address.sun_path, sizeof address.sun_path, path_of(f, "app/sock")));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(pack_all(f, path_of(f, "app"), PACK_SOURCE, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "sock is a socket"));
    assert_int_equal(pack_all(f, path_of(f, "nothing"), PACK_SOURCE, &e), -ERR_NOT_FOUND);
    assert_int_equal(pack_all(f, "/dev/null", PACK_SOURCE, &e), -ERR_INVALID);
}

static void bounds_are_told_before_a_byte_is_sent(void **state)
{
    struct fixture *f = *state;
    struct err e;
    struct pack *pack;
    make_tree(f);
    struct pack_options options = pack_options_default(PACK_SOURCE);
    options.files_max = 4;
    assert_int_equal(pack_open(&pack, path_of(f, "app"), &options, &e), -ERR_LIMIT);
    options.files_max = 5;
    options.bytes_max = 13;
    assert_int_equal(pack_open(&pack, path_of(f, "app"), &options, &e), -ERR_LIMIT);
    assert_non_null(strstr(e.msg, "more than 13 bytes"));
    options.bytes_max = 14;
    assert_int_equal(pack_open(&pack, path_of(f, "app"), &options, &e), 0);
    assert_int_equal(pack_progress(pack).bytes_total, 14);
    assert_int_equal(pack_progress(pack).files_total, 5);
    pack_close(pack);
}

static void file_that_shrinks_is_noticed(void **state)
{
    struct fixture *f = *state;
    struct err e;
    struct pack *pack;
    char block[512];
    size_t length = 0;
    make_folder(f, "app", 0755);
    CLEANUP_FD int fd = open(path_of(f, "app/large"), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    struct pack_options options = pack_options_default(PACK_SOURCE);
    assert_int_equal(pack_open(&pack, path_of(f, "app"), &options, &e), 0);
    assert_int_equal(pack_read(pack, block, sizeof block, &length, &e), 0);
    assert_int_equal(length, sizeof block);
    assert_int_equal(ftruncate(fd, 10), 0);
    int rc;
    while ((rc = pack_read(pack, block, sizeof block, &length, &e)) == 0 && length > 0)
        ;
    assert_int_equal(rc, -ERR_CONFLICT);
    assert_non_null(strstr(e.msg, "large changed"));
    pack_close(pack);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(entries_are_in_order_and_tell_little_of_the_machine),
        T(same_content_gives_the_same_bytes),
        T(single_file_is_a_source_and_an_archive_is_an_image),
        T(large_file_and_long_names_come_whole),
        T(what_cannot_be_packed_is_named_before_a_byte_is_sent),
        T(bounds_are_told_before_a_byte_is_sent),
        T(file_that_shrinks_is_noticed),
    };
#undef T
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
