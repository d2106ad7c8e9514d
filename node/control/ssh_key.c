#include "node/control/ssh_key.h"

#include <sodium.h>
#include <string.h>

#include "base/memory.h"

#define RSA_BYTES_MIN 256u
#define RSA_BYTES_MAX 1024u

/* --- the blob: strings with a length before them --------------------------------------------------- */

struct part {
    const uint8_t *data;
    size_t length;
};

static bool part_next(struct part *rest, struct part *out)
{
    if (rest->length < 4)
        return false;
    const uint8_t *p = rest->data;
    size_t length = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
    if (length > rest->length - 4)
        return false;
    *out = (struct part){p + 4, length};
    rest->data += 4 + length;
    rest->length -= 4 + length;
    return true;
}

static bool part_is(const struct part *p, const char *text)
{
    return p->length == strlen(text) && memcmp(p->data, text, p->length) == 0;
}

static bool rsa_valid(struct part *rest)
{
    struct part exponent, modulus;
    if (!part_next(rest, &exponent) || !part_next(rest, &modulus) || exponent.length == 0 ||
        exponent.length > 8)
        return false;
    if (modulus.length > 0 && modulus.data[0] == 0) {
        modulus.data++;
        modulus.length--;
    }
    /* Of a modulus of so many bytes the first one is not small. */
    return modulus.length >= RSA_BYTES_MIN && modulus.length <= RSA_BYTES_MAX &&
           (modulus.length > RSA_BYTES_MIN || modulus.data[0] >= 0x80);
}

static bool curve_valid(struct part *rest, const char *curve, size_t point_bytes)
{
    struct part name, point;
    return part_next(rest, &name) && part_is(&name, curve) && part_next(rest, &point) &&
           point.length == point_bytes && point.data[0] == 4;
}

static bool ed25519_valid(struct part *rest)
{
    struct part key;
    return part_next(rest, &key) && key.length == 32;
}

/* The application that a security key signs for. */
static bool application_valid(struct part *rest)
{
    struct part application;
    return part_next(rest, &application) && application.length > 0;
}

static bool blob_valid(const uint8_t *blob, size_t length)
{
    struct part rest = {blob, length}, type;
    bool valid = false;
    if (!part_next(&rest, &type))
        return false;
    if (part_is(&type, "ssh-ed25519"))
        valid = ed25519_valid(&rest);
    else if (part_is(&type, "ssh-rsa"))
        valid = rsa_valid(&rest);
    else if (part_is(&type, "ecdsa-sha2-nistp256"))
        valid = curve_valid(&rest, "nistp256", 65);
    else if (part_is(&type, "ecdsa-sha2-nistp384"))
        valid = curve_valid(&rest, "nistp384", 97);
    else if (part_is(&type, "ecdsa-sha2-nistp521"))
        valid = curve_valid(&rest, "nistp521", 133);
    else if (part_is(&type, "sk-ssh-ed25519@openssh.com"))
        valid = ed25519_valid(&rest) && application_valid(&rest);
    else if (part_is(&type, "sk-ecdsa-sha2-nistp256@openssh.com"))
        valid = curve_valid(&rest, "nistp256", 65) && application_valid(&rest);
    return valid && rest.length == 0;
}

/* --- the text --------------------------------------------------------------------------------------- */

static bool blank(char c)
{
    return c == ' ' || c == '\t';
}

/* The next word of the line, from *at on. */
static size_t word_next(const char *line, size_t length, size_t *at, size_t *begin)
{
    while (*at < length && blank(line[*at]))
        (*at)++;
    *begin = *at;
    while (*at < length && !blank(line[*at]))
        (*at)++;
    return *at - *begin;
}

static void comment_copy(char *out, size_t size, const char *text, size_t length)
{
    size_t count = length < size - 1 ? length : size - 1;
    for (size_t i = 0; i < count; i++)
        out[i] = text[i] >= ' ' && text[i] < 0x7f ? text[i] : '?';
    out[count] = '\0';
}

