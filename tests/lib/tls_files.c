#include "tests/lib/tls_files.h"

#include <fcntl.h>
#include <glob.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"

void tls_files_open(struct tls_files *f)
{
    memset(f, 0, sizeof *f);
    text_copy(f->directory, sizeof f->directory, "/tmp/skerry-test-tls-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    for (unsigned i = 0; i < TLS_FILES_MAX; i++) {
        text_format(f->certificates[i], sizeof f->certificates[i], "%s/%u.pem", f->directory, i);
        text_format(f->keys[i], sizeof f->keys[i], "%s/%u.key", f->directory, i);
        f->certificate_list[i] = f->certificates[i];
        f->key_list[i] = f->keys[i];
    }
}

void tls_files_close(struct tls_files *f)
{
    for (unsigned i = 0; i < TLS_FILES_MAX; i++) {
        unlink(f->certificates[i]);
        unlink(f->keys[i]);
    }
    assert_int_equal(rmdir(f->directory), 0);
}

static void write_pem(const char *path, EVP_PKEY *key, X509 *certificate)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    assert_non_null(file);
    if (key != NULL)
        assert_int_equal(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
    else
        assert_int_equal(PEM_write_X509(file, certificate), 1);
    assert_int_equal(fclose(file), 0);
}

void tls_files_make(struct tls_files *f, unsigned n, const char *name, long from_s, long until_s)
{
    char names[128];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    assert_non_null(key);
    assert_non_null(x);
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1 + (long)n);
    X509_gmtime_adj(X509_getm_notBefore(x), from_s);
    X509_gmtime_adj(X509_getm_notAfter(x), until_s);
    X509_NAME *subject = X509_get_subject_name(x);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, subject);
    X509_set_pubkey(x, key);
    text_format(names, sizeof names, "DNS:%s", name);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, names);
    assert_non_null(extension);
    X509_add_ext(x, extension, -1);
    X509_EXTENSION_free(extension);
    assert_true(X509_sign(x, key, EVP_sha256()) > 0);
    write_pem(f->certificates[n], NULL, x);
    write_pem(f->keys[n], key, NULL);
    X509_free(x);
    EVP_PKEY_free(key);
}

SSL_CTX *tls_files_client(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    assert_non_null(context);
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    return context;
}
