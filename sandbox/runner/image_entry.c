#include "sandbox/runner/image_entry.h"

#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"

#define NAME_LENGTH_MAX 255
#define SHOWN_SIZE 128
/* What the headers of one entry may take: names, pax headers with attributes that are not kept. */
#define HEADER_BYTES_MAX (4 * 1024 * 1024)

struct reading {
    struct archive *reader;
    enum image_kind kind;
    const struct image_bounds *bounds;
    const struct image_sink *sink;
    struct image_count count;
    int64_t content_end; /* of the last entry, in the unpacked stream */
    bool manifest;       /* manifest.json at the top */
    bool oci_layout;     /* oci-layout at the top */
    bool blobs;          /* blobs/ at the top */
    bool layer_tar;      /* some NAME/layer.tar */
    char path[PATH_MAX]; /* of the current entry */
    char shown[SHOWN_SIZE];
};

const char *image_printable(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (; n + 1 < size && text[n] != '\0'; n++) {
        unsigned char c = (unsigned char)text[n];
        out[n] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    if (text[n] != '\0' && n >= 3)
        memcpy(out + n - 3, "...", 3);
    out[n] = '\0';
    return out;
}

int image_path_normalize(char out[PATH_MAX], const char *name, uint32_t depth_max, struct err *e)
{
    char shown[SHOWN_SIZE];
    if (name[0] == '/')
        return err_set(e, ERR_INVALID,
                       "the entry %s has an absolute path; make the archive with "
                       "tar -C FOLDER -cf FILE .",
                       image_printable(shown, sizeof shown, name));
    size_t length = 0;
    uint32_t depth = 0;
    const char *at = name;
    while (*at != '\0') {
        size_t part = strcspn(at, "/");
        if (part == 2 && at[0] == '.' && at[1] == '.')
            return err_set(e, ERR_INVALID, "the entry %s has .. in its path",
                           image_printable(shown, sizeof shown, name));
        if (part > NAME_LENGTH_MAX)
            return err_set(e, ERR_LIMIT, "the entry %s has a name longer than %d bytes",
                           image_printable(shown, sizeof shown, name), NAME_LENGTH_MAX);
        if (part > 0 && !(part == 1 && at[0] == '.')) {
            if (++depth > depth_max)
                return err_set(e, ERR_LIMIT, "the entry %s is deeper than %u folders",
                               image_printable(shown, sizeof shown, name), depth_max);
            if (length + part + 2 > PATH_MAX)
                return err_set(e, ERR_LIMIT, "the entry %s has a path longer than %d bytes",
                               image_printable(shown, sizeof shown, name), PATH_MAX - 1);
            if (length > 0)
                out[length++] = '/';
            memcpy(out + length, at, part);
            length += part;
        }
        at += part;
        while (*at == '/')
            at++;
    }
    out[length] = '\0';
    return 0;
}

bool image_link_stays(const char *path, const char *target)
{
    /* A relative target starts at the folder of the link, an absolute one at the root; no step
     * may lead above the root. Only the text is looked at; where a link really leads is decided by
     * who follows it, and inside a sandbox nobody gets above the root of the image. */
    long level = 0;
    if (target[0] != '/')
        for (const char *c = path; *c != '\0'; c++)
            level += *c == '/';
    const char *at = target;
    while (*at != '\0') {
        size_t part = strcspn(at, "/");
        if (part == 2 && at[0] == '.' && at[1] == '.') {
            if (--level < 0)
                return false;
        } else if (part > 0 && !(part == 1 && at[0] == '.')) {
            level++;
        }
        at += part;
        while (*at == '/')
            at++;
    }
    return true;
}

/* --- what is not a file system ---------------------------------------------------------------- */

/* `docker save` and OCI layouts are archives of layers. A real root file system may hold one of
 * these names by chance, never the combinations that are asked for. */
static int refuse_layered(const struct reading *r, struct err *e)
{
    if (r->kind != IMAGE_KIND_IMAGE)
        return 0;
    if (r->manifest && (r->layer_tar || r->blobs))
        return err_set(e, ERR_INVALID,
                       "this archive was made by docker save: it holds layers, not a file system. "
                       "Make one with: docker create --name tmp IMAGE && docker export tmp "
                       ">FILE.tar");
    if (r->oci_layout && r->blobs)
        return err_set(e, ERR_INVALID,
                       "this archive is an OCI image layout: it holds layers, not a file system. "
                       "Unpack it with: umoci unpack --image FOLDER:TAG BUNDLE, then import "
                       "BUNDLE/rootfs");
    return 0;
}

static void note_markers(struct reading *r, mode_t type)
{
    const char *slash = strchr(r->path, '/');
    if (type == AE_IFREG && strcmp(r->path, "manifest.json") == 0)
        r->manifest = true;
    else if (type == AE_IFREG && strcmp(r->path, "oci-layout") == 0)
        r->oci_layout = true;
    else if (strcmp(r->path, "blobs") == 0 || strncmp(r->path, "blobs/", 6) == 0)
        r->blobs = true;
    else if (slash != NULL && strcmp(slash + 1, "layer.tar") == 0)
        r->layer_tar = true;
}

/* --- entries ---------------------------------------------------------------------------------- */

static const char *kind_word(mode_t type)
{
    switch (type) {
    case AE_IFCHR:
    case AE_IFBLK:
        return "a device node";
    case AE_IFIFO:
        return "a named pipe";
    case AE_IFSOCK:
        return "a socket";
    default:
        return "of an unknown kind";
    }
}

static int add_bytes(struct reading *r, uint64_t bytes, struct err *e)
{
    if (bytes > r->bounds->bytes_max || r->count.bytes > r->bounds->bytes_max - bytes)
        return err_set(e, ERR_LIMIT, "the archive unpacks to more than %llu bytes",
                       (unsigned long long)r->bounds->bytes_max);
    r->count.bytes += bytes;
    return 0;
}

int image_reader_refusal(struct archive *reader, const struct image_bounds *bounds, struct err *e)
{
    char shown[SHOWN_SIZE];
    const char *text = archive_error_string(reader);
    if (archive_errno(reader) == ENOMEM)
        return err_set(e, ERR_LIMIT, "reading the archive takes more memory than it may");
    if (archive_errno(reader) == ETIMEDOUT)
        return err_set(e, ERR_TIMEOUT, "no byte of the archive came for %u s",
                       bounds->idle_seconds_max);
    /* EILSEQ: no format was recognised, as opposed to a compression that broke on the way there. */
    if (archive_format(reader) == 0 && archive_errno(reader) == EILSEQ)
        return err_set(e, ERR_INVALID,
                       "this is not a tar archive; tar is taken, plain or as gzip, zstd or lz4");
    return err_set(e, ERR_INVALID, "the archive is damaged or cut off: %s",
                   image_printable(shown, sizeof shown, text != NULL ? text : "no reason given"));
}

static int read_content(struct reading *r, int64_t size, struct err *e)
{
    int64_t position = 0;
    for (;;) {
        const void *data = NULL;
        size_t length = 0;
        int64_t offset = 0;
        int rc = archive_read_data_block(r->reader, &data, &length, &offset);
        if (rc == ARCHIVE_EOF)
            break;
        if (rc != ARCHIVE_OK)
            return image_reader_refusal(r->reader, r->bounds, e);
        if (offset != position || (uint64_t)length > (uint64_t)(size - position))
            return err_set(e, ERR_INVALID,
                           "the entry %s is sparse; make the archive without "
                           "--sparse",
                           r->shown);
        position += (int64_t)length;
        rc = r->sink->file_data(r->sink->user, data, length, e);
        if (rc != 0)
            return rc;
    }
    if (position != size)
        return err_set(e, ERR_INVALID, "the entry %s is sparse; make the archive without --sparse",
                       r->shown);
    return 0;
}

/* 1980-01-01: zip knows none before. */
#define SOURCE_CHANGED_S 315532800u

/* Programs compare times: Python takes what it has compiled ahead only beside a source of the same one.
 * Those of sources are of whoever checked them out. */
static uint32_t changed_of(const struct reading *r, struct archive_entry *entry)
{
    int64_t changed_s = archive_entry_mtime_is_set(entry) ? archive_entry_mtime(entry) : 0;
    if (r->kind == IMAGE_KIND_SOURCE)
        return SOURCE_CHANGED_S;
    return changed_s < 0 || changed_s > UINT32_MAX ? 0 : (uint32_t)changed_s;
}

static int take_file(struct reading *r, struct archive_entry *entry, mode_t mode, uid_t uid,
                     gid_t gid, struct err *e)
{
    if (!archive_entry_size_is_set(entry) || archive_entry_size(entry) < 0)
        return err_set(e, ERR_INVALID, "the entry %s has no size", r->shown);
    int64_t size = archive_entry_size(entry);
    if (archive_entry_sparse_count(entry) > 0)
        return err_set(e, ERR_INVALID, "the entry %s is sparse; make the archive without --sparse",
                       r->shown);
    int rc = add_bytes(r, (uint64_t)size, e);
    if (rc != 0)
        return rc;
    r->content_end += (size + 511) / 512 * 512;
    rc = r->sink->file_begin(r->sink->user, r->path, mode, uid, gid, changed_of(r, entry), e);
    if (rc == 0)
        rc = read_content(r, size, e);
    if (rc == 0)
        rc = r->sink->file_end(r->sink->user, e);
    return rc;
}

static int take_hard_link(struct reading *r, struct archive_entry *entry, struct err *e)
{
    char existing[PATH_MAX] = "";
    const char *target = archive_entry_hardlink(entry);
    struct err why;
    if (target == NULL || image_path_normalize(existing, target, r->bounds->depth_max, &why) != 0 ||
        existing[0] == '\0')
        return err_set(e, ERR_INVALID, "the hard link %s leads out of the tree", r->shown);
    /* Nothing in use writes content behind a hard link, and which file it would belong to is open. */
    if (archive_entry_size_is_set(entry) && archive_entry_size(entry) > 0)
        return err_set(e, ERR_INVALID, "the hard link %s has content of its own", r->shown);
    uint64_t bytes = 0;
    int rc = r->sink->hard_link(r->sink->user, r->path, existing, &bytes, e);
    return rc == 0 ? add_bytes(r, bytes, e) : rc;
}

static int take_link(struct reading *r, struct archive_entry *entry, uid_t uid, gid_t gid,
                     struct err *e)
{
    const char *target = archive_entry_symlink(entry);
    if (target == NULL || target[0] == '\0' || strlen(target) >= PATH_MAX)
        return err_set(e, ERR_INVALID, "the symbolic link %s has no usable target", r->shown);
    char shown[64];
    if (!image_link_stays(r->path, target))
        return err_set(e, ERR_INVALID, "the symbolic link %s -> %s leads out of the tree", r->shown,
                       image_printable(shown, sizeof shown, target));
    return r->sink->link(r->sink->user, r->path, target, uid, gid, e);
}

/* Sources are code, not systems: owner 0 and modes as a version control system keeps them, so that
 * every user inside can read them and the digest does not hang on somebody's umask. */
static void normalize_source(mode_t type, mode_t *mode, int64_t *uid, int64_t *gid)
{
    *uid = 0;
    *gid = 0;
    *mode = type == AE_IFDIR || (*mode & 0111) != 0 ? 0755 : 0644;
}

static int take_entry(struct reading *r, struct archive_entry *entry, struct err *e)
{
    const char *name = archive_entry_pathname(entry);
    if (name == NULL || name[0] == '\0')
        return err_set(e, ERR_INVALID, "entry %llu has no readable name",
                       (unsigned long long)r->count.files + 1);
    int rc = image_path_normalize(r->path, name, r->bounds->depth_max, e);
    if (rc != 0)
        return rc;
    image_printable(r->shown, sizeof r->shown, r->path);
    mode_t type = archive_entry_filetype(entry);
    if (r->path[0] == '\0')
        return type == AE_IFDIR ? 0 : err_set(e, ERR_INVALID, "the root is not a folder");
    if (++r->count.files > r->bounds->files_max)
        return err_set(e, ERR_LIMIT, "the archive holds more than %llu files",
                       (unsigned long long)r->bounds->files_max);
    note_markers(r, type);
    rc = refuse_layered(r, e);
    if (rc != 0)
        return rc;
    if (archive_entry_hardlink(entry) != NULL)
        return take_hard_link(r, entry, e);

    int64_t uid = archive_entry_uid(entry);
    int64_t gid = archive_entry_gid(entry);
    /* Setuid and setgid are never stored; sticky means something on folders only. */
    mode_t mode = archive_entry_perm(entry) & (type == AE_IFDIR ? 01777 : 0777);
    if (r->kind == IMAGE_KIND_SOURCE)
        normalize_source(type, &mode, &uid, &gid);
    const int64_t id_max = (int64_t)r->bounds->ids.count - 1;
    if (id_max == 0 && (uid != 0 || gid != 0))
        return err_set(
            e, ERR_UNSUPPORTED,
            "%s belongs to %lld:%lld: a runner without root has one user id, unless newuidmap "
            "gives it more (apt-get install uidmap)",
            r->shown, (long long)uid, (long long)gid);
    if (uid < 0 || uid > id_max || gid < 0 || gid > id_max)
        return err_set(e, ERR_INVALID, "the owner of %s (%lld:%lld) is above %d", r->shown,
                       (long long)uid, (long long)gid, (int)id_max);
    switch (type) {
    case AE_IFREG:
        return take_file(r, entry, mode, (uid_t)uid, (gid_t)gid, e);
    case AE_IFDIR:
        return r->sink->folder(r->sink->user, r->path, mode, (uid_t)uid, (gid_t)gid, e);
    case AE_IFLNK:
        return take_link(r, entry, (uid_t)uid, (gid_t)gid, e);
    default:
        return err_set(e, ERR_INVALID, "%s is %s; only files, folders and links are taken%s",
                       r->shown, kind_word(type),
                       strncmp(r->path, "dev/", 4) == 0 ? " (leave out dev/*)" : "");
    }
}

struct archive *image_reader_new(void)
{
    struct archive *reader = archive_read_new();
    if (reader == NULL)
        return NULL;
    if (archive_read_support_format_tar(reader) != ARCHIVE_OK ||
        archive_read_support_filter_gzip(reader) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(reader) != ARCHIVE_OK ||
        archive_read_support_filter_lz4(reader) != ARCHIVE_OK) {
        archive_read_free(reader);
        return NULL;
    }
    return reader;
}

int image_reader_run(struct archive *reader, enum image_kind kind,
                     const struct image_bounds *bounds, const struct image_sink *sink,
                     struct image_count *out, struct err *e)
{
    CLEANUP_FREE struct reading *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory to read an archive");
    r->reader = reader;
    r->kind = kind;
    r->bounds = bounds;
    r->sink = sink;
    for (;;) {
        struct archive_entry *entry = NULL;
        int rc = archive_read_next_header(reader, &entry);
        if (rc == ARCHIVE_EOF)
            break;
        /* ARCHIVE_WARN is a name or an attribute that could not be understood in full: refused,
         * for a half-understood entry is somebody else's entry. */
        if (rc == ARCHIVE_WARN)
            return err_set(e, ERR_INVALID, "entry %llu cannot be understood: %s",
                           (unsigned long long)r->count.files + 1,
                           image_printable(r->shown, sizeof r->shown,
                                           archive_error_string(reader) != NULL
                                               ? archive_error_string(reader)
                                               : "no reason given"));
        if (rc != ARCHIVE_OK)
            return image_reader_refusal(r->reader, r->bounds, e);
        int64_t header_end = archive_filter_bytes(reader, 0);
        if (header_end - r->content_end > HEADER_BYTES_MAX)
            return err_set(e, ERR_LIMIT, "entry %llu has headers of more than %d bytes",
                           (unsigned long long)r->count.files + 1, HEADER_BYTES_MAX);
        r->content_end = header_end;
        rc = take_entry(r, entry, e);
        if (rc != 0)
            return rc;
    }
    /* The end is marked by blocks of zeros; an archive cut between two entries has none. */
    if (archive_filter_bytes(reader, 0) <= r->content_end)
        return err_set(e, ERR_INVALID,
                       r->count.files == 0 ? "the archive is empty"
                                           : "the archive is cut off: its end is missing");
    if (r->count.files == 0)
        return err_set(e, ERR_INVALID, "the archive is empty");
    *out = r->count;
    return 0;
}
