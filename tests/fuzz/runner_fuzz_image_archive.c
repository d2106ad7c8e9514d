/* Archives of strangers: everything up to the file system. The sink asserts what every path and
 * mode that reaches it must be. */
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/image_entry.h"

#define ENTRY_MAX 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_path(const char *path)
{
    assert_always(path[0] != '\0' && path[0] != '/' && strlen(path) < PATH_MAX);
    for (const char *at = path; *at != '\0';) {
        size_t part = strcspn(at, "/");
        assert_always(part > 0 && part <= 255);
        assert_always(!(part == 1 && at[0] == '.') && !(part == 2 && memcmp(at, "..", 2) == 0));
        at += part;
        assert_always(*at == '\0' || at[1] != '\0');
        at += *at == '/';
    }
}

static int take_folder(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid,
                       struct err *e)
{
    (void)user;
    (void)e;
    check_path(path);
    assert_always((mode & ~(mode_t)01777) == 0 && uid <= 65535 && gid <= 65535);
    return 0;
}

static int take_file(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid,
                     uint32_t changed_s, struct err *e)
{
    (void)changed_s; /* any is one */
    assert_always((mode & ~(mode_t)0777) == 0);
    return take_folder(user, path, mode, uid, gid, e);
}

static int take_data(void *user, const void *data, size_t length, struct err *e)
{
    uint64_t *bytes = user;
    (void)data;
    (void)e;
    *bytes += length;
    assert_always(*bytes <= 1u << 20);
    return 0;
}

static int end_file(void *user, struct err *e)
{
    (void)user;
    (void)e;
    return 0;
}

static int take_link(void *user, const char *path, const char *target, uid_t uid, gid_t gid,
                     struct err *e)
{
    assert_always(image_link_stays(path, target));
    return take_folder(user, path, 0, uid, gid, e);
}

static int take_hard_link(void *user, const char *path, const char *existing, uint64_t *out_bytes,
                          struct err *e)
{
    (void)user;
    (void)e;
    check_path(path);
    check_path(existing);
    *out_bytes = 1;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t bytes = 0;
    const struct image_sink sink = {
        .user = &bytes,
        .folder = take_folder,
        .file_begin = take_file,
        .file_data = take_data,
        .file_end = end_file,
        .link = take_link,
        .hard_link = take_hard_link,
    };
    if (size == 0)
        return 0;
    const struct image_bounds bounds = {.bytes_max = 1u << 20,
                                        .files_max = ENTRY_MAX,
                                        .depth_max = 32,
                                        .idle_seconds_max = 1,
                                        .ids = {0, data[0] % 4 < 2 ? 65536 : 1}};
    enum image_kind kind = data[0] % 2 == 0 ? IMAGE_KIND_IMAGE : IMAGE_KIND_SOURCE;
    struct archive *reader = image_reader_new();
    struct image_count count;
    struct err e = {0};
    assert_always(reader != NULL);
    int rc;
    if (archive_read_open_memory(reader, data + 1, size - 1) != ARCHIVE_OK)
        rc = image_reader_refusal(reader, &bounds, &e);
    else
        rc = image_reader_run(reader, kind, &bounds, &sink, &count, &e);
    assert_always(rc == 0 || e.msg[0] != '\0');
    for (const char *c = e.msg; *c != '\0'; c++)
        assert_always((unsigned char)*c >= 0x20 && (unsigned char)*c < 0x7f);
    archive_read_free(reader);
    return 0;
}
