/* The image store: what is taken, what is refused and leaves nothing, what a crash leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cli/pack.h"
#include "sandbox/runner/image.h"
#include "sandbox/runner/image_digest.h"
#include "sandbox/runner/image_internal.h"
#include "tests/lib/image_fixture.h"

/* --- what is taken ---------------------------------------------------------------------------- */

static void assert_entry(int tree, const char *path, mode_t mode, unsigned owner)
{
    struct stat st;
    if (fstatat(tree, path, &st, AT_SYMLINK_NOFOLLOW) != 0)
        fail_msg("%s: %s", path, strerror(errno));
    if (!S_ISLNK(mode))
        assert_int_equal(st.st_mode, mode);
    assert_int_equal(st.st_mode & S_IFMT, mode & S_IFMT);
    assert_int_equal(st.st_uid, IMAGE_UID_BASE + owner);
    assert_int_equal(st.st_gid, IMAGE_UID_BASE + owner);
}

static void image_is_unpacked_with_owners_and_without_setuid(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    tar_good(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_true(image_digest_valid(result.digest));
    assert_false(result.existed);
    assert_int_equal(result.files, 9); /* with etc, which no entry named */
    CLEANUP_FD int tree = -1;
    assert_int_equal(image_layer_path_fd(f->store, result.digest, IMAGE_KIND_IMAGE, &tree, &e), 0);
    assert_entry(tree, ".", S_IFDIR | 0755, 0);
    assert_entry(tree, "bin", S_IFDIR | 0755, 0);
    assert_entry(tree, "bin/hello", S_IFREG | 0755, 0);
    assert_entry(tree, "bin/hello2", S_IFREG | 0755, 0);
    assert_entry(tree, "bin/sh", S_IFLNK, 0);
    assert_entry(tree, "etc", S_IFDIR | 0755, 0);
    assert_entry(tree, "etc/mtab", S_IFLNK, 0);
    assert_entry(tree, "tmp", S_IFDIR | 01777, 0);
    assert_entry(tree, "home/secret", S_IFREG | 0600, 1000);
    char target[64];
    ssize_t n = readlinkat(tree, "etc/mtab", target, sizeof target);
    assert_int_equal(n, 17);
    assert_memory_equal(target, "/proc/self/mounts", 17);
}

static void every_compression_gives_the_same_digest(void **state)
{
    struct fixture *f = *state;
    struct image_import_result plain, packed;
    static int (*const filters[])(struct archive *) = {
        archive_write_add_filter_gzip, archive_write_add_filter_zstd, archive_write_add_filter_lz4};
    tar_good(f);
    import_good(f, IMAGE_KIND_IMAGE, &plain);
    for (size_t i = 0; i < ARRAY_SIZE(filters); i++) {
        tar_good(f);
        tar_compress(f, filters[i]);
        import_good(f, IMAGE_KIND_IMAGE, &packed);
        assert_string_equal(packed.digest, plain.digest);
        assert_true(packed.existed);
    }
    assert_int_equal(store_entries(f), 1);
}

static void import_two(struct fixture *f, unsigned mode, struct image_import_result *out)
{
    tar_begin(f);
    tar_file(f, "a/x", mode, "first");
    tar_file(f, "b", 0644, "second");
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, out);
}

static void order_does_not_change_the_digest_but_mode_and_time_do(void **state)
{
    struct fixture *f = *state;
    struct image_import_result one, two, three;
    tar_begin(f);
    tar_file(f, "b", 0644, "second");
    tar_file(f, "a/x", 0644, "first");
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &one);
    tar_begin(f);
    tar_header(f, '5', "a", "", 0755, 0, 0);
    tar_file(f, "a/x", 0644, "replaced by the next");
    tar_file(f, "a/x", 0644, "first");
    tar_file(f, "b", 0644, "second");
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &two);
    assert_string_equal(one.digest, two.digest);
    import_two(f, 0755, &three);
    assert_string_not_equal(one.digest, three.digest);
    f->changed_s = 1700000001;
    import_two(f, 0644, &three);
    assert_string_not_equal(one.digest, three.digest);
}

static int64_t changed_of(const struct fixture *f, const char *digest, enum image_kind kind,
                          const char *path)
{
    struct stat st;
    struct err e;
    CLEANUP_FD int tree = -1;
    assert_int_equal(image_layer_path_fd(f->store, digest, kind, &tree, &e), 0);
    assert_int_equal(fstatat(tree, path, &st, AT_SYMLINK_NOFOLLOW), 0);
    return st.st_mtim.tv_sec;
}

