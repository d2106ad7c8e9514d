#include "base/identity.h"

#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/identity_seed.h"
#include "base/memory.h"
#include "base/private_file.h"

#define FILE_PREFIX "skerry-ed25519-1:"
#define FILE_PREFIX_LENGTH 17u
#define SEED_DIGITS 43u /* ceil(32 * 8 / 6) */
#define FILE_LENGTH (FILE_PREFIX_LENGTH + SEED_DIGITS + 1u /* line feed */)
#define BASE64 sodium_base64_VARIANT_URLSAFE_NO_PADDING
#define PUBLIC_PREFIX "ed25519:"
#define PRINT_PREFIX "sha256:"

_Static_assert(sizeof(FILE_PREFIX) - 1 == FILE_PREFIX_LENGTH, "length of the prefix");
_Static_assert(sizeof(PUBLIC_PREFIX) + SEED_DIGITS == IDENTITY_TEXT_SIZE, "size of a key's text");
_Static_assert(sizeof(PRINT_PREFIX) + SEED_DIGITS == IDENTITY_FINGERPRINT_TEXT_SIZE, "of a print");
_Static_assert(crypto_box_BEFORENMBYTES == IDENTITY_SHARED_BYTES, "size of a shared key");
_Static_assert(crypto_sign_SEEDBYTES == sizeof(struct identity_public), "seed and key are as long");

/* Lies in memory of sodium_malloc. */
struct identity {
    uint8_t seed[crypto_sign_SEEDBYTES];
    uint8_t box_secret[crypto_box_SECRETKEYBYTES];
    struct identity_public public;
};

/* --- one key ------------------------------------------------------------------------------------ */

static int allocate(struct identity **out, struct err *e)
{
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "node key: libsodium has no randomness");
    *out = sodium_malloc(sizeof **out);
    if (*out == NULL)
        return err_set(e, ERR_NO_MEMORY, "node key: no memory");
    return 0;
}

/* All that follows from the seed. */
static void derive(struct identity *identity)
{
    uint8_t secret[crypto_sign_SECRETKEYBYTES];
    (void)crypto_sign_seed_keypair(identity->public.bytes, secret, identity->seed);
    (void)crypto_sign_ed25519_sk_to_curve25519(identity->box_secret, secret);
    sodium_memzero(secret, sizeof secret);
    (void)sodium_mprotect_readonly(identity);
}

int identity_new(struct identity **out, struct err *e)
{
    struct identity *identity = NULL;
    int rc = allocate(&identity, e);
    if (rc != 0)
        return rc;
    randombytes_buf(identity->seed, sizeof identity->seed);
    derive(identity);
    *out = identity;
    return 0;
}

void identity_free(struct identity *identity)
{
    sodium_free(identity); /* wipes; NULL is fine */
}

const struct identity_public *identity_public(const struct identity *identity)
{
    return &identity->public;
}

bool identity_shared(const struct identity *identity, const struct identity_public *peer,
                     uint8_t out[IDENTITY_SHARED_BYTES])
{
    uint8_t box_public[crypto_box_PUBLICKEYBYTES];
    return crypto_sign_ed25519_pk_to_curve25519(box_public, peer->bytes) == 0 &&
           crypto_box_beforenm(out, box_public, identity->box_secret) == 0;
}

const uint8_t *identity_seed(const struct identity *identity)
{
    return identity->seed;
}

/* --- public keys -------------------------------------------------------------------------------- */

bool identity_public_equal(const struct identity_public *a, const struct identity_public *b)
{
    return memory_equal_constant_time(a->bytes, b->bytes, sizeof a->bytes);
}

bool identity_public_valid(const struct identity_public *key)
{
    return crypto_core_ed25519_is_valid_point(key->bytes) == 1;
}

static void format(char *out, size_t size, const char *prefix, const uint8_t bytes[32])
{
    size_t length = strlen(prefix);
    memcpy(out, prefix, length);
    (void)sodium_bin2base64(out + length, size - length, bytes, 32, BASE64);
}

/* Exactly 43 canonical digits; unused bits of the last one must be 0, or two texts were one key. */
static bool parse(uint8_t out[32], const char *digits, size_t count)
{
    size_t length = 0;
    const char *end = NULL;
    char again[SEED_DIGITS + 1];
    bool ok = count == SEED_DIGITS &&
              sodium_base642bin(out, 32, digits, count, NULL, &length, &end, BASE64) == 0 &&
              length == 32 && end == digits + count;
    if (ok) {
        (void)sodium_bin2base64(again, sizeof again, out, 32, BASE64);
        ok = memory_equal_constant_time(again, digits, SEED_DIGITS);
    }
    sodium_memzero(again, sizeof again);
    return ok;
}

void identity_public_format(const struct identity_public *key, char out[IDENTITY_TEXT_SIZE])
{
    format(out, IDENTITY_TEXT_SIZE, PUBLIC_PREFIX, key->bytes);
}

