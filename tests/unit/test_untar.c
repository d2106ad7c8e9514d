#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "node/cli/untar.h"
#include "sandbox/shared/tar.h"

struct place {
    char outer[64], inside[96], outside[96];
    struct buffer archive;
};

static int open_place(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    snprintf(p->outer, sizeof p->outer, "/tmp/skerry-untar-XXXXXX");
    assert_non_null(mkdtemp(p->outer));
    snprintf(p->inside, sizeof p->inside, "%s/inside", p->outer);
    snprintf(p->outside, sizeof p->outside, "%s/outside", p->outer);
    assert_int_equal(mkdir(p->inside, 0755), 0);
    assert_int_equal(mkdir(p->outside, 0755), 0);
    buffer_init(&p->archive, 1 << 20);
    *state = p;
    return 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

static int close_place(void **state)
{
    struct place *p = *state;
    nftw(p->outer, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    buffer_free(&p->archive);
    free(p);
    return 0;
}

static void add(struct place *p, enum tar_type type, const char *path, unsigned mode,
                const char *text)
{
    static const char zeros[2 * TAR_BLOCK_BYTES];
    struct tar_entry *entry = calloc(1, sizeof *entry);
    uint8_t blocks[TAR_ENCODED_BYTES_MAX];
    assert_non_null(entry);
    entry->type = type;
    entry->mode = mode;
    size_t length = type == TAR_FILE ? strlen(text) : 0;
    entry->size = length;
    snprintf(entry->path, sizeof entry->path, "%s", path);
    if (type == TAR_SYMLINK || type == TAR_HARDLINK)
        snprintf(entry->link, sizeof entry->link, "%s", text);
    size_t head = tar_encode(entry, blocks);
    assert_true(head > 0);
    assert_true(buffer_append(&p->archive, blocks, head));
    assert_true(buffer_append(&p->archive, text, length));
    assert_true(buffer_append(&p->archive, zeros, tar_padding(length)));
    free(entry);
}

/* Gives the archive in pieces of `piece` bytes. */
static int unpack(struct place *p, const char *rename_to, size_t piece, struct err *e)
{
    static const char zeros[2 * TAR_BLOCK_BYTES];
    struct untar *u = NULL;
    assert_true(buffer_append(&p->archive, zeros, sizeof zeros));
    assert_int_equal(untar_new(&u, p->inside, rename_to, e), 0);
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < p->archive.length; at += piece) {
        size_t left = p->archive.length - at;
        rc = untar_take(u, p->archive.data + at, left < piece ? left : piece, e);
    }
    if (rc == 0)
        rc = untar_end(u, e);
    untar_free(u);
    return rc;
}

static void assert_holds(const char *folder, const char *name, const char *text)
{
    char path[256], found[256] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(read(fd, found, sizeof found - 1) >= 0);
    assert_string_equal(found, text);
}

static void assert_empty(const char *folder)
{
    DIR *d = opendir(folder);
    assert_non_null(d);
    struct dirent *entry;
    while ((entry = readdir(d)) != NULL)
        assert_true(strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0);
    closedir(d);
}

static void any_pieces_make_the_same_tree(void **state)
{
    struct place *p = *state;
    struct err e;
    static const size_t pieces[] = {1, 7, 511, 512, 513, 100000};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        p->archive.length = 0;
        add(p, TAR_DIRECTORY, "a", 0750, "");
        add(p, TAR_FILE, "a/empty", 0644, "");
        add(p, TAR_FILE, "a/deep/er/file", 04755, "text of it");
        add(p, TAR_SYMLINK, "a/link", 0777, "deep/er/file");
        assert_int_equal(unpack(p, NULL, pieces[i], &e), 0);
        assert_holds(p->inside, "a/empty", "");
        assert_holds(p->inside, "a/link", "text of it");
        char path[256];
        struct stat st;
        snprintf(path, sizeof path, "%s/a/deep/er/file", p->inside);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0755); /* no setuid */
    }
}

static void the_first_name_is_replaced(void **state)
{
    struct place *p = *state;
    struct err e;
    add(p, TAR_DIRECTORY, "etc", 0755, "");
    add(p, TAR_FILE, "etc/hosts", 0644, "127.0.0.1");
    assert_int_equal(unpack(p, "copy", 512, &e), 0);
    assert_holds(p->inside, "copy/hosts", "127.0.0.1");
}

static void nothing_leaves_the_folder(void **state)
{
    struct place *p = *state;
    struct err e = {0};
    static const char *const bad[] = {"../outside/x", "/tmp/x", "a/../../outside/x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        p->archive.length = 0;
        add(p, TAR_FILE, bad[i], 0644, "x");
        assert_int_equal(unpack(p, NULL, 512, &e), -ERR_DENIED);
    }
    /* Through a link that leads out, made by the archive itself. */
    p->archive.length = 0;
    add(p, TAR_SYMLINK, "door", 0777, p->outside);
    add(p, TAR_FILE, "door/x", 0644, "x");
    assert_int_not_equal(unpack(p, NULL, 512, &e), 0);
    p->archive.length = 0;
    add(p, TAR_SYMLINK, "up", 0777, "../outside");
    add(p, TAR_FILE, "up/x", 0644, "x");
    assert_int_not_equal(unpack(p, NULL, 512, &e), 0);
    assert_empty(p->outside);
}

static void a_link_is_replaced_and_not_written_through(void **state)
{
    struct place *p = *state;
    struct err e;
    char target[128];
    snprintf(target, sizeof target, "%s/victim", p->outside);
    CLEANUP_FD int fd = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, "kept", 4) == 4);
    add(p, TAR_SYMLINK, "name", 0777, target);
    add(p, TAR_FILE, "name", 0644, "written");
    assert_int_equal(unpack(p, NULL, 512, &e), 0);
    assert_holds(p->outside, "victim", "kept");
    assert_holds(p->inside, "name", "written");
}

static void a_cut_archive_is_an_error(void **state)
{
    struct place *p = *state;
    struct untar *u = NULL;
    struct err e;
    add(p, TAR_FILE, "a", 0644, "some text");
    assert_int_equal(untar_new(&u, p->inside, NULL, &e), 0);
    assert_int_equal(untar_take(u, p->archive.data, 515, &e), 0);
    assert_int_equal(untar_end(u, &e), -ERR_IO);
    untar_free(u);
    assert_int_equal(untar_new(&u, p->inside, NULL, &e), 0);
    char noise[TAR_BLOCK_BYTES];
    memset(noise, 'x', sizeof noise);
    assert_int_not_equal(untar_take(u, noise, sizeof noise, &e), 0);
    untar_free(u);
}

int main(void)
{
#define WITH_PLACE(f) cmocka_unit_test_setup_teardown(f, open_place, close_place)
    const struct CMUnitTest tests[] = {
        WITH_PLACE(any_pieces_make_the_same_tree),
        WITH_PLACE(the_first_name_is_replaced),
        WITH_PLACE(nothing_leaves_the_folder),
        WITH_PLACE(a_link_is_replaced_and_not_written_through),
        WITH_PLACE(a_cut_archive_is_an_error),
    };
    return cmocka_run_group_tests_name("untar", tests, NULL, NULL);
}