static void files_of_images_keep_their_time_and_sources_have_one(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    static const int64_t times[][2] = {{0, 0},
                                       {1234567890, 1234567890},
                                       {0xffffffff, 0xffffffff},
                                       {0x100000000, 0}}; /* beyond what is kept */
    for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
        f->changed_s = (uint64_t)times[i][0];
        tar_begin(f);
        tar_file(f, "bin/tool", 0755, "x");
        tar_header(f, '1', "bin/other", "bin/tool", 0755, 0, 0);
        tar_end(f);
        import_good(f, IMAGE_KIND_IMAGE, &result);
        assert_int_equal(changed_of(f, result.digest, IMAGE_KIND_IMAGE, "bin/tool"), times[i][1]);
        assert_int_equal(changed_of(f, result.digest, IMAGE_KIND_IMAGE, "bin/other"), times[i][1]);
        import_good(f, IMAGE_KIND_SOURCE, &result);
        assert_int_equal(changed_of(f, result.digest, IMAGE_KIND_SOURCE, "bin/tool"), 315532800);
    }
}

/* The digest is the name of a layer on every node of a cluster, whatever its version or disk: this
 * one was computed apart from this code, from what image_digest.h says. */
static void digest_is_that_of_the_written_format(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    tar_begin(f);
    for (char c = 'h'; c >= 'a'; c--) {
        const char name[] = {c, '\0'};
        const char content[] = {c, c, c};
        tar_header(f, '0', name, "", 0600 + (unsigned)c % 8, 7, 3);
        tar_blocks(f, content, 3);
    }
    tar_header(f, '5', "dir", "", 01777, 0, 0);
    tar_header(f, '2', "dir/link", "../a", 0777, 3, 0);
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_string_equal(result.digest,
                        "sha256:"
                        "60fae17d8b7419e17d3a0835980a61d2afb4e69379d5b7abab40c1dcee4317ae");
}

static void source_is_normalized_and_apart_from_images(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result, image;
    struct err e;
    CLEANUP_FD int tree = -1;
    tar_begin(f);
    tar_header(f, '5', "lib/", "", 0700, 1000, 0);
    tar_header(f, '0', "lib/app.py", "", 0600, 1000, 2);
    tar_blocks(f, "1\n", 2);
    tar_file(f, "run", 0711, "#!/bin/sh\n");
    tar_end(f);
    import_good(f, IMAGE_KIND_SOURCE, &result);
    assert_int_equal(image_layer_path_fd(f->store, result.digest, IMAGE_KIND_IMAGE, &tree, &e),
                     -ERR_NOT_FOUND);
    assert_int_equal(image_layer_path_fd(f->store, result.digest, IMAGE_KIND_SOURCE, &tree, &e), 0);
    assert_entry(tree, "lib", S_IFDIR | 0755, 0);
    assert_entry(tree, "lib/app.py", S_IFREG | 0644, 0);
    assert_entry(tree, "run", S_IFREG | 0755, 0);
    import_good(f, IMAGE_KIND_IMAGE, &image);
    assert_string_not_equal(image.digest, result.digest);
}

static void long_and_foreign_names_are_kept(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    CLEANUP_FD int tree = -1;
    char name[180] = "etc/ssl/certs/N\xc5\x91tan\xc3\xbasitv\xc3\xa1ny-";
    size_t used = strlen(name);
    memset(name + used, 'x', sizeof name - used - 1);
    name[sizeof name - 1] = '\0';
    char record[256];
    /* A pax record begins with its own length. */
    int length = snprintf(record, sizeof record, "%zu path=%s\n", strlen(name) + 10, name);
    assert_int_equal(length, strlen(name) + 10);
    tar_begin(f);
    tar_header(f, 'x', "PaxHeaders/x", "", 0644, 0, (uint64_t)length);
    tar_blocks(f, record, (size_t)length);
    tar_file(f, "short", 0644, "x");
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_int_equal(image_layer_path_fd(f->store, result.digest, IMAGE_KIND_IMAGE, &tree, &e), 0);
    assert_entry(tree, name, S_IFREG | 0644, 0);
}