bool identity_public_parse(struct identity_public *out, const char *text)
{
    size_t prefix = strlen(PUBLIC_PREFIX);
    struct identity_public key;
    if (strncmp(text, PUBLIC_PREFIX, prefix) != 0 ||
        !parse(key.bytes, text + prefix, strlen(text + prefix)) || !identity_public_valid(&key))
        return false;
    *out = key;
    return true;
}

void identity_fingerprint(const struct identity_public *key, struct identity_fingerprint *out)
{
    (void)crypto_hash_sha256(out->bytes, key->bytes, sizeof key->bytes);
}

void identity_fingerprint_format(const struct identity_fingerprint *print,
                                 char out[IDENTITY_FINGERPRINT_TEXT_SIZE])
{
    format(out, IDENTITY_FINGERPRINT_TEXT_SIZE, PRINT_PREFIX, print->bytes);
}

/* --- files -------------------------------------------------------------------------------------- */

static int load(struct identity *identity, int folder, struct err *e)
{
    char text[FILE_LENGTH + 1]; /* one more, to notice a longer file */
    size_t length = 0;
    int rc = private_file_read(folder, IDENTITY_FILE, text, sizeof text, &length, e);
    if (rc != 0)
        return rc;
    bool ok = length == FILE_LENGTH && memcmp(text, FILE_PREFIX, FILE_PREFIX_LENGTH) == 0 &&
              text[FILE_LENGTH - 1] == '\n' &&
              parse(identity->seed, text + FILE_PREFIX_LENGTH, SEED_DIGITS);
    sodium_memzero(text, sizeof text);
    if (ok)
        return 0;
    return err_set(e, ERR_INVALID,
                   "%s is damaged; restore it, or remove the data folder and join anew",
                   IDENTITY_FILE);
}

static int create(int folder, struct err *e)
{
    char text[FILE_LENGTH + 1];
    uint8_t seed[crypto_sign_SEEDBYTES];
    randombytes_buf(seed, sizeof seed);
    format(text, sizeof text, FILE_PREFIX, seed);
    sodium_memzero(seed, sizeof seed);
    text[FILE_LENGTH - 1] = '\n';
    /* Of two that start at once, one makes the key and both read it. */
    int rc = private_file_store(folder, IDENTITY_FILE, text, FILE_LENGTH, false, e);
    sodium_memzero(text, sizeof text);
    return rc;
}

int identity_open(struct identity **out, const char *directory, struct err *e)
{
    struct identity *identity = NULL;
    struct err cause;
    int rc = allocate(&identity, e);
    if (rc != 0)
        return rc;
    CLEANUP_FD int folder = private_folder_open(directory, &cause);
    rc = folder < 0 ? folder : load(identity, folder, &cause);
    if (rc == -ERR_NOT_FOUND) {
        rc = create(folder, &cause);
        if (rc == 0)
            rc = load(identity, folder, &cause);
    }
    if (rc != 0) {
        identity_free(identity);
        if (e != NULL)
            *e = cause;
        return err_wrap(e, "node key in %s", directory);
    }
    derive(identity);
    *out = identity;
    return 0;
}

static int boot_read(int folder, uint64_t *out, struct err *e)
{
    char text[24];
    size_t length = 0;
    *out = 0;
    int rc = private_file_read(folder, IDENTITY_BOOT_FILE, text, sizeof text - 1, &length, e);
    if (rc == -ERR_NOT_FOUND)
        return 0;
    if (rc != 0)
        return rc;
    text[length] = '\0';
    char *end = text;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno != 0 || strcmp(end, "\n") != 0 ||
        value > UINT64_MAX / 2)
        return err_set(e, ERR_INVALID, "%s holds no number; remove it", IDENTITY_BOOT_FILE);
    *out = value;
    return 0;
}

static int boot_write(int folder, uint64_t boot, struct err *e)
{
    char text[24];
    (void)text_format(text, sizeof text, "%" PRIu64 "\n", boot);
    return private_file_store(folder, IDENTITY_BOOT_FILE, text, strlen(text), true, e);
}

int identity_boot_next(uint64_t *out, const char *directory, uint64_t wall_ms, struct err *e)
{
    struct err cause;
    uint64_t last = 0;
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "boot number: libsodium has no randomness");
    CLEANUP_FD int folder = private_folder_open(directory, &cause);
    int rc = folder < 0 ? folder : boot_read(folder, &last, &cause);
    uint64_t boot = last + 1 > wall_ms ? last + 1 : wall_ms;
    if (rc == 0)
        rc = boot_write(folder, boot, &cause);
    if (rc != 0) {
        if (e != NULL)
            *e = cause;
        return err_wrap(e, "boot number in %s", directory);
    }
    *out = boot;
    return 0;
}
