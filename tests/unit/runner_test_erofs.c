/* Images kept as erofs: they show what a folder would, are mounted while they are needed and not longer,
 * and stay folders where erofs cannot be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "sandbox/runner/image_mount.h"
#include "sandbox/runner/image_names.h"
#include "tests/lib/image_fixture.h"

#define LISTING_SIZE (1u << 20)
#define WAIT_MS 20000

static int setup_with(void **state, bool erofs, bool by_loop)
{
    int rc = setup(state);
    struct fixture *f = *state;
    f->options.erofs = erofs;
    f->options.erofs_by_loop = by_loop;
    f->options.image.bytes_max = 64u << 20;
    f->options.image.files_max = 10000;
    if (rc == 0)
        reopen(f);
    return rc;
}

static int setup_erofs(void **state)
{
    return setup_with(state, true, false);
}

static int setup_loop(void **state)
{
    return setup_with(state, true, true);
}

/* --- what is looked at ------------------------------------------------------------------------ */

/* Lines of a file that hold `text`. */
static size_t lines_with(const char *path, const char *text)
{
    char line[4096];
    size_t count = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL)
        count += strstr(line, text) != NULL;
    fclose(file);
    return count;
}

static size_t mounts_of(const struct fixture *f)
{
    return lines_with("/proc/self/mountinfo", f->directory);
}

static size_t loops_of(const struct fixture *f)
{
    size_t count = 0;
    for (int i = 0; i < 256; i++) {
        char path[64];
        (void)text_format(path, sizeof path, "/sys/block/loop%d/loop/backing_file", i);
        count += lines_with(path, f->directory);
    }
    return count;
}

/* What a kernel still does in the background: the last user of a loop device is gone. */
static void assert_no_loops(const struct fixture *f)
{
    uint64_t deadline = clock_monotonic_ms() + WAIT_MS;
    while (loops_of(f) > 0) {
        assert_true(clock_monotonic_ms() < deadline);
        (void)poll(NULL, 0, 10);
    }
}

static bool is_named(const struct fixture *f)
{
    char path[128];
    const struct dirent *entry;
    bool found = false;
    (void)text_format(path, sizeof path, "%s/images", f->directory);
    DIR *stream = opendir(path);
    assert_non_null(stream);
    while ((entry = readdir(stream)) != NULL)
        found = found || strncmp(entry->d_name, "sha256-", 7) == 0;
    closedir(stream);
    return found;
}

static bool layer_has(const struct fixture *f, const char *digest, const char *name)
{
    char path[256];
    char layer[IMAGE_LAYER_NAME_SIZE];
    image_layer_name(layer, digest);
    (void)text_format(path, sizeof path, "%s/images/%s/%s", f->directory, layer, name);
    return access(path, F_OK) == 0;
}

static const struct image_layer *layer_of(const struct fixture *f, const char *digest)
{
    size_t count = 0;
    const struct image_layer *const *layers = image_store_list(f->store, &count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(layers[i]->digest, digest) == 0)
            return layers[i];
    fail_msg("no layer %s", digest);
    return NULL;
}

static int tree_open(const struct fixture *f, const char *digest)
{
    struct err e;
    int fd = -1;
    if (image_layer_path_fd(f->store, digest, IMAGE_KIND_IMAGE, &fd, &e) != 0)
        fail_msg("%s", e.msg);
    return fd;
}

struct listing {
    char *text; /* LISTING_SIZE */
    size_t used;
};

static void list_entry(struct listing *l, int folder, const char *path, const char *name)
{
    struct stat st;
    char detail[4096] = "";
    assert_int_equal(fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW), 0);
    if (S_ISLNK(st.st_mode)) {
        assert_true(readlinkat(folder, name, detail, sizeof detail - 1) > 0);
    } else if (S_ISREG(st.st_mode)) {
        unsigned char block[65536];
        uint64_t hash = 1469598103934665603u; /* FNV-1a */
        CLEANUP_FD int fd = openat(folder, name, O_RDONLY);
        ssize_t n;
        assert_true(fd >= 0);
        while ((n = read(fd, block, sizeof block)) > 0)
            for (ssize_t i = 0; i < n; i++)
                hash = (hash ^ block[i]) * 1099511628211u;
        assert_int_equal(n, 0);
        (void)text_format(detail, sizeof detail, "%llu bytes, %016llx",
                          (unsigned long long)st.st_size, (unsigned long long)hash);
    }
    assert_true(text_format(l->text + l->used, LISTING_SIZE - l->used, "%s %o %u:%u %u %s\n", path,
                            st.st_mode, st.st_uid, st.st_gid,
                            S_ISDIR(st.st_mode) ? 0 : (unsigned)st.st_nlink, detail));
    l->used += strlen(l->text + l->used);
}

