/* tests/lib/tls_files.h - certificates for tests of HTTPS: self-signed, in a folder that goes away. */
#ifndef SKERRY_TESTS_LIB_TLS_FILES_H
#define SKERRY_TESTS_LIB_TLS_FILES_H

#include <openssl/ssl.h>

#define TLS_FILES_MAX 4

struct tls_files {
    char directory[64];
    char certificates[TLS_FILES_MAX][96], keys[TLS_FILES_MAX][96];
    /* As struct gateway_tls_options takes them. */
    const char *certificate_list[TLS_FILES_MAX], *key_list[TLS_FILES_MAX];
};

void tls_files_open(struct tls_files *f);
void tls_files_close(struct tls_files *f);
/* Writes the n-th pair anew: for `name`, valid from now + `from_s` on, until now + `until_s`. */
void tls_files_make(struct tls_files *f, unsigned n, const char *name, long from_s, long until_s);
/* A client that believes in nobody, and reads what comes until close_notify. */
SSL_CTX *tls_files_client(void);

#endif
