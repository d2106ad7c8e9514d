#include "sandbox/shared/tar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Offsets in a ustar header. */
enum {
    NAME = 0,
    NAME_BYTES = 100,
    MODE = 100,
    SIZE = 124,
    SIZE_BYTES = 12,
    MTIME = 136,
    CHECK = 148,
    CHECK_BYTES = 8,
    TYPE = 156,
    LINK = 157,
    MAGIC = 257,
    PREFIX = 345,
    PREFIX_BYTES = 155
};
#define OCTAL11_MAX 077777777777ULL

void tar_reader_init(struct tar_reader *r)
{
    memset(r, 0, sizeof *r);
}

void tar_reader_free(struct tar_reader *r)
{
    free(r->extended);
    r->extended = NULL;
}

size_t tar_padding(uint64_t size)
{
    return (size_t)(-size % TAR_BLOCK_BYTES);
}

bool tar_path_clean(char *path)
{
    char *out = path;
    const char *in = path;
    if (*in == '/')
        return false;
    while (*in != '\0') {
        size_t length = strcspn(in, "/");
        bool dot = length == 1 && in[0] == '.';
        if (length == 2 && in[0] == '.' && in[1] == '.')
            return false;
        if (length > 0 && !dot) {
            if (out != path)
                *out++ = '/';
            memmove(out, in, length);
            out += length;
        }
        in += length;
        while (*in == '/')
            in++;
    }
    *out = '\0';
    return true;
}

static uint32_t header_sum(const uint8_t *block)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < TAR_BLOCK_BYTES; i++)
        sum += i >= CHECK && i < CHECK + CHECK_BYTES ? ' ' : block[i];
    return sum;
}

/* Octal, or base 256 when the first bit is set. */
static bool field_number(const uint8_t *field, size_t width, uint64_t *out)
{
    uint64_t value = 0;
    if ((field[0] & 0x80) != 0) {
        if ((field[0] & 0x7f) != 0)
            return false;
        for (size_t i = 1; i < width; i++) {
            if (value >> 56 != 0)
                return false;
            value = value << 8 | field[i];
        }
    } else {
        size_t i = 0;
        while (i < width && field[i] == ' ')
            i++;
        for (; i < width && field[i] >= '0' && field[i] <= '7'; i++)
            value = value << 3 | (uint64_t)(field[i] - '0');
        if (i < width && field[i] != ' ' && field[i] != '\0')
            return false;
    }
    *out = value;
    return true;
}

static void field_text(const uint8_t *field, size_t width, char *out)
{
    size_t length = strnlen((const char *)field, width);
    memcpy(out, field, length);
    out[length] = '\0';
}

static int take_value(struct tar_reader *r, const char *key, const char *value, size_t length,
                      struct err *e)
{
    bool path = strcmp(key, "path") == 0;
    bool link = strcmp(key, "linkpath") == 0;
    if (path || link) {
        char *out = path ? r->next.path : r->next.link;
        if (length >= TAR_PATH_SIZE || memchr(value, '\0', length) != NULL)
            return err_set(e, ERR_INVALID, "archive: a path is too long or holds a NUL");
        memcpy(out, value, length);
        out[length] = '\0';
        r->has_path |= path;
        r->has_link |= link;
        return 0;
    }
    char number[32];
    if (strcmp(key, "size") != 0 && strcmp(key, "mtime") != 0)
        return 0;
    if (length == 0 || length >= sizeof number)
        return err_set(e, ERR_INVALID, "archive: bad %s in an extended header", key);
    memcpy(number, value, length);
    number[length] = '\0';
    char *end;
    if (key[0] == 's') {
        r->next.size = strtoull(number, &end, 10);
        if (*end != '\0' || number[0] == '-' || r->next.size > INT64_MAX)
            return err_set(e, ERR_INVALID, "archive: bad size in an extended header");
        r->has_size = true;
    } else {
        r->next.mtime_s = strtoll(number, &end, 10); /* fractions are dropped */
        r->has_mtime = true;
    }
    return 0;
}

