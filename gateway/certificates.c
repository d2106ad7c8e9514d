#include "gateway/certificates.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/tls.h"

enum {
    /* A chain of five certificates with RSA-4096 has 10 KiB. */
    FILE_BYTES_MAX = 256 * 1024,
    CHAIN_MAX = 16,
    NAME_SHOWN_SIZE = 128,
    DAY_SIZE = 32,
};

/* Forward secrecy and AEAD only: what is left of TLS 1.2 once its known troubles are gone. */
#define SUITES_12                                                                                  \
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:"     \
    "ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
#define SUITES_13 "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
#define GROUPS "X25519:P-256:P-384"
/* What one read of the socket may bring: two records of 16 KiB with what is around them. */
#define READ_BYTES (2u * (16384u + 22u + 64u))

struct certificate {
    SSL_CTX *context;
    X509 *leaf; /* the context's */
    int64_t expires_s;
};

struct certificates {
    _Atomic unsigned holders;
    BIO_METHOD *bio;
    struct certificate items[CERTIFICATES_MAX];
    size_t count;
};

static void reason(char *out, size_t size)
{
    unsigned long code = ERR_peek_last_error();
    const char *text = code == 0 ? NULL : ERR_reason_error_string(code);
    (void)text_copy(out, size, text == NULL ? "unknown" : text);
    ERR_clear_error();
}

/* --- files ---------------------------------------------------------------------------------------- */

static int check_mode(int fd, const char *path, bool secret, struct err *e)
{
    struct stat s;
    if (fstat(fd, &s) != 0)
        return err_sys(e, ERR_IO, errno, "look at %s", path);
    if (!S_ISREG(s.st_mode))
        return err_set(e, ERR_INVALID, "%s is no file", path);
    if (secret && (s.st_mode & (S_IRWXO | S_IWGRP)) != 0)
        return err_set(e, ERR_DENIED,
                       "%s has mode %04o: others than its owner could read or change the key; "
                       "chmod 600 it, or 640 for a group",
                       path, (unsigned)(s.st_mode & 07777));
    return 0;
}

/* The whole file in *out, which is FILE_BYTES_MAX large. */
static int read_file(char *out, size_t *length, const char *path, bool secret, struct err *e)
{
    /* Not to wait for a writer, should it be a pipe. */
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno,
                       "open %s (serve runs as uid %u)", path, (unsigned)geteuid());
    int rc = check_mode(fd, path, secret, e);
    *length = 0;
    while (rc == 0 && *length < FILE_BYTES_MAX) {
        ssize_t n = read(fd, out + *length, FILE_BYTES_MAX - *length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read %s", path);
        if (n == 0)
            return 0;
        *length += (size_t)n;
    }
    return rc != 0 ? rc
                   : err_set(e, ERR_LIMIT, "%s has %d bytes or more; that is no certificate", path,
                             FILE_BYTES_MAX);
}

/* OpenSSL would ask on the terminal. */
static int no_pass_phrase_cb(char *out, int size, int writing, void *asked)
{
    (void)out, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

static int read_key(EVP_PKEY **out, char *scratch, const char *path, struct err *e)
{
    size_t length = 0;
    bool asked = false;
    int rc = read_file(scratch, &length, path, true, e);
    if (rc == 0) {
        BIO *bio = BIO_new_mem_buf(scratch, (int)length);
        *out = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, no_pass_phrase_cb, &asked);
        BIO_free(bio);
        ERR_clear_error();
        if (*out == NULL)
            rc = err_set(e, ERR_INVALID,
                         asked ? "%s has a pass phrase, and nobody is there to type it: store the "
                                 "key without one (openssl pkey -in %s)"
                               : "%s holds no private key in PEM (-----BEGIN PRIVATE KEY-----)%.0s",
                         path, path);
    }
    OPENSSL_cleanse(scratch, FILE_BYTES_MAX);
    return rc;
}

static int use_chain(SSL_CTX *context, BIO *bio, X509 **leaf, const char *path, struct err *e)
{
    char why[96];
    X509 *x = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    bool ok = x != NULL && SSL_CTX_use_certificate(context, x) == 1;
    *leaf = ok ? SSL_CTX_get0_certificate(context) : NULL;
    if (x == NULL)
        err_set(e, ERR_INVALID, "%s holds no certificate in PEM (-----BEGIN CERTIFICATE-----)",
                path);
    X509_free(x);
    for (int i = 0; ok && i < CHAIN_MAX; i++) {
        X509 *issuer = PEM_read_bio_X509(bio, NULL, NULL, NULL);
        if (issuer == NULL) {
            ERR_clear_error();
            return 0;
        }
        ok = SSL_CTX_add0_chain_cert(context, issuer) == 1;
        if (!ok)
            X509_free(issuer);
    }
    if (ok)
        return err_set(e, ERR_LIMIT, "%s holds more than %d certificates", path, CHAIN_MAX);
    reason(why, sizeof why);
    return x == NULL ? -ERR_INVALID : err_set(e, ERR_INVALID, "%s cannot be used: %s", path, why);
}