static int packed_cb(void *user, const void *data, size_t length,
                     const struct pack_progress *progress, struct err *e)
{
    struct fixture *f = user;
    (void)progress;
    if (f->tar_size + length > TAR_SIZE_MAX)
        return err_set(e, ERR_LIMIT, "the stream is too long");
    memcpy(f->tar + f->tar_size, data, length);
    f->tar_size += length;
    return 0;
}

static void packed_folder_has_the_digest_of_the_archive(void **state)
{
    struct fixture *f = *state;
    struct image_import_result archive, folder;
    struct err e;
    char path[96];
    for (int kind = PACK_IMAGE; kind <= PACK_SOURCE; kind++) {
        tar_begin(f);
        tar_header(f, '0', "b/x", "", 0644, 0, 2);
        tar_blocks(f, "1\n", 2);
        tar_header(f, '1', "a", "b/x", 0644, 0, 0);
        tar_header(f, '2', "l", "b/x", 0777, 0, 0);
        tar_end(f);
        import_good(f, (enum image_kind)kind, &archive);
        (void)text_format(path, sizeof path, "%s/folder-%d", f->directory, kind);
        assert_int_equal(mkdir(path, 0700), 0);
        CLEANUP_FD int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        assert_int_equal(mkdirat(root, "b", 0755), 0);
        CLEANUP_FD int fd = openat(root, "b/x", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        assert_int_equal(write(fd, "1\n", 2), 2);
        assert_int_equal(linkat(root, "b/x", root, "a", 0), 0);
        assert_int_equal(symlinkat("b/x", root, "l"), 0);
        const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = (time_t)f->changed_s}};
        assert_int_equal(futimens(fd, times), 0);
        struct pack_options options = pack_options_default((enum pack_kind)kind);
        tar_begin(f);
        assert_int_equal(pack_stream(path, &options, packed_cb, f, &e), 0);
        import_good(f, (enum image_kind)kind, &folder);
        assert_string_equal(folder.digest, archive.digest);
        assert_true(folder.existed);
    }
}

static void wanted_digest_is_enforced(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    char other[IMAGE_DIGEST_SIZE] = "sha256:";
    memset(other + 7, '0', 64);
    other[71] = '\0';
    tar_good(f);
    assert_int_equal(import_bytes(f, IMAGE_KIND_IMAGE, other, f->tar_size, &result, &e),
                     -ERR_INVALID);
    assert_non_null(strstr(e.msg, "has the digest sha256:"));
    assert_int_equal(store_entries(f), 0);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    struct image_import_result again;
    assert_int_equal(import_bytes(f, IMAGE_KIND_IMAGE, result.digest, f->tar_size, &again, &e), 0);
    assert_int_equal(import_bytes(f, IMAGE_KIND_IMAGE, "sha256:0", f->tar_size, &again, &e),
                     -ERR_INVALID);
}

/* --- what is refused -------------------------------------------------------------------------- */

struct hostile {
    char type;
    const char *name;
    const char *link;
    const char *word; /* in the error */
};

static void each_hostile_entry_is_refused(void **state)
{
    struct fixture *f = *state;
    static const struct hostile cases[] = {
        {'0', "/etc/passwd", "", "absolute path"},
        {'5', "/", "", "absolute path"},
        {'0', "../escape", "", ".. in its path"},
        {'0', "a/../../escape", "", ".. in its path"},
        {'0', "a/..", "", ".. in its path"},
        {'0', ".", "", "root is not a folder"},
        {'3', "dev/null", "", "a device node"},
        {'4', "dev/sda", "", "a device node"},
        {'6', "pipe", "", "a named pipe"},
        {'2', "out", "../etc/passwd", "leads out of the tree"},
        {'2', "a/out", "../../etc/passwd", "leads out of the tree"},
        {'2', "out", "/../etc/passwd", "leads out of the tree"},
        {'2', "empty", "", "no usable target"},
        {'1', "hard", "../outside", "leads out of the tree"},
        {'1', "hard", "/etc/passwd", "leads out of the tree"},
        {'1', "hard", "never/seen", "leads to nothing"},
        {'1', "hard", "folder", "does not lead to a file"},
        {'1', "hard", "link", "does not lead to a file"},
        {'1', "hard", "link/below", "leads to nothing"},
        {'0', "link/below", "", "through a symbolic link"},
        {'5', "link/below", "", "through a symbolic link"},
        {'2', "link/below", "x", "through a symbolic link"},
        {'1', "link/below", "file", "through a symbolic link"},
        {'0', "file/below", "", "through a file"},
        {'0', "folder", "", "as a folder and as something else"},
        {'2', "folder", "file", "as a folder and as something else"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        tar_begin(f);
        tar_header(f, '5', "folder", "", 0755, 0, 0);
        tar_file(f, "folder/inner", 0644, "x");
        tar_header(f, '2', "link", "folder", 0777, 0, 0);
        tar_file(f, "file", 0644, "x");
        tar_header(f, cases[i].type, cases[i].name, cases[i].link, 0755, 0, 0);
        tar_end(f);
        import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, cases[i].word);
        import_refused(f, IMAGE_KIND_SOURCE, f->tar_size, ERR_INVALID, cases[i].word);
    }
}

