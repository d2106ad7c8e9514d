/* node/control/token.c - tokens: "skt_<id>_<secret>".
 *
 * The id (10 random bytes, 16 characters) finds the entry; the secret (32 random bytes, 52
 * characters) is kept as its SHA-256 only. A secret of 256 random bits needs no slow hash: there is
 * nothing to guess. */
#include <sodium.h>
#include <string.h>

#include "base/memory.h"
#include "node/node.h"

#define PREFIX "skt_"
#define PREFIX_LENGTH 4u
#define ID_BYTES 10u
#define ID_LENGTH 16u
#define SECRET_BYTES 32u
#define SECRET_LENGTH 52u /* ceil(256 / 5) */
#define TOKEN_LENGTH (PREFIX_LENGTH + ID_LENGTH + 1 + SECRET_LENGTH)

_Static_assert(TOKEN_LENGTH < NODE_TOKEN_TEXT_SIZE, "a token fits");
_Static_assert(crypto_hash_sha256_BYTES == sizeof(((struct registry_token *)0)->hash), "hash");

static const char digits[] = "0123456789abcdefghjkmnpqrstvwxyz";

/* Five bits a character, the last one filled up with zeros. */
static void encode(char *out, const uint8_t *bytes, size_t count)
{
    unsigned bits = 0;
    unsigned held = 0;
    for (size_t i = 0; i < count; i++) {
        bits = (bits << 8 | bytes[i]) & 0xfffu;
        held += 8;
        while (held >= 5) {
            held -= 5;
            *out++ = digits[bits >> held & 31u];
        }
    }
    if (held > 0)
        *out++ = digits[bits << (5 - held) & 31u];
    *out = '\0';
}

static void hash_secret(uint8_t out[crypto_hash_sha256_BYTES], const char *secret)
{
    (void)crypto_hash_sha256(out, (const unsigned char *)secret, SECRET_LENGTH);
}

int node_token_make(struct registry_token *out, char secret_text[NODE_TOKEN_TEXT_SIZE],
                    struct err *e)
{
    uint8_t id[ID_BYTES];
    uint8_t secret[SECRET_BYTES];
    char secret_digits[SECRET_LENGTH + 1];
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "make a token: libsodium has no randomness");
    randombytes_buf(id, sizeof(id));
    randombytes_buf(secret, sizeof(secret));
    encode(out->id, id, sizeof(id));
    encode(secret_digits, secret, sizeof(secret));
    hash_secret(out->hash, secret_digits);
    assert_always(
        text_format(secret_text, NODE_TOKEN_TEXT_SIZE, PREFIX "%s_%s", out->id, secret_digits));
    sodium_memzero(secret, sizeof(secret));
    sodium_memzero(secret_digits, sizeof(secret_digits));
    return 0;
}

bool node_token_matches(const struct registry_token *known, const char *secret)
{
    uint8_t hash[crypto_hash_sha256_BYTES];
    static const uint8_t nobody[crypto_hash_sha256_BYTES];
    hash_secret(hash, secret);
    /* An unknown id costs the same as a wrong secret. */
    bool same =
        memory_equal_constant_time(hash, known == NULL ? nobody : known->hash, sizeof(hash));
    return known != NULL && same;
}

static bool in_scope(const char *scope, const char *asked)
{
    return scope[0] == '\0' || (asked != NULL && strcmp(scope, asked) == 0);
}

/* The strongest role is the smallest number; with a token of a machine it becomes a node, and nothing
 * else. */
static enum problem may(const struct registry_token *known, enum token_role need,
                        const char *workload, const char *instance, uint64_t wall_ms)
{
    if (known->role == TOKEN_ROLE_NODE ||
        (known->expires_wall_ms != 0 && wall_ms >= known->expires_wall_ms))
        return PROBLEM_UNAUTHORIZED;
    if (known->role > need || !in_scope(known->workload, workload) ||
        !in_scope(known->instance, instance))
        return PROBLEM_FORBIDDEN;
    return PROBLEM_NONE;
}

enum problem node_authorize_id(const struct registry_root *root, const char *id,
                               enum token_role need, const char *workload, const char *instance,
                               uint64_t wall_ms)
{
    const struct registry_token *known = registry_root_token(root, id, strlen(id));
    return known == NULL ? PROBLEM_UNAUTHORIZED : may(known, need, workload, instance, wall_ms);
}

enum problem node_authorize(const struct registry_root *root, const char *token, size_t length,
                            enum token_role need, const char *workload, const char *instance,
                            uint64_t wall_ms)
{
    if (token == NULL || length != TOKEN_LENGTH || memcmp(token, PREFIX, PREFIX_LENGTH) != 0 ||
        token[PREFIX_LENGTH + ID_LENGTH] != '_')
        return PROBLEM_UNAUTHORIZED;
    const struct registry_token *known =
        registry_root_token(root, token + PREFIX_LENGTH, ID_LENGTH);
    bool same = node_token_matches(known, token + PREFIX_LENGTH + ID_LENGTH + 1);
    return same ? may(known, need, workload, instance, wall_ms) : PROBLEM_UNAUTHORIZED;
}