/* "LENGTH KEY=VALUE\n", the length counting itself. */
static int take_pax(struct tar_reader *r, struct err *e)
{
    const char *at = (const char *)r->extended;
    size_t left = r->extended_size;
    while (left > 0) {
        size_t length = 0;
        size_t i = 0;
        for (; i < left && i < 6 && at[i] >= '0' && at[i] <= '9'; i++)
            length = length * 10 + (size_t)(at[i] - '0');
        if (i == 0 || i >= left || at[i] != ' ' || length > left || length < i + 3 ||
            at[length - 1] != '\n')
            return err_set(e, ERR_INVALID, "archive: bad extended header");
        const char *key_at = at + i + 1;
        const char *equals = memchr(key_at, '=', length - i - 2);
        char key[32];
        if (equals == NULL)
            return err_set(e, ERR_INVALID, "archive: bad extended header");
        size_t key_length = (size_t)(equals - key_at);
        if (key_length < sizeof key) {
            memcpy(key, key_at, key_length);
            key[key_length] = '\0';
            int rc = take_value(r, key, equals + 1, (size_t)(at + length - 1 - (equals + 1)), e);
            if (rc != 0)
                return rc;
        }
        at += length;
        left -= length;
    }
    return 0;
}

static int take_extended(struct tar_reader *r, struct err *e)
{
    char kind = r->extended_kind;
    r->extended_kind = 0;
    if (kind == 'x')
        return take_pax(r, e);
    if (kind == 'g')
        return 0; /* defaults for all entries: nothing there that we act on */
    size_t length = strnlen((const char *)r->extended, r->extended_size);
    return take_value(r, kind == 'L' ? "path" : "linkpath", (const char *)r->extended, length, e);
}

static int extended_block(struct tar_reader *r, const uint8_t *block, struct err *e)
{
    size_t left = r->extended_size - r->extended_length;
    size_t length = left < TAR_BLOCK_BYTES ? left : TAR_BLOCK_BYTES;
    memcpy(r->extended + r->extended_length, block, length);
    r->extended_length += length;
    return r->extended_length == r->extended_size ? take_extended(r, e) : 0;
}

static int extended_begin(struct tar_reader *r, char kind, uint64_t size, struct err *e)
{
    if (size > TAR_EXTENDED_BYTES_MAX)
        return err_set(e, ERR_LIMIT, "archive: an extended header above %d bytes",
                       TAR_EXTENDED_BYTES_MAX);
    if (size == 0)
        return 0;
    uint8_t *extended = realloc(r->extended, (size_t)size);
    if (extended == NULL)
        return err_set(e, ERR_NO_MEMORY, "archive");
    r->extended = extended;
    r->extended_size = (size_t)size;
    r->extended_length = 0;
    r->extended_kind = kind;
    return 0;
}

static enum tar_type type_of(char type)
{
    switch (type) {
    case '0':
    case '\0':
    case '7':
        return TAR_FILE;
    case '1':
        return TAR_HARDLINK;
    case '2':
        return TAR_SYMLINK;
    case '5':
        return TAR_DIRECTORY;
    default:
        return TAR_OTHER;
    }
}

static void take_names(struct tar_reader *r, const uint8_t *block)
{
    struct tar_entry *entry = &r->entry;
    if (r->has_path) {
        memcpy(entry->path, r->next.path, sizeof entry->path);
    } else {
        char *out = entry->path;
        /* GNU's own format ("ustar  ") keeps times where the prefix stands. */
        if (memcmp(block + MAGIC, "ustar\0", 6) == 0 && block[PREFIX] != '\0') {
            field_text(block + PREFIX, PREFIX_BYTES, out);
            out += strlen(out);
            *out++ = '/';
        }
        field_text(block + NAME, NAME_BYTES, out);
    }
    if (r->has_link)
        memcpy(entry->link, r->next.link, sizeof entry->link);
    else
        field_text(block + LINK, NAME_BYTES, entry->link);
}

static int take_entry(struct tar_reader *r, const uint8_t *block, uint64_t size, struct err *e)
{
    struct tar_entry *entry = &r->entry;
    uint64_t mode, mtime;
    if (!field_number(block + MODE, 8, &mode) || !field_number(block + MTIME, 12, &mtime))
        return err_set(e, ERR_INVALID, "archive: bad number in a header");
    entry->type = type_of((char)block[TYPE]);
    entry->mode = (uint32_t)(mode & 07777);
    entry->mtime_s = r->has_mtime ? r->next.mtime_s : (int64_t)(mtime & INT64_MAX);
    entry->size = r->has_size ? r->next.size : size;
    take_names(r, block);
    /* Old archives mark folders by a slash alone. */
    size_t length = strlen(entry->path);
    if (entry->type == TAR_FILE && length > 0 && entry->path[length - 1] == '/')
        entry->type = TAR_DIRECTORY;
    /* Links have no data, whatever their size says; pax allows it for hard links, nobody does it. */
    if (entry->type == TAR_SYMLINK || entry->type == TAR_HARDLINK || entry->type == TAR_DIRECTORY)
        entry->size = 0;
    r->has_path = r->has_link = r->has_size = r->has_mtime = false;
    return 0;
}