static int line_parse(struct registry_ssh_key *out, const char *line, size_t length, struct err *e)
{
    size_t at = 0, type_at, data_at, comment_at, blob_length = 0;
    size_t type_length = word_next(line, length, &at, &type_at);
    size_t data_length = word_next(line, length, &at, &data_at);
    (void)word_next(line, length, &at, &comment_at);
    struct part rest, type;
    if (data_length == 0 ||
        sodium_base642bin(out->blob, sizeof out->blob, line + data_at, data_length, NULL,
                          &blob_length, NULL, sodium_base64_VARIANT_ORIGINAL) != 0)
        return err_set(
            e, ERR_INVALID,
            "not a line \"TYPE BASE64 COMMENT\" as in a .pub file of ssh-keygen; options "
            "before the key are not taken");
    rest = (struct part){out->blob, blob_length};
    if (!part_next(&rest, &type) || type.length != type_length ||
        memcmp(type.data, line + type_at, type_length) != 0)
        return err_set(e, ERR_INVALID,
                       "the key is damaged, or options stand before it, which are not taken");
    if (!blob_valid(out->blob, blob_length))
        return err_set(e, ERR_INVALID,
                       "not a key that is taken here: Ed25519, ECDSA, or RSA of 2048 to 8192 bits; "
                       "ssh-keygen -t ed25519 makes one");
    out->blob_length = (uint16_t)blob_length;
    comment_copy(out->name, sizeof out->name, line + comment_at, length - comment_at);
    return 0;
}

int ssh_key_parse(struct registry_ssh_key *out, const char *text, size_t length, struct err *e)
{
    bool found = false;
    *out = (struct registry_ssh_key){0};
    if (length > SSH_KEY_TEXT_MAX)
        return err_set(e, ERR_INVALID, "%zu bytes are no public key", length);
    if (memmem(text, length, "PRIVATE KEY", 11) != NULL)
        return err_set(e, ERR_INVALID,
                       "that is a private key: keep it, and give its .pub file instead");
    for (size_t at = 0; at < length;) {
        const char *line = text + at;
        const char *end = memchr(line, '\n', length - at);
        size_t line_length = end == NULL ? length - at : (size_t)(end - line);
        at += line_length + 1;
        while (line_length > 0 && (blank(line[line_length - 1]) || line[line_length - 1] == '\r'))
            line_length--;
        while (line_length > 0 && blank(*line)) {
            line++;
            line_length--;
        }
        if (line_length == 0 || *line == '#')
            continue;
        if (found)
            return err_set(e, ERR_INVALID, "several keys; add one after the other");
        found = true;
        int rc = line_parse(out, line, line_length, e);
        if (rc < 0)
            return rc;
    }
    return found ? 0 : err_set(e, ERR_INVALID, "no public key in it");
}

/* --- names ------------------------------------------------------------------------------------------ */

static void make_id(char id[17], const char *workload, const uint8_t *blob, size_t length)
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_state state;
    (void)crypto_hash_sha256_init(&state);
    (void)crypto_hash_sha256_update(&state, (const unsigned char *)workload, strlen(workload) + 1);
    (void)crypto_hash_sha256_update(&state, blob, length);
    (void)crypto_hash_sha256_final(&state, digest);
    (void)sodium_bin2hex(id, 17, digest, 8);
}

bool ssh_key_name(struct registry_ssh_key *key, const char *workload)
{
    if (workload != NULL && !workload_name_valid(workload, strlen(workload)))
        return false;
    (void)text_copy(key->workload, sizeof key->workload, workload == NULL ? "" : workload);
    make_id(key->id, key->workload, key->blob, key->blob_length);
    return true;
}

void ssh_key_kind(const struct registry_ssh_key *key, char out[SSH_KEY_TYPE_SIZE])
{
    struct part rest = {key->blob, key->blob_length}, type;
    if (part_next(&rest, &type) && type.length < SSH_KEY_TYPE_SIZE)
        comment_copy(out, SSH_KEY_TYPE_SIZE, (const char *)type.data, type.length);
    else
        (void)text_copy(out, SSH_KEY_TYPE_SIZE, "unknown");
}

void ssh_key_fingerprint(const struct registry_ssh_key *key, char out[SSH_KEY_FINGERPRINT_SIZE])
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    (void)crypto_hash_sha256(digest, key->blob, key->blob_length);
    (void)text_copy(out, SSH_KEY_FINGERPRINT_SIZE, "SHA256:");
    (void)sodium_bin2base64(out + 7, SSH_KEY_FINGERPRINT_SIZE - 7, digest, sizeof digest,
                            sodium_base64_VARIANT_ORIGINAL_NO_PADDING);
}

static bool entry_is(const struct registry_root *root, const char *workload, const uint8_t *blob,
                     size_t length, char id[17])
{
    make_id(id, workload, blob, length);
    const struct registry_ssh_key *key = registry_root_ssh_key(root, id, strlen(id));
    return key != NULL && strcmp(key->workload, workload) == 0 && key->blob_length == length &&
           memcmp(key->blob, blob, length) == 0;
}

bool ssh_key_known(const struct registry_root *root, const char *workload, const uint8_t *blob,
                   size_t length, char id[17])
{
    if (length == 0 || length > REGISTRY_SSH_BLOB_MAX)
        return false;
    return (workload[0] != '\0' && entry_is(root, workload, blob, length, id)) ||
           entry_is(root, "", blob, length, id);
}