static void absolute_link_outside_is_never_written_through(void **state)
{
    struct fixture *f = *state;
    char outside[80];
    char link[96];
    (void)text_format(outside, sizeof outside, "%s/outside", f->directory);
    assert_int_equal(mkdir(outside, 0777), 0);
    (void)text_format(link, sizeof link, "%s", outside);
    tar_begin(f);
    tar_header(f, '2', "door", link, 0777, 0, 0);
    tar_file(f, "door/planted", 0644, "x");
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "through a symbolic link");
    assert_int_equal(rmdir(outside), 0); /* still empty */
}

static void owner_outside_of_the_range_is_refused(void **state)
{
    struct fixture *f = *state;
    tar_begin(f);
    tar_header(f, '0', "file", "", 0644, 65536, 0);
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "above 65535");
}

static void bounds_are_kept(void **state)
{
    struct fixture *f = *state;
    char name[32];
    tar_begin(f);
    for (int i = 0; i < 501; i++) {
        (void)text_format(name, sizeof name, "file-%d", i);
        tar_file(f, name, 0644, "");
    }
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "more than 500 files");

    /* Folders that no entry names count as well. */
    tar_begin(f);
    for (int i = 0; i < 60; i++) {
        (void)text_format(name, sizeof name, "%d/a/b/c/d/e/f/g/h/i/j", i);
        tar_file(f, name, 0644, "");
    }
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "more than 500 folders");

    tar_begin(f);
    tar_file(f, "1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21", 0644, "");
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "deeper than 20");

    tar_begin(f);
    tar_header(f, '0', "large", "", 0644, 0, (1u << 20) + 1);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "more than 1048576 bytes");

    /* A second name for a file is as good as a second file: the digest reads both. */
    char *half = calloc(1, (600u << 10) + 1);
    assert_non_null(half);
    memset(half, 'x', 600u << 10);
    tar_begin(f);
    tar_file(f, "one", 0644, half);
    tar_header(f, '1', "two", "one", 0644, 0, 0);
    tar_end(f);
    free(half);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "more than 1048576 bytes");
}

static void compressed_bomb_ends_at_the_bound(void **state)
{
    struct fixture *f = *state;
    tar_begin(f);
    tar_header(f, '0', "zeros", "", 0644, 0, 3u << 20);
    memset(f->tar + f->tar_size, 0, 3u << 20);
    f->tar_size += 3u << 20;
    tar_end(f);
    tar_compress(f, archive_write_add_filter_gzip);
    assert_true(f->tar_size < 16 * 1024);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_LIMIT, "more than 1048576 bytes");
}

static void sparse_file_is_refused(void **state)
{
    struct fixture *f = *state;
    static const char record[] = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
                                 "28 GNU.sparse.name=hollow01\n"
                                 "30 GNU.sparse.realsize=500000\n";
    tar_begin(f);
    tar_header(f, 'x', "PaxHeaders/x", "", 0644, 0, sizeof record - 1);
    tar_blocks(f, record, sizeof record - 1);
    char map[513] = "1\n499999\n1\n";
    map[512] = 'x';
    tar_header(f, '0', "hollow", "", 0644, 0, sizeof map);
    tar_blocks(f, map, sizeof map);
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "is sparse");
}