int tar_reader_block(struct tar_reader *r, const uint8_t block[TAR_BLOCK_BYTES],
                     enum tar_step *step, struct err *e)
{
    static const uint8_t zero[TAR_BLOCK_BYTES];
    *step = TAR_STEP_MORE;
    if (r->extended_kind != 0)
        return extended_block(r, block, e);
    if (memcmp(block, zero, sizeof zero) == 0) {
        *step = TAR_STEP_END;
        return 0;
    }
    uint64_t check, size;
    if (!field_number(block + CHECK, CHECK_BYTES, &check) || check != header_sum(block))
        return err_set(e, ERR_INVALID, "this is not a tar archive, or it is damaged");
    if (!field_number(block + SIZE, SIZE_BYTES, &size) || size > INT64_MAX)
        return err_set(e, ERR_INVALID, "archive: bad size in a header");
    char type = (char)block[TYPE];
    if (type == 'x' || type == 'g' || type == 'L' || type == 'K')
        return extended_begin(r, type, size, e);
    int rc = take_entry(r, block, size, e);
    if (rc == 0)
        *step = TAR_STEP_ENTRY;
    return rc;
}

static void put_octal(uint8_t *field, size_t width, uint64_t value)
{
    for (size_t i = width - 1; i-- > 0; value >>= 3)
        field[i] = (uint8_t)('0' + (value & 7));
}

static void put_header(uint8_t *block, const char *path, const char *link, char type,
                       const struct tar_entry *entry, uint64_t size)
{
    memset(block, 0, TAR_BLOCK_BYTES);
    memcpy(block + NAME, path, strnlen(path, NAME_BYTES));
    memcpy(block + LINK, link, strnlen(link, NAME_BYTES));
    put_octal(block + MODE, 8, entry->mode & 07777);
    put_octal(block + 108, 8, entry->uid);
    put_octal(block + 116, 8, entry->gid);
    put_octal(block + SIZE, SIZE_BYTES, size <= OCTAL11_MAX ? size : 0);
    put_octal(block + MTIME, 12,
              entry->mtime_s > 0 && (uint64_t)entry->mtime_s <= OCTAL11_MAX
                  ? (uint64_t)entry->mtime_s
                  : 0);
    block[TYPE] = (uint8_t)type;
    memcpy(block + MAGIC,
           "ustar\0"
           "00",
           8);
    put_octal(block + CHECK, 7, header_sum(block));
    block[CHECK + 7] = ' ';
}

/* Appends "LENGTH KEY=VALUE\n". */
static size_t put_pax(uint8_t *out, const char *key, const char *value)
{
    size_t body = strlen(key) + strlen(value) + 3; /* blank, equals, line feed */
    size_t length = body + 1;
    char digits[24];
    while (snprintf(digits, sizeof digits, "%zu", length) + (int)body != (int)length)
        length++;
    (void)text_format((char *)out, length + 1, "%zu %s=%s\n", length, key, value);
    return length;
}

size_t tar_encode(const struct tar_entry *entry, uint8_t out[TAR_ENCODED_BYTES_MAX])
{
    static const char types[] = {
        [TAR_FILE] = '0', [TAR_DIRECTORY] = '5', [TAR_SYMLINK] = '2', [TAR_HARDLINK] = '1'};
    if (entry->type == TAR_OTHER)
        return 0;
    char path[TAR_PATH_SIZE + 1];
    if (!text_format(path, TAR_PATH_SIZE, "%s%s", entry->path,
                     entry->type == TAR_DIRECTORY ? "/" : ""))
        return 0;
    uint64_t size = entry->type == TAR_FILE ? entry->size : 0;
    uint8_t *data = out + TAR_BLOCK_BYTES;
    size_t length = 0;
    if (strlen(path) > NAME_BYTES)
        length += put_pax(data + length, "path", path);
    if (strlen(entry->link) > NAME_BYTES)
        length += put_pax(data + length, "linkpath", entry->link);
    if (size > OCTAL11_MAX) {
        char number[24];
        (void)text_format(number, sizeof number, "%llu", (unsigned long long)size);
        length += put_pax(data + length, "size", number);
    }
    size_t used = 0;
    if (length > 0) {
        put_header(out, "pax", "", 'x', entry, length);
        memset(data + length, 0, tar_padding(length));
        used = TAR_BLOCK_BYTES + length + tar_padding(length);
    }
    put_header(out + used, path, entry->link, types[entry->type], entry, size);
    return used + TAR_BLOCK_BYTES;
}
