/* base/identity_certificate.c - the form in which TLS carries a node's key.
 *
 * TLS wants a certificate around a key. Ours says "skerry-node-ID" as its only name, is signed by
 * its own key and is valid for ever: nothing in it is believed but the key, and the id as a claim
 * that the registry must confirm. */
#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <sodium.h>
#include <string.h>

#include "base/identity.h"
#include "base/identity_seed.h"
#include "base/memory.h"

#define NAME_PREFIX "skerry-node-"
#define NAME_PREFIX_LENGTH 12u
#define NAME_SIZE 40u
/* Earlier than any clock and later than any: RFC 5280, 4.1.2.5 names the second "no end". */
#define VALID_FROM "19700101000000Z"
#define VALID_UNTIL "99991231235959Z"

_Static_assert(sizeof(NAME_PREFIX) - 1 == NAME_PREFIX_LENGTH, "length of the prefix");

static bool fill(X509 *x, EVP_PKEY *key, node_id id)
{
    char name[NAME_SIZE];
    uint64_t serial = 0;
    randombytes_buf(&serial, sizeof serial);
    (void)text_format(name, sizeof name, NAME_PREFIX "%" PRIu64, id);
    X509_NAME *subject = X509_get_subject_name(x);
    return X509_set_version(x, X509_VERSION_3) == 1 &&
           ASN1_INTEGER_set_uint64(X509_get_serialNumber(x), serial >> 1 | 1) == 1 &&
           ASN1_TIME_set_string_X509(X509_getm_notBefore(x), VALID_FROM) == 1 &&
           ASN1_TIME_set_string_X509(X509_getm_notAfter(x), VALID_UNTIL) == 1 &&
           X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_ASC,
                                      (const unsigned char *)name, -1, -1, 0) == 1 &&
           X509_set_issuer_name(x, subject) == 1 && X509_set_pubkey(x, key) == 1 &&
           X509_sign(x, key, NULL) > 0;
}

int identity_certificate(const struct identity *identity, node_id id, X509 **out_certificate,
                         EVP_PKEY **out_key, struct err *e)
{
    EVP_PKEY *key =
        EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, identity_seed(identity), 32);
    X509 *x = X509_new();
    if (key == NULL || x == NULL || !fill(x, key, id)) {
        EVP_PKEY_free(key);
        X509_free(x);
        return err_set(e, ERR_INTERNAL, "make the node's certificate");
    }
    *out_certificate = x;
    *out_key = key;
    return 0;
}

static bool read_id(X509 *certificate, node_id *out)
{
    char name[NAME_SIZE], again[NAME_SIZE];
    X509_NAME *subject = X509_get_subject_name(certificate);
    if (X509_NAME_entry_count(subject) != 1)
        return false;
    int length = X509_NAME_get_text_by_NID(subject, NID_commonName, name, sizeof name);
    if (length <= (int)NAME_PREFIX_LENGTH || length >= (int)sizeof name - 1 ||
        memcmp(name, NAME_PREFIX, NAME_PREFIX_LENGTH) != 0)
        return false;
    node_id id = 0;
    for (const char *at = name + NAME_PREFIX_LENGTH; *at != '\0'; at++) {
        if (*at < '0' || *at > '9')
            return false;
        id = id * 10 + (node_id)(*at - '0');
    }
    /* No other way to write this number, nor one that is too large for it. */
    (void)text_format(again, sizeof again, NAME_PREFIX "%" PRIu64, id);
    if (strcmp(name, again) != 0)
        return false;
    *out = id;
    return true;
}

bool identity_certificate_read(X509 *certificate, node_id *out_id, struct identity_public *out_key)
{
    size_t size = sizeof out_key->bytes;
    EVP_PKEY *key = X509_get0_pubkey(certificate);
    return key != NULL && EVP_PKEY_get_id(key) == EVP_PKEY_ED25519 &&
           EVP_PKEY_get_raw_public_key(key, out_key->bytes, &size) == 1 &&
           size == sizeof out_key->bytes && identity_public_valid(out_key) &&
           read_id(certificate, out_id);
}
