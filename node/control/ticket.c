#include "node/control/ticket.h"

#include <sodium.h>
#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"
#include "node/node.h"

enum {
    VERSION = 1,
    FIXED_BYTES = 2 + 8 + 4 + REGISTRY_TICKET_NONCE_BYTES + TICKET_HOST_BYTES,
    TAG_BYTES = 32,
    TOKEN_ID_LENGTH = 16,
    BYTES_MAX = FIXED_BYTES + 1 + TOKEN_ID_LENGTH + 1 + WORKLOAD_NAME_LENGTH_MAX + TAG_BYTES,
    PREFIX_LENGTH = sizeof TICKET_PREFIX - 1,
};
_Static_assert(PREFIX_LENGTH + (BYTES_MAX * 4 + 2) / 3 < TICKET_TEXT_SIZE, "a ticket fits");
_Static_assert(TICKET_TEXT_SIZE - 1 <= GATEWAY_PASS_TEXT_MAX, "the gateway takes it");

static void tag_make(uint8_t tag[TAG_BYTES], const uint8_t secret[REGISTRY_SSH_SEED_BYTES],
                     const uint8_t *bytes, size_t size)
{
    static const unsigned char purpose[] = "skerry tickets and cookies, 1";
    unsigned char key[crypto_generichash_KEYBYTES];
    (void)crypto_generichash(key, sizeof key, purpose, sizeof purpose - 1, secret,
                             REGISTRY_SSH_SEED_BYTES);
    (void)crypto_generichash(tag, TAG_BYTES, bytes, size, key, sizeof key);
    sodium_memzero(key, sizeof key);
}

static uint8_t *put_text(uint8_t *p, const char *text)
{
    size_t length = strlen(text);
    *p++ = (uint8_t)length;
    memcpy(p, text, length);
    return p + length;
}

void ticket_write(const struct ticket *t, const uint8_t secret[REGISTRY_SSH_SEED_BYTES],
                  char out[TICKET_TEXT_SIZE])
{
    uint8_t bytes[BYTES_MAX], *p = bytes;
    *p++ = VERSION;
    *p++ = (uint8_t)t->kind;
    bytes_put(p, 8, t->expires_wall_ms);
    bytes_put(p + 8, 4, t->session_s);
    p += 12;
    memcpy(p, t->nonce, sizeof t->nonce);
    p += sizeof t->nonce;
    memcpy(p, t->host, sizeof t->host);
    p += sizeof t->host;
    p = put_text(p, t->token);
    p = put_text(p, t->subject);
    tag_make(p, secret, bytes, (size_t)(p - bytes));
    p += TAG_BYTES;
    memcpy(out, TICKET_PREFIX, PREFIX_LENGTH);
    (void)sodium_bin2base64(out + PREFIX_LENGTH, TICKET_TEXT_SIZE - PREFIX_LENGTH, bytes,
                            (size_t)(p - bytes), sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    sodium_memzero(bytes, sizeof bytes);
}

/* A text at the front of `rest`; false if it is not there whole, or too long. */
static bool take_text(const uint8_t **at, const uint8_t *end, char *out, size_t size)
{
    if (*at == end || **at >= size || (size_t)(end - *at - 1) < **at)
        return false;
    size_t length = *(*at)++;
    memcpy(out, *at, length);
    out[length] = '\0';
    *at += length;
    return strlen(out) == length;
}

static bool fields_read(struct ticket *out, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = bytes + 2, *end = bytes + size;
    if (bytes[0] != VERSION || bytes[1] < TICKET_OF_WORKLOAD ||
        bytes[1] > TICKET_COOKIE_OF_INSTANCE)
        return false;
    out->kind = (enum ticket_kind)bytes[1];
    out->expires_wall_ms = bytes_get(at, 8);
    out->session_s = (uint32_t)bytes_get(at + 8, 4);
    at += 12;
    memcpy(out->nonce, at, sizeof out->nonce);
    at += sizeof out->nonce;
    memcpy(out->host, at, sizeof out->host);
    at += sizeof out->host;
    return take_text(&at, end, out->token, sizeof out->token) &&
           take_text(&at, end, out->subject, sizeof out->subject) && at == end;
}

bool ticket_read(struct ticket *out, const uint8_t secret[REGISTRY_SSH_SEED_BYTES],
                 const char *text, size_t length)
{
    uint8_t bytes[BYTES_MAX], tag[TAG_BYTES];
    size_t size = 0;
    *out = (struct ticket){0};
    if (length <= PREFIX_LENGTH || memcmp(text, TICKET_PREFIX, PREFIX_LENGTH) != 0 ||
        sodium_base642bin(bytes, sizeof bytes, text + PREFIX_LENGTH, length - PREFIX_LENGTH, NULL,
                          &size, NULL, sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0 ||
        size < FIXED_BYTES + TAG_BYTES)
        return false;
    size -= TAG_BYTES;
    tag_make(tag, secret, bytes, size);
    bool good =
        memory_equal_constant_time(tag, bytes + size, TAG_BYTES) && fields_read(out, bytes, size);
    sodium_memzero(bytes, sizeof bytes);
    return good;
}

void ticket_host(const char *host, uint8_t out[TICKET_HOST_BYTES])
{
    (void)crypto_generichash(out, TICKET_HOST_BYTES, (const unsigned char *)host, strlen(host),
                             NULL, 0);
}

enum problem ticket_judge(const struct registry_root *root, const struct ticket *t,
                          const char *workload, const char *instance, uint64_t wall_ms)
{
    bool of_instance = t->kind == TICKET_OF_INSTANCE || t->kind == TICKET_COOKIE_OF_INSTANCE;
    const char *asked = of_instance ? instance : workload;
    if (wall_ms >= t->expires_wall_ms)
        return PROBLEM_UNAUTHORIZED;
    if (asked == NULL || strcmp(asked, t->subject) != 0)
        return PROBLEM_FORBIDDEN;
    return t->token[0] == '\0' ? PROBLEM_NONE
                               : node_authorize_id(root, t->token, TOKEN_ROLE_INVOKE, workload,
                                                   of_instance ? instance : NULL, wall_ms);
}
