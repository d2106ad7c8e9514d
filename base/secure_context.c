/* base/secure_context.c - how TLS is spoken, and the one question that decides who may. */
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/secure_internal.h"

/* One suite with hardware on every server since 2010, one without. AES-128: its key is no weaker
 * than X25519, and it costs a fifth less than AES-256. */
#define SUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
/* A certificate of ours has 300 bytes. */
#define CERTIFICATES_BYTES_MAX 4096
/* What one read of the socket may bring: four records of 16 KiB and their 22 bytes each. */
#define READ_BYTES (4u * (16384u + 22u + 64u))

static const char *const names[SECURE_PROTOCOL_COUNT] = {
    [SECURE_JOIN] = "skerry-join/1",   [SECURE_RAFT] = "skerry-raft/1",
    [SECURE_IMAGE] = "skerry-image/1", [SECURE_ENROLL] = "skerry-enroll/1",
    [SECURE_API] = "skerry-api/1",     [SECURE_ERRAND] = "skerry-errand/1",
    [SECURE_SPARE] = "skerry-spare/1",
};

const char *secure_protocol_name(enum secure_protocol protocol)
{
    return names[protocol];
}

void secure_openssl_reason(char *out, size_t size)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    (void)text_copy(out, size, reason == NULL ? "the connection broke" : reason);
    ERR_clear_error();
}

/* --- trust ---------------------------------------------------------------------------------------- */

/* Is `key`, which calls itself `id`, the one that is awaited? */
static bool believe(const struct secure_stream *s, node_id id, const struct identity_public *key)
{
    const struct secure_context_options *options = &s->context->options;
    struct identity_public wanted;
    if (s->strangers)
        return true;
    if (s->by_fingerprint) {
        struct identity_fingerprint print;
        identity_fingerprint(key, &print);
        return memory_equal_constant_time(print.bytes, s->fingerprint.bytes, sizeof print.bytes);
    }
    if (id == 0 || (!s->server && id != s->expected))
        return false;
    return options->key_of(options->user, id, &wanted) && identity_public_equal(&wanted, key);
}

/* Instead of OpenSSL's walk along a chain: there is none. That the other side holds the key is what
 * the handshake itself proves. */
static int verify_cb(X509_STORE_CTX *store, void *argument)
{
    (void)argument;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct secure_stream *s = SSL_get_app_data(ssl);
    X509 *certificate = X509_STORE_CTX_get0_cert(store);
    node_id id = 0;
    struct identity_public key;
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
    if (certificate == NULL || !identity_certificate_read(certificate, &id, &key) ||
        !believe(s, id, &key))
        return 0;
    s->peer.id = s->strangers ? 0 : id;
    s->peer.key = key;
    s->peer.known = true;
    X509_STORE_CTX_set_error(store, X509_V_OK);
    return 1;
}

bool secure_stream_trusted(const struct secure_stream *s)
{
    return s->peer.known && believe(s, s->peer.id, &s->peer.key);
}

bool secure_stream_distrusted(const struct secure_stream *s)
{
    return s->peer.known && !believe(s, s->peer.id, &s->peer.key);
}

/* --- protocols ------------------------------------------------------------------------------------ */

static bool protocol_find(const unsigned char *name, size_t length, enum secure_protocol *out)
{
    for (unsigned i = 0; i < SECURE_PROTOCOL_COUNT; i++) {
        if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0) {
            *out = (enum secure_protocol)i;
            return true;
        }
    }
    return false;
}

/* The first of the client's that this listener speaks; a client of ours names one. */
static int alpn_cb(SSL *ssl, const unsigned char **out, unsigned char *out_length,
                   const unsigned char *in, unsigned in_length, void *argument)
{
    (void)argument;
    struct secure_stream *s = SSL_get_app_data(ssl);
    for (unsigned at = 0; at < in_length && in[at] <= in_length - at - 1; at += in[at] + 1u) {
        enum secure_protocol protocol;
        if (!protocol_find(in + at + 1, in[at], &protocol) || (s->protocols & 1u << protocol) == 0)
            continue;
        s->protocol = protocol;
        *out = in + at + 1;
        *out_length = in[at];
        return SSL_TLSEXT_ERR_OK;
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static bool protocol_offer(SSL *ssl, enum secure_protocol protocol)
{
    unsigned char offer[64];
    size_t length = strlen(names[protocol]);
    offer[0] = (unsigned char)length;
    memcpy(offer + 1, names[protocol], length);
    return SSL_set_alpn_protos(ssl, offer, (unsigned)length + 1) == 0;
}

/* --- the context ---------------------------------------------------------------------------------- */

static int set_up(SSL_CTX *ssl, const struct secure_context_options *options, struct err *e)
{
    X509 *certificate = NULL;
    EVP_PKEY *key = NULL;
    int rc = identity_certificate(options->identity, options->id, &certificate, &key, e);
    if (rc != 0)
        return rc;
    bool ok = SSL_CTX_use_certificate(ssl, certificate) == 1 &&
              SSL_CTX_use_PrivateKey(ssl, key) == 1 &&
              SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_ciphersuites(ssl, SUITES) == 1 &&
              SSL_CTX_set1_groups_list(ssl, "X25519") == 1 &&
              SSL_CTX_set1_sigalgs_list(ssl, "ed25519") == 1 &&
              SSL_CTX_set1_client_sigalgs_list(ssl, "ed25519") == 1 &&
              SSL_CTX_set_num_tickets(ssl, 0) == 1 && SSL_CTX_set_max_early_data(ssl, 0) == 1;
    X509_free(certificate);
    EVP_PKEY_free(key);
    if (!ok) {
        char reason[96];
        secure_openssl_reason(reason, sizeof reason);
        return err_set(e, ERR_INTERNAL, "set up TLS: %s", reason);
    }
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(ssl, 1);
    SSL_CTX_set_default_read_buffer_len(ssl, READ_BYTES);
    SSL_CTX_set_max_cert_list(ssl, CERTIFICATES_BYTES_MAX);
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(ssl, verify_cb, NULL);
    SSL_CTX_set_alpn_select_cb(ssl, alpn_cb, NULL);
    return 0;
}

int secure_context_open(struct secure_context **out, const struct secure_context_options *options,
                        struct err *e)
{
    struct secure_context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return err_set(e, ERR_NO_MEMORY, "set up TLS: no memory");
    context->options = *options;
    context->ssl = SSL_CTX_new(TLS_method());
    context->bio = secure_bio_method();
    int rc = context->ssl == NULL || context->bio == NULL
                 ? err_set(e, ERR_NO_MEMORY, "set up TLS: no memory")
                 : set_up(context->ssl, options, e);
    if (rc != 0) {
        secure_context_free(context);
        return rc;
    }
    *out = context;
    return 0;
}

void secure_context_free(struct secure_context *context)
{
    if (context == NULL)
        return;
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->bio);
    free(context);
}

int secure_context_start(struct secure_stream *s, struct err *e)
{
    s->ssl = SSL_new(s->context->ssl);
    BIO *bio = s->ssl == NULL ? NULL : BIO_new(s->context->bio);
    if (bio == NULL || (!s->server && !protocol_offer(s->ssl, s->protocol))) {
        BIO_free(bio);
        return err_set(e, ERR_NO_MEMORY, "start TLS: no memory");
    }
    BIO_set_data(bio, s);
    BIO_set_init(bio, 1);
    SSL_set_bio(s->ssl, bio, bio);
    SSL_set_app_data(s->ssl, (void *)s);
    if (s->server)
        SSL_set_accept_state(s->ssl);
    else
        SSL_set_connect_state(s->ssl);
    return 0;
}
