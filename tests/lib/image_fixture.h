/* tests/lib/image_fixture.h - an image store of its own folder, and archives written by hand. For
 * runner_test_image.c, which includes cmocka before. */
#ifndef SKERRY_TESTS_LIB_IMAGE_FIXTURE_H
#define SKERRY_TESTS_LIB_IMAGE_FIXTURE_H

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cli/pack.h"
#include "sandbox/runner/image.h"
#include "sandbox/runner/image_digest.h"
#include "sandbox/runner/image_internal.h"

#define TAR_SIZE_MAX (4u << 20)
#define DEADLINE_MS 60000

struct fixture {
    char directory[64];
    struct image_store_options options;
    struct image_store *store;
    unsigned char *tar; /* TAR_SIZE_MAX */
    size_t tar_size;
    uint64_t changed_s; /* of what is put into it */
};

/* --- archives by hand: what no writer would write --------------------------------------------- */

static void tar_begin(struct fixture *f)
{
    f->tar_size = 0;
}

static void tar_octal(unsigned char *out, size_t size, uint64_t value)
{
    char text[16];
    (void)text_format(text, sizeof text, "%0*llo", (int)size - 1, (unsigned long long)value);
    memcpy(out, text, size - 1);
}

static void tar_blocks(struct fixture *f, const void *data, size_t size)
{
    size_t padded = (size + 511) / 512 * 512;
    assert_true(f->tar_size + padded <= TAR_SIZE_MAX);
    if (padded == 0)
        return;
    memset(f->tar + f->tar_size, 0, padded);
    memcpy(f->tar + f->tar_size, data, size);
    f->tar_size += padded;
}

static void tar_header(struct fixture *f, char type, const char *name, const char *link,
                       unsigned mode, unsigned owner, uint64_t size)
{
    unsigned char h[512] = {0};
    assert_true(strlen(name) < 100 && strlen(link) < 100);
    memcpy(h, name, strlen(name));
    tar_octal(h + 100, 8, mode);
    tar_octal(h + 108, 8, owner);
    tar_octal(h + 116, 8, owner);
    tar_octal(h + 124, 12, size);
    tar_octal(h + 136, 12, f->changed_s);
    h[156] = (unsigned char)type;
    memcpy(h + 157, link, strlen(link));
    memcpy(h + 257, "ustar\00000", 8);
    memset(h + 148, ' ', 8);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof h; i++)
        sum += h[i];
    tar_octal(h + 148, 7, sum);
    tar_blocks(f, h, sizeof h);
}

static void tar_file(struct fixture *f, const char *name, unsigned mode, const char *text)
{
    tar_header(f, '0', name, "", mode, 0, strlen(text));
    tar_blocks(f, text, strlen(text));
}

static void tar_end(struct fixture *f)
{
    static const unsigned char zeros[1024];
    tar_blocks(f, zeros, sizeof zeros);
}

__attribute__((unused)) static void tar_good(struct fixture *f)
{
    tar_begin(f);
    tar_header(f, '5', "./", "", 0700, 0, 0);
    tar_header(f, '5', "./bin/", "", 0755, 0, 0);
    tar_file(f, "./bin/hello", 04755, "#!/bin/sh\necho hello\n");
    tar_header(f, '1', "./bin/hello2", "./bin/hello", 0755, 0, 0);
    tar_header(f, '2', "./bin/sh", "hello", 0777, 0, 0);
    tar_header(f, '2', "./etc/mtab", "/proc/self/mounts", 0777, 0, 0);
    tar_header(f, '5', "./tmp/", "", 01777, 0, 0);
    tar_header(f, '5', "./home/", "", 0750, 1000, 0);
    tar_header(f, '0', "./home/secret", "", 0600, 1000, 3);
    tar_blocks(f, "abc", 3);
    tar_end(f);
}