static void cut_archive_is_refused_wherever_it_is_cut(void **state)
{
    struct fixture *f = *state;
    tar_good(f);
    size_t end = f->tar_size - 1024;
    import_refused(f, IMAGE_KIND_IMAGE, 0, ERR_INVALID, "is empty");
    import_refused(f, IMAGE_KIND_IMAGE, end, ERR_INVALID, "end is missing");
    import_refused(f, IMAGE_KIND_IMAGE, end - 100, ERR_INVALID, "cut off");
    import_refused(f, IMAGE_KIND_IMAGE, 3 * 512, ERR_INVALID, "cut off");
    import_refused(f, IMAGE_KIND_IMAGE, 1024, ERR_INVALID, "end is missing");
    tar_compress(f, archive_write_add_filter_zstd);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size / 2, ERR_INVALID, "cut off");
    tar_begin(f);
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "is empty");
}

static void what_is_no_tar_is_refused(void **state)
{
    struct fixture *f = *state;
    static const char zip[] = "PK\003\004 this could be a zip archive, but it is text only";
    tar_begin(f);
    tar_blocks(f, zip, sizeof zip);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "not a tar archive");
    for (size_t i = 0; i < 4096; i++)
        f->tar[i] = (unsigned char)(i * 7 + i / 3);
    f->tar_size = 4096;
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "not a tar archive");
}

static void garbage_behind_the_end_is_bounded(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    tar_good(f);
    memset(f->tar + f->tar_size, 0, 9000);
    f->tar_size += 9000;
    import_good(f, IMAGE_KIND_IMAGE, &result);
    tar_good(f);
    memset(f->tar + f->tar_size, 'x', 2u << 20);
    f->tar_size += 2u << 20;
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "behind the end");
}

static void archives_of_layers_are_recognised(void **state)
{
    struct fixture *f = *state;
    tar_begin(f);
    tar_file(f, "0123/VERSION", 0644, "1.0");
    tar_file(f, "0123/json", 0644, "{}");
    tar_file(f, "0123/layer.tar", 0644, "x");
    tar_file(f, "manifest.json", 0644, "[]");
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "docker export");
    tar_begin(f);
    tar_file(f, "blobs/sha256/0123", 0644, "x");
    tar_file(f, "index.json", 0644, "{}");
    tar_file(f, "manifest.json", 0644, "[]");
    tar_file(f, "oci-layout", 0644, "{}");
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "docker save");
    tar_begin(f);
    tar_file(f, "oci-layout", 0644, "{}");
    tar_file(f, "index.json", 0644, "{}");
    tar_file(f, "blobs/sha256/0123", 0644, "x");
    tar_end(f);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "OCI image layout");
    /* A source may well hold a manifest.json. */
    struct image_import_result result;
    import_good(f, IMAGE_KIND_SOURCE, &result);
}

static void silent_sender_times_out(void **state)
{
    struct fixture *f = *state;
    struct image_import *import;
    struct image_import_result result;
    struct image_import_options options = {.kind = IMAGE_KIND_IMAGE};
    struct err e;
    CLEANUP_FD int fd = -1;
    f->options.image.idle_seconds_max = 1;
    reopen(f);
    assert_int_equal(image_import_start(&import, f->store, &options, &fd, &e), 0);
    struct pollfd wait = {.fd = image_import_fd(import), .events = POLLIN};
    assert_int_equal(poll(&wait, 1, DEADLINE_MS), 1);
    assert_int_equal(image_import_end(import, &result, &e), -ERR_TIMEOUT);
    f->options.image.idle_seconds_max = 20;
    reopen(f);
    assert_int_equal(store_entries(f), 0);
}

/* --- the store -------------------------------------------------------------------------------- */