static void list_folder(struct listing *l, int folder, const char *above)
{
    struct image_names names = {0};
    struct err e;
    assert_int_equal(image_names_read(&names, folder, 10000, &e), 0);
    for (size_t i = 0; i < names.count; i++) {
        char path[4096];
        assert_true(text_format(path, sizeof path, "%s/%s", above, names.items[i]));
        list_entry(l, folder, path, names.items[i]);
        int fd = openat(folder, names.items[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (fd >= 0) {
            list_folder(l, fd, path);
            close(fd);
        }
    }
    image_names_free(&names);
}

/* Everything of a tree that code inside can see of it, but for times and numbers of inodes. */
static char *tree_text(const struct fixture *f, const char *digest)
{
    struct listing l = {.text = calloc(1, LISTING_SIZE)};
    CLEANUP_FD int tree = tree_open(f, digest);
    assert_non_null(l.text);
    list_entry(&l, tree, "", ".");
    list_folder(&l, tree, "");
    return l.text;
}

/* --- archives --------------------------------------------------------------------------------- */

static void tar_folder(struct fixture *f, const char *name, unsigned mode, unsigned owner)
{
    tar_header(f, '5', name, "", mode, owner, 0);
}

/* With a name that has no place in a header of tar. */
static void tar_long(struct fixture *f, const char *name)
{
    tar_header(f, 'L', "././@LongLink", "", 0, 0, strlen(name) + 1);
    tar_blocks(f, name, strlen(name) + 1);
    tar_file(f, "cut", 0644, "long");
}

/* What an image can have that is not usual. */
static void tar_odd(struct fixture *f)
{
    static unsigned char large[300001];
    char name[300];
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (unsigned char)(i * 7 + i / 4096);
    tar_begin(f);
    tar_folder(f, "./", 0755, 0);
    tar_folder(f, "bin/", 0755, 0);
    tar_file(f, "bin/su", 06755, "setuid and setgid");
    tar_header(f, '1', "bin/also", "bin/su", 0755, 0, 0);
    tar_header(f, '1', "bin/again", "bin/su", 0755, 0, 0);
    tar_header(f, '2', "bin/link", "../home/user/deep", 0777, 77, 0);
    tar_folder(f, "home/", 0711, 65535);
    tar_folder(f, "home/user/", 0700, 1000);
    tar_header(f, '0', "home/user/secret", "", 0, 65534, 5);
    tar_blocks(f, "abcde", 5);
    tar_header(f, '0', "home/user/empty", "", 0600, 1000, 0);
    tar_header(f, '0', "large", "", 0644, 33, sizeof large);
    tar_blocks(f, large, sizeof large);
    tar_header(f, '0', "block", "", 0444, 0, 4096);
    tar_blocks(f, large, 4096);
    tar_folder(f, "tmp/", 01777, 0);
    /* Names that mean something to overlays and to this store. */
    tar_file(f, "bin/.wh.gone", 0644, "");
    tar_file(f, "tmp/.wh..wh..opq", 0644, "");
    tar_file(f, "erofs", 0644, "not what is mounted");
    tar_file(f, "meta", 0644, "skerry-layer 9\n");
    tar_folder(f, "tree/", 0755, 0);
    tar_folder(f, "many/", 0755, 0);
    for (int i = 0; i < 700; i++) {
        (void)text_format(name, sizeof name, "many/file-with-a-name-%d", i);
        tar_file(f, name, 0640, name);
    }
    memset(name, 'n', 254);
    name[254] = '\0';
    tar_long(f, name);
    (void)text_copy(name, sizeof name, "caf\xc3\xa9 \xe6\x97\xa5 \"quoted\" tab\there");
    tar_file(f, name, 0644, "foreign");
    tar_end(f);
}

/* Differs from others by its number. */
static void tar_small(struct fixture *f, int number)
{
    char text[32];
    (void)text_format(text, sizeof text, "%d", number);
    tar_begin(f);
    tar_file(f, "number", 0644, text);
    tar_end(f);
}

static void import_small(struct fixture *f, int number, char digest[IMAGE_DIGEST_SIZE])
{
    struct image_import_result result;
    tar_small(f, number);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    (void)text_copy(digest, IMAGE_DIGEST_SIZE, result.digest);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void erofs_shows_what_the_folder_does(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    struct err e;
    tar_odd(f);
    f->options.erofs = false;
    reopen(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_false(layer_of(f, result.digest)->erofs);
    char *folder = tree_text(f, result.digest);
    assert_non_null(strstr(folder, "/bin/su 100755 2146435072:2146435072 3 17 bytes"));
    assert_non_null(strstr(folder, "/home/user/secret 100000 2146500606:"));
    /* One that is a folder already stays one. */
    f->options.erofs = true;
    reopen(f);
    struct image_import_result again;
    import_good(f, IMAGE_KIND_IMAGE, &again);
    assert_true(again.existed);
    assert_false(layer_of(f, result.digest)->erofs);
    assert_int_equal(image_layer_remove(f->store, result.digest, &e), 0);
    import_good(f, IMAGE_KIND_IMAGE, &again);
    assert_false(again.existed);
    assert_string_equal(again.digest, result.digest);
    assert_int_equal(again.files, result.files);
    assert_true(layer_of(f, result.digest)->erofs);
    assert_true(layer_has(f, result.digest, "erofs"));
    assert_int_equal(mounts_of(f), 1); /* what the import has read is kept */
    char *shown = tree_text(f, result.digest);
    assert_string_equal(shown, folder);
    assert_int_equal(mounts_of(f), 1);
    assert_int_equal(loops_of(f), f->options.erofs_by_loop ? 1 : 0);
    free(shown);
    /* After a restart it is found, and shows the same. */
    reopen(f);
    assert_int_equal(mounts_of(f), 0);
    assert_false(layer_has(f, result.digest, "tree/bin"));
    shown = tree_text(f, result.digest);
    assert_string_equal(shown, folder);
    assert_int_equal(mounts_of(f), 1);
    /* It is there already: another import of it leaves no second mount. */
    import_good(f, IMAGE_KIND_IMAGE, &again);
    assert_true(again.existed);
    assert_int_equal(mounts_of(f), 1);
    free(shown);
    free(folder);
}

static void erofs_is_read_only_and_roots_alone(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    char path[256];
    char name[IMAGE_LAYER_NAME_SIZE];
    struct stat st;
    tar_odd(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    CLEANUP_FD int tree = tree_open(f, result.digest);
    assert_int_equal(openat(tree, "large", O_WRONLY), -1);
    assert_int_equal(errno, EROFS);
    assert_int_equal(openat(tree, "new", O_WRONLY | O_CREAT, 0600), -1);
    assert_int_equal(errno, EROFS);
    image_layer_name(name, result.digest);
    (void)text_format(path, sizeof path, "%s/images/%s/erofs", f->directory, name);
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_uid, 0);
    assert_int_equal(st.st_mode, S_IFREG | 0400);
}

/* An image of erofs is no archive; in one, whatever it is called, it is a file as any other. */
static void erofs_of_a_client_is_never_mounted(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    char digest[IMAGE_DIGEST_SIZE], path[256], name[IMAGE_LAYER_NAME_SIZE];
    static unsigned char ours[65536];
    import_small(f, 1, digest);
    image_layer_name(name, digest);
    (void)text_format(path, sizeof path, "%s/images/%s/erofs", f->directory, name);
    CLEANUP_FD int file = open(path, O_RDONLY);
    ssize_t size = read(file, ours, sizeof ours);
    assert_true(size > 1024 && size < (ssize_t)sizeof ours);
    tar_begin(f);
    tar_blocks(f, ours, (size_t)size);
    import_refused(f, IMAGE_KIND_IMAGE, f->tar_size, ERR_INVALID, "archive");
    tar_begin(f);
    tar_header(f, '0', "erofs", "", 0644, 0, (uint64_t)size);
    tar_blocks(f, ours, (size_t)size);
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    CLEANUP_FD int tree = tree_open(f, result.digest);
    assert_int_equal(faccessat(tree, "erofs", R_OK, 0), 0);
    assert_int_not_equal(faccessat(tree, "number", R_OK, 0), 0);
}

static void sources_stay_folders(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    tar_odd(f);
    import_good(f, IMAGE_KIND_SOURCE, &result);
    assert_false(layer_of(f, result.digest)->erofs);
    assert_true(layer_has(f, result.digest, "tree/bin"));
}

/* A folder with a program of another kind by the name of the tool. */
static void tool_is(struct fixture *f, const char *program, char folder[128])
{
    char path[160];
    (void)text_format(folder, 128, "%s/tools", f->directory);
    (void)text_format(path, sizeof path, "%s/mkfs.erofs", folder);
    (void)mkdir(folder, 0755);
    (void)unlink(path);
    assert_int_equal(symlink(program, path), 0);
    f->options.tool_folders = folder;
    reopen(f);
}

static void image_stays_a_folder_where_erofs_cannot_be(void **state)
{
    struct fixture *f = *state;
    char folder[128], digest[IMAGE_DIGEST_SIZE];
    f->options.tool_folders = "/usr/share:/nowhere:";
    reopen(f);
    for (int i = 0; i < 2; i++) {
        import_small(f, i, digest);
        assert_false(layer_of(f, digest)->erofs);
        assert_true(layer_has(f, digest, "tree/number"));
        assert_true(f->store->folders_told);
    }
    /* One that fails, one that writes nothing, and one that root did not install. */
    static const char *const programs[] = {"/usr/bin/false", "/usr/bin/true", "/tmp/mkfs.erofs"};
    for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
        tool_is(f, programs[i], folder);
        import_small(f, 10 + (int)i, digest);
        assert_false(layer_of(f, digest)->erofs);
        assert_false(layer_has(f, digest, "erofs"));
        assert_true(layer_has(f, digest, "tree/number"));
        assert_int_equal(mounts_of(f), 0);
    }
}

/* mkfs.erofs 1.5 has names of at most 254 bytes. Whether it can or not, the image is whole. */
static void longest_name_is_kept(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    char name[256];
    memset(name, 'n', 255);
    name[255] = '\0';
    tar_begin(f);
    tar_long(f, name);
    tar_end(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    CLEANUP_FD int tree = tree_open(f, result.digest);
    assert_int_equal(faccessat(tree, name, R_OK, 0), 0);
}

/* Wherever it is killed: while it reads, while mkfs.erofs writes, while the result is looked at, and when
 * the layer has its name but nobody was told. */
static void killed_import_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    tar_odd(f);
    for (int round = 0; round < 32; round++) {
        struct image_import *import;
        const struct image_import_options options = {.kind = IMAGE_KIND_IMAGE};
        struct err e;
        int fd = -1;
        assert_int_equal(image_import_start(&import, f->store, &options, &fd, &e), 0);
        for (size_t sent = 0; sent < f->tar_size;) {
            ssize_t n = write(fd, f->tar + sent, f->tar_size - sent);
            assert_true(n > 0);
            sent += (size_t)n;
        }
        close(fd);
        /* As soon as it has mounted something, and a little later; as soon as it is named. */
        struct pollfd ended = {.fd = image_import_fd(import), .events = POLLIN};
        if (round < 12)
            (void)poll(NULL, 0, round * 8);
        else if (round < 24)
            while (mounts_of(f) == 0 && poll(&ended, 1, 1) == 0)
                ;
        else
            while (!is_named(f) && poll(&ended, 1, 0) == 0)
                ;
        if (round > 16 && round < 24)
            (void)poll(NULL, 0, round - 16);
        image_import_cancel(import);
        reopen(f); /* waits for the deletion */
        size_t count = 0;
        (void)image_store_list(f->store, &count);
        assert_int_equal(store_entries(f), count);
        assert_int_equal(mounts_of(f), 0);
        for (size_t i = 0; i < count; i++) {
            const struct image_layer *layer = image_store_list(f->store, &count)[0];
            char digest[IMAGE_DIGEST_SIZE];
            (void)text_copy(digest, sizeof digest, layer->digest);
            assert_int_equal(image_layer_remove(f->store, digest, &e), 0);
        }
    }
    assert_no_loops(f);
}

static void layer_in_use_stays_mounted_and_a_removed_one_does_not(void **state)
{
    struct fixture *f = *state;
    struct err e;
    char digest[IMAGE_DIGEST_SIZE];
    import_small(f, 1, digest);
    assert_int_equal(image_layer_hold(f->store, digest, IMAGE_KIND_IMAGE, &e), 0);
    int tree = tree_open(f, digest);
    assert_int_equal(mounts_of(f), 1);
    assert_int_equal(image_layer_remove(f->store, digest, &e), -ERR_CONFLICT);
    assert_int_equal(faccessat(tree, "number", R_OK, 0), 0);
    assert_int_equal(mounts_of(f), 1);
    close(tree);
    image_layer_release(f->store, digest);
    assert_int_equal(image_layer_remove(f->store, digest, &e), 0);
    assert_int_equal(mounts_of(f), 0);
    reopen(f); /* waits for the deletion */
    assert_int_equal(store_entries(f), 0);
    assert_no_loops(f);
}

static void idle_mounts_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct err e;
    static char digests[IMAGE_MOUNTS_IDLE_MAX + 3][IMAGE_DIGEST_SIZE];
    for (size_t i = 0; i < ARRAY_SIZE(digests); i++)
        import_small(f, (int)i, digests[i]);
    /* The first is in use, so it does not count; of the others the longest unused goes. */
    assert_int_equal(image_layer_hold(f->store, digests[0], IMAGE_KIND_IMAGE, &e), 0);
    for (size_t i = 0; i < ARRAY_SIZE(digests); i++) {
        CLEANUP_FD int tree = tree_open(f, digests[i]);
        assert_int_equal(faccessat(tree, "number", R_OK, 0), 0);
    }
    assert_int_equal(mounts_of(f), IMAGE_MOUNTS_IDLE_MAX + 1);
    assert_true(layer_of(f, digests[0])->mounted);
    assert_false(layer_of(f, digests[1])->mounted);
    assert_false(layer_of(f, digests[2])->mounted);
    assert_true(layer_of(f, digests[3])->mounted);
    CLEANUP_FD int tree = tree_open(f, digests[1]);
    assert_int_equal(faccessat(tree, "number", R_OK, 0), 0);
    assert_false(layer_of(f, digests[3])->mounted);
    image_layer_release(f->store, digests[0]);
}

/* The kernel was changed for one without erofs: such layers are not there, and can be imported anew. */
static void kernel_without_erofs_takes_the_image_anew(void **state)
{
    struct fixture *f = *state;
    struct image_import_result result;
    size_t count = 1;
    tar_odd(f);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_true(layer_of(f, result.digest)->erofs);
    char *before = tree_text(f, result.digest);
    reopen(f);
    /* As if it had been asked and had none: the layer is left out when the store is read again. */
    image_store_close(f->store);
    f->store = NULL;
    f->options.kernel_has_none = true;
    struct err e;
    assert_int_equal(image_store_open(&f->store, &f->options, &e), 0);
    (void)image_store_list(f->store, &count);
    assert_int_equal(count, 0);
    import_good(f, IMAGE_KIND_IMAGE, &result);
    assert_false(result.existed);
    assert_false(layer_of(f, result.digest)->erofs);
    char *after = tree_text(f, result.digest);
    assert_string_equal(after, before);
    free(before);
    free(after);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
        return image_import_main();
    char tool[IMAGE_TOOL_SIZE];
    struct err e;
    if (geteuid() != 0 || image_erofs_in_kernel(&e) != 0 || image_erofs_tool(tool, NULL, &e) != 0) {
        printf("skipped: needs root, erofs in the kernel and mkfs.erofs\n");
        return 0;
    }
    /* As the runner has it. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
        return 1;
#define E(name) cmocka_unit_test_setup_teardown(name, setup_erofs, teardown)
#define L(name) cmocka_unit_test_setup_teardown(name, setup_loop, teardown)
    const struct CMUnitTest tests[] = {
        E(erofs_shows_what_the_folder_does),
        L(erofs_shows_what_the_folder_does),
        E(erofs_is_read_only_and_roots_alone),
        E(erofs_of_a_client_is_never_mounted),
        E(sources_stay_folders),
        E(image_stays_a_folder_where_erofs_cannot_be),
        E(longest_name_is_kept),
        E(killed_import_leaves_nothing),
        L(killed_import_leaves_nothing),
        E(layer_in_use_stays_mounted_and_a_removed_one_does_not),
        L(layer_in_use_stays_mounted_and_a_removed_one_does_not),
        E(idle_mounts_are_bounded),
        E(kernel_without_erofs_takes_the_image_anew),
    };
#undef E
#undef L
    return cmocka_run_group_tests_name("erofs", tests, NULL, NULL);
}