__attribute__((unused)) static void tar_compress(struct fixture *f, int (*filter)(struct archive *))
{
    unsigned char *out = malloc(TAR_SIZE_MAX);
    size_t used = 0;
    struct archive *writer = archive_write_new();
    struct archive_entry *entry = archive_entry_new();
    assert_non_null(out);
    assert_int_equal(archive_write_set_format_raw(writer), ARCHIVE_OK);
    assert_int_equal(filter(writer), ARCHIVE_OK);
    assert_int_equal(archive_write_open_memory(writer, out, TAR_SIZE_MAX, &used), ARCHIVE_OK);
    archive_entry_set_filetype(entry, AE_IFREG);
    assert_int_equal(archive_write_header(writer, entry), ARCHIVE_OK);
    assert_int_equal(archive_write_data(writer, f->tar, f->tar_size), (la_ssize_t)f->tar_size);
    assert_int_equal(archive_write_close(writer), ARCHIVE_OK);
    archive_write_free(writer);
    archive_entry_free(entry);
    free(f->tar);
    f->tar = out;
    f->tar_size = used;
}

/* --- the fixture ------------------------------------------------------------------------------ */

static void reopen(struct fixture *f)
{
    struct err e;
    image_store_close(f->store);
    f->store = NULL;
    assert_int_equal(image_store_open(&f->store, &f->options, &e), 0);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    signal(SIGPIPE, SIG_IGN);
    (void)text_copy(f->directory, sizeof f->directory, "/tmp/skerry-test-image-XXXXXX");
    if (mkdtemp(f->directory) == NULL)
        return 1;
    f->options = image_store_options_default(f->directory);
    f->options.image.bytes_max = 1u << 20;
    f->options.image.files_max = 500;
    f->options.image.depth_max = 20;
    f->options.source.depth_max = 20;
    f->options.image.idle_seconds_max = 20;
    f->tar = malloc(TAR_SIZE_MAX);
    f->changed_s = 1700000000;
    struct err e;
    *state = f;
    return image_store_open(&f->store, &f->options, &e);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    struct err e;
    image_store_close(f->store);
    int rc = image_tree_remove(AT_FDCWD, f->directory, &e);
    free(f->tar);
    free(f);
    return rc;
}

static size_t store_entries(const struct fixture *f)
{
    char path[80];
    size_t count = 0;
    (void)text_format(path, sizeof path, "%s/images", f->directory);
    DIR *stream = opendir(path);
    assert_non_null(stream);
    const struct dirent *entry;
    while ((entry = readdir(stream)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(stream);
    return count;
}

/* Sends the archive until it is taken or refused; `stop` is where the sender gives up. */
static int import_bytes(struct fixture *f, enum image_kind kind, const char *want, size_t stop,
                        struct image_import_result *out, struct err *e)
{
    struct image_import *import;
    struct image_import_options options = {.kind = kind, .want_digest = want};
    int fd = -1;
    size_t sent = 0;
    int rc = image_import_start(&import, f->store, &options, &fd, e);
    if (rc != 0)
        return rc;
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    uint64_t deadline = clock_monotonic_ms() + DEADLINE_MS;
    for (;;) {
        if (fd >= 0 && sent == stop)
            memory_close(&fd);
        struct pollfd waits[2] = {{.fd = image_import_fd(import), .events = POLLIN},
                                  {.fd = fd, .events = POLLOUT}};
        assert_true(clock_monotonic_ms() < deadline);
        assert_true(poll(waits, 2, 1000) >= 0);
        if (waits[0].revents != 0)
            break;
        if (waits[1].revents != 0) {
            ssize_t n = write(fd, f->tar + sent, stop - sent);
            if (n < 0 && errno == EPIPE)
                memory_close(&fd);
            else if (n > 0)
                sent += (size_t)n;
        }
    }
    memory_close(&fd);
    return image_import_end(import, out, e);
}

static void import_good(struct fixture *f, enum image_kind kind, struct image_import_result *out)
{
    struct err e;
    int rc = import_bytes(f, kind, NULL, f->tar_size, out, &e);
    if (rc != 0)
        fail_msg("refused: %s", e.msg);
}

/* Refused with `code` and a text that holds `word`, and the store is as empty as before. */
static void import_refused(struct fixture *f, enum image_kind kind, size_t stop, enum err_code code,
                           const char *word)
{
    struct image_import_result result;
    struct err e = {0};
    size_t before = store_entries(f);
    assert_int_not_equal(import_bytes(f, kind, NULL, stop, &result, &e), 0);
    if (strstr(e.msg, word) == NULL)
        fail_msg("the error does not say \"%s\": %s", word, e.msg);
    assert_int_equal(e.code, code);
    assert_int_equal(store_entries(f), before);
}

#endif