static int read_chain(SSL_CTX *context, X509 **leaf, char *scratch, const char *path, struct err *e)
{
    size_t length = 0;
    int rc = read_file(scratch, &length, path, false, e);
    if (rc != 0)
        return rc;
    BIO *bio = BIO_new_mem_buf(scratch, (int)length);
    if (bio == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", path);
    rc = use_chain(context, bio, leaf, path, e);
    BIO_free(bio);
    return rc;
}

/* --- times ---------------------------------------------------------------------------------------- */

static int64_t seconds_of(const ASN1_TIME *t)
{
    struct tm tm;
    return ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

static void day_of(int64_t seconds, char out[DAY_SIZE])
{
    struct tm tm;
    time_t t = (time_t)seconds;
    if (gmtime_r(&t, &tm) == NULL || strftime(out, DAY_SIZE, "%Y-%m-%d %H:%M UTC", &tm) == 0)
        out[0] = '\0';
}

static int check_times(struct certificate *c, const char *path, struct err *e)
{
    char day[DAY_SIZE];
    int64_t now = (int64_t)(clock_wall_ms() / 1000);
    int64_t begins = seconds_of(X509_get0_notBefore(c->leaf));
    c->expires_s = seconds_of(X509_get0_notAfter(c->leaf));
    if (now >= c->expires_s) {
        day_of(c->expires_s, day);
        return err_set(e, ERR_INVALID, "%s expired at %s; renew it (certbot renew)", path, day);
    }
    if (now < begins) {
        day_of(begins, day);
        return err_set(e, ERR_INVALID, "%s is not valid before %s; is the clock right?", path, day);
    }
    return 0;
}

/* --- names ---------------------------------------------------------------------------------------- */

static int servername_cb(SSL *ssl, int *alert, void *set)
{
    (void)alert;
    struct certificates *c = set;
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    for (size_t i = 0; name != NULL && i < c->count; i++) {
        if (X509_check_host(c->items[i].leaf, name, strlen(name), 0, NULL) == 1) {
            SSL_set_SSL_CTX(ssl, c->items[i].context);
            break;
        }
    }
    return SSL_TLSEXT_ERR_OK;
}

/* Who names protocols and not ours would not understand what we say (RFC 7301, 3.2). */
static int alpn_cb(SSL *ssl, const unsigned char **out, unsigned char *out_length,
                   const unsigned char *in, unsigned in_length, void *argument)
{
    static const char ours[] = "http/1.1";
    (void)ssl;
    (void)argument;
    for (unsigned at = 0; at < in_length && in[at] <= in_length - at - 1; at += in[at] + 1u) {
        if (in[at] == sizeof ours - 1 && memcmp(in + at + 1, ours, sizeof ours - 1) == 0) {
            *out = in + at + 1;
            *out_length = in[at];
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* --- one certificate ------------------------------------------------------------------------------ */

static int set_up(SSL_CTX *context, bool tls13_only, struct err *e)
{
    char why[96];
    static const unsigned char name[] = "skerry";
    if (SSL_CTX_set_min_proto_version(context, tls13_only ? TLS1_3_VERSION : TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(context, SUITES_12) != 1 ||
        SSL_CTX_set_ciphersuites(context, SUITES_13) != 1 ||
        SSL_CTX_set1_groups_list(context, GROUPS) != 1 ||
        SSL_CTX_set_session_id_context(context, name, sizeof name - 1) != 1 ||
        SSL_CTX_set_max_early_data(context, 0) != 1) {
        reason(why, sizeof why);
        return err_set(e, ERR_INTERNAL, "set up HTTPS: %s", why);
    }
    /* Tickets, but no table of sessions. A closed connection without close_notify is told apart from
     * one with it by gateway/tls.c, and must not forbid the answer. */
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                     SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, READ_BYTES);
    SSL_CTX_set_alpn_select_cb(context, alpn_cb, NULL);
    return 0;
}

static int load_one(struct certificate *c, const char *chain, const char *key, bool tls13_only,
                    struct err *e)
{
    CLEANUP_FREE char *scratch = malloc(FILE_BYTES_MAX);
    c->context = SSL_CTX_new(TLS_server_method());
    if (scratch == NULL || c->context == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", chain);
    int rc = set_up(c->context, tls13_only, e);
    if (rc == 0)
        rc = read_chain(c->context, &c->leaf, scratch, chain, e);
    if (rc == 0)
        rc = check_times(c, chain, e);
    EVP_PKEY *k = NULL;
    if (rc == 0)
        rc = read_key(&k, scratch, key, e);
    if (rc == 0 &&
        (X509_check_private_key(c->leaf, k) != 1 || SSL_CTX_use_PrivateKey(c->context, k) != 1))
        rc = err_set(e, ERR_INVALID,
                     "%s is not the key of %s; gateway.tls.certificate and gateway.tls.key must be "
                     "in the same order, and the first certificate of a file its own",
                     key, chain);
    EVP_PKEY_free(k);
    ERR_clear_error();
    return rc;
}

/* --- the set -------------------------------------------------------------------------------------- */

static void set_free(struct certificates *c)
{
    for (size_t i = 0; i < c->count; i++)
        SSL_CTX_free(c->items[i].context);
    BIO_meth_free(c->bio);
    free(c);
}

int certificates_load(struct certificates **out, const struct gateway_tls_options *options,
                      struct err *e)
{
    size_t count = options->certificate_count;
    if (count == 0 || count > CERTIFICATES_MAX)
        return err_set(e, ERR_INVALID, "gateway.tls.certificate: 1 to %d files are taken, not %zu",
                       CERTIFICATES_MAX, count);
    struct certificates *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NO_MEMORY, "read the certificates: no memory");
    c->holders = 1;
    c->bio = tls_bio_method();
    int rc = c->bio != NULL ? 0 : err_set(e, ERR_NO_MEMORY, "read the certificates: no memory");
    for (size_t i = 0; rc == 0 && i < count; i++) {
        c->count++;
        rc = load_one(&c->items[i], options->certificates[i], options->keys[i], options->tls13_only,
                      e);
        if (rc == 0) {
            SSL_CTX_set_tlsext_servername_callback(c->items[i].context, servername_cb);
            SSL_CTX_set_tlsext_servername_arg(c->items[i].context, c);
        }
    }
    if (rc != 0) {
        set_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

struct certificates *certificates_hold(struct certificates *c)
{
    atomic_fetch_add(&c->holders, 1);
    return c;
}

void certificates_release(struct certificates *c)
{
    if (c != NULL && atomic_fetch_sub(&c->holders, 1) == 1)
        set_free(c);
}

int64_t certificates_expire_s(const struct certificates *c)
{
    int64_t first = c->items[0].expires_s;
    for (size_t i = 1; i < c->count; i++)
        if (c->items[i].expires_s < first)
            first = c->items[i].expires_s;
    return first;
}

/* Its first DNS name, else its common name. */
static void name_of(X509 *x, char out[NAME_SHOWN_SIZE])
{
    STACK_OF(GENERAL_NAME) *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    const GENERAL_NAME *first = names == NULL ? NULL : sk_GENERAL_NAME_value(names, 0);
    out[0] = '\0';
    if (first != NULL && first->type == GEN_DNS)
        (void)text_format(out, NAME_SHOWN_SIZE, "%.*s", ASN1_STRING_length(first->d.dNSName),
                          (const char *)ASN1_STRING_get0_data(first->d.dNSName));
    else
        (void)X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, out,
                                        NAME_SHOWN_SIZE);
    sk_GENERAL_NAME_pop_free(names, GENERAL_NAME_free);
    for (char *p = out; *p != '\0'; p++)
        if (*p < 0x21 || *p > 0x7e)
            *p = '?';
}

void certificates_describe(const struct certificates *c, char *out, size_t size)
{
    size_t length = 0;
    out[0] = '\0';
    for (size_t i = 0; i < c->count && length + 1 < size; i++) {
        char name[NAME_SHOWN_SIZE], day[DAY_SIZE];
        name_of(c->items[i].leaf, name);
        day_of(c->items[i].expires_s, day);
        (void)text_format(out + length, size - length, "%s%s until %s", i == 0 ? "" : ", ", name,
                          day);
        length += strlen(out + length);
    }
}

SSL_CTX *certificates_context(struct certificates *c)
{
    return c->items[0].context;
}

BIO_METHOD *certificates_bio(struct certificates *c)
{
    return c->bio;
}