static void layer_in_use_is_not_removed(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    size_t count = 0;
    tar_good(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_int_equal(image_layer_hold(f->store, result.digest, IMAGE_KIND_IMAGE, &e), 0);
    assert_int_equal(image_layer_hold(f->store, result.digest, IMAGE_KIND_IMAGE, &e), 0);
    image_layer_release(f->store, result.digest);
    assert_int_equal(image_store_list(f->store, &count)[0]->users, 1);
    assert_int_equal(image_layer_remove(f->store, result.digest, &e), -ERR_CONFLICT);
    assert_non_null(strstr(e.msg, "1 running instance"));
    image_layer_release(f->store, result.digest);
    assert_int_equal(image_layer_remove(f->store, result.digest, &e), 0);
    assert_int_equal(image_layer_remove(f->store, result.digest, &e), -ERR_NOT_FOUND);
    image_store_list(f->store, &count);
    assert_int_equal(count, 0);
    reopen(f); /* waits for the deletion */
    assert_int_equal(store_entries(f), 0);
}

static void layers_survive_a_restart_and_leftovers_do_not(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    char path[160];
    tar_good(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    /* As an import that was killed leaves it, with a folder nobody can read and a deep one. */
    (void)text_format(path, sizeof path, "%s/images/tmp-0123456789abcdef", f->directory);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)text_format(path, sizeof path, "%s/images/tmp-0123456789abcdef/tree", f->directory);
    CLEANUP_FD int fd = open("/", O_PATH | O_DIRECTORY);
    for (int i = 0; i < 1500; i++) {
        assert_int_equal(mkdirat(fd, path, 0), 0);
        int next = openat(fd, path, O_PATH | O_DIRECTORY);
        assert_true(next >= 0);
        memory_close(&fd);
        fd = next;
        (void)text_copy(path, sizeof path, "deeper-and-deeper");
    }
    reopen(f); /* the first sweeps, */
    reopen(f); /* the second waits for that */
    assert_int_equal(store_entries(f), 1);
    size_t count = 0;
    const struct image_layer *const *layers = image_store_list(f->store, &count);
    assert_int_equal(count, 1);
    assert_string_equal(layers[0]->digest, result.digest);
    assert_int_equal(layers[0]->kind, IMAGE_KIND_IMAGE);
    assert_int_equal(layers[0]->files, result.files);
    assert_int_equal(layers[0]->bytes, result.bytes);
    assert_int_equal(image_layer_hold(f->store, result.digest, IMAGE_KIND_IMAGE, &e), 0);
}

static void canceled_import_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct image_import *import;
    struct image_import_options options = {.kind = IMAGE_KIND_IMAGE};
    struct err e;
    CLEANUP_FD int fd = -1;
    tar_good(f);
    assert_int_equal(image_import_start(&import, f->store, &options, &fd, &e), 0);
    assert_int_equal(write(fd, f->tar, 1024), 1024);
    uint64_t deadline = clock_monotonic_ms() + DEADLINE_MS;
    while (store_entries(f) == 0)
        assert_true(clock_monotonic_ms() < deadline);
    image_import_cancel(import);
    reopen(f);
    assert_int_equal(store_entries(f), 0);
}

static void imports_at_the_same_time_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct image_import *imports[5] = {NULL};
    struct image_import_options options = {.kind = IMAGE_KIND_IMAGE};
    struct err e;
    int fds[5] = {-1, -1, -1, -1, -1};
    for (int i = 0; i < 4; i++)
        assert_int_equal(image_import_start(&imports[i], f->store, &options, &fds[i], &e), 0);
    assert_int_equal(image_import_start(&imports[4], f->store, &options, &fds[4], &e), -ERR_LIMIT);
    for (int i = 0; i < 4; i++) {
        image_import_cancel(imports[i]);
        memory_close(&fds[i]);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
        return image_import_main();
    if (geteuid() != 0) {
        printf("skipped: the image store needs root\n");
        return 0;
    }
    /* As the runner has it: where images are mounted is nobody else's. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
        return 1;
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(image_is_unpacked_with_owners_and_without_setuid),
        T(every_compression_gives_the_same_digest),
        T(order_does_not_change_the_digest_but_mode_and_time_do),
        T(digest_is_that_of_the_written_format),
        T(files_of_images_keep_their_time_and_sources_have_one),
        T(source_is_normalized_and_apart_from_images),
        T(long_and_foreign_names_are_kept),
        T(packed_folder_has_the_digest_of_the_archive),
        T(wanted_digest_is_enforced),
        T(each_hostile_entry_is_refused),
        T(absolute_link_outside_is_never_written_through),
        T(owner_outside_of_the_range_is_refused),
        T(bounds_are_kept),
        T(compressed_bomb_ends_at_the_bound),
        T(sparse_file_is_refused),
        T(cut_archive_is_refused_wherever_it_is_cut),
        T(what_is_no_tar_is_refused),
        T(garbage_behind_the_end_is_bounded),
        T(archives_of_layers_are_recognised),
        T(silent_sender_times_out),
        T(layer_in_use_is_not_removed),
        T(layers_survive_a_restart_and_leftovers_do_not),
        T(canceled_import_leaves_nothing),
        T(imports_at_the_same_time_are_bounded),
    };
#undef T
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
