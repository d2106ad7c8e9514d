#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/identity.h"
#include "base/memory.h"

struct folder {
    char path[64];
    int fd;
};

static int set_up(void **state)
{
    struct folder *f = calloc(1, sizeof *f);
    (void)text_copy(f->path, sizeof f->path, "/tmp/skerry-identity-XXXXXX");
    if (mkdtemp(f->path) == NULL)
        return -1;
    f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct folder *f = *state;
    (void)unlinkat(f->fd, IDENTITY_FILE, 0);
    (void)unlinkat(f->fd, IDENTITY_BOOT_FILE, 0);
    close(f->fd);
    int rc = rmdir(f->path); /* fails if a temporary file stayed */
    free(f);
    return rc;
}

static void write_file(const struct folder *f, const char *name, const char *text, mode_t mode)
{
    int fd = openat(f->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void the_key_is_made_once_and_kept(void **state)
{
    struct folder *f = *state;
    struct identity *a = NULL, *b = NULL;
    struct err e;
    struct stat s;
    assert_int_equal(identity_open(&a, f->path, &e), 0);
    assert_int_equal(identity_open(&b, f->path, &e), 0);
    assert_true(identity_public_equal(identity_public(a), identity_public(b)));
    assert_int_equal(fstatat(f->fd, IDENTITY_FILE, &s, 0), 0);
    assert_int_equal(s.st_mode & 07777, 0600);
    identity_free(b);
    assert_int_equal(identity_new(&b, &e), 0);
    assert_false(identity_public_equal(identity_public(a), identity_public(b)));
    identity_free(a);
    identity_free(b);
}

static void *open_key(void *argument)
{
    struct identity *identity = NULL;
    struct err e;
    return identity_open(&identity, argument, &e) == 0 ? identity : NULL;
}

static void two_that_start_at_once_have_one_key(void **state)
{
    struct folder *f = *state;
    enum { STARTERS = 8 };
    pthread_t threads[STARTERS];
    struct identity *all[STARTERS];
    for (size_t i = 0; i < STARTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_key, f->path), 0);
    for (size_t i = 0; i < STARTERS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_non_null(result);
        all[i] = result;
    }
    for (size_t i = 0; i < STARTERS; i++)
        assert_true(identity_public_equal(identity_public(all[0]), identity_public(all[i])));
    for (size_t i = 0; i < STARTERS; i++)
        identity_free(all[i]);
}

static void a_key_that_others_can_read_is_refused(void **state)
{
    struct folder *f = *state;
    struct identity *identity = NULL;
    struct err e;
    assert_int_equal(identity_open(&identity, f->path, &e), 0);
    identity_free(identity);
    assert_int_equal(fchmodat(f->fd, IDENTITY_FILE, 0640, 0), 0);
    assert_int_equal(identity_open(&identity, f->path, &e), -ERR_DENIED);
    assert_non_null(strstr(e.msg, "0640"));
    assert_non_null(strstr(e.msg, "chmod 600"));
    assert_int_equal(unlinkat(f->fd, IDENTITY_FILE, 0), 0);
    assert_int_equal(symlinkat("elsewhere", f->fd, IDENTITY_FILE), 0);
    assert_int_equal(identity_open(&identity, f->path, &e), -ERR_IO);
    assert_int_equal(identity_open(&identity, "/nonexistent", &e), -ERR_IO);
}

static void a_damaged_key_is_refused_and_not_shown(void **state)
{
    struct folder *f = *state;
    struct identity *identity = NULL;
    struct err e;
    static const char *const bad[] = {
        "",
        "skerry-ed25519-1:",
        "skerry-ed25519-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "skerry-ed25519-2:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
        "skerry-ed25519-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB\n",
        "skerry-ed25519-1:AAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAA\n",
        "skerry-ed25519-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        write_file(f, IDENTITY_FILE, bad[i], 0600);
        assert_int_equal(identity_open(&identity, f->path, &e), -ERR_INVALID);
        assert_null(strstr(e.msg, "AAAA"));
    }
    write_file(f, IDENTITY_FILE, "skerry-ed25519-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
               0600);
    assert_int_equal(identity_open(&identity, f->path, &e), 0);
    /* 3b6a27bc...59da29: Ed25519 of a seed of zeros. */
    char text[IDENTITY_TEXT_SIZE];
    identity_public_format(identity_public(identity), text);
    assert_string_equal(text, "ed25519:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik");
    identity_free(identity);
}

static void a_public_key_has_one_text(void **state)
{
    (void)state;
    struct identity *identity = NULL;
    struct err e;
    struct identity_public key;
    char text[IDENTITY_TEXT_SIZE];
    assert_int_equal(identity_new(&identity, &e), 0);
    identity_public_format(identity_public(identity), text);
    assert_int_equal(strlen(text), IDENTITY_TEXT_SIZE - 1);
    assert_true(identity_public_parse(&key, text));
    assert_true(identity_public_equal(&key, identity_public(identity)));
    static const char *const bad[] = {
        "", "ed25519:", "ed25519:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2i",
        "ed25519:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ikk",
        "ed25519:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2il",
        "ED25519:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik",
        /* The neutral element, and a point of order 8. */
        "ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "ed25519:JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(identity_public_parse(&key, bad[i]));
    struct identity_fingerprint print;
    char print_text[IDENTITY_FINGERPRINT_TEXT_SIZE];
    identity_fingerprint(identity_public(identity), &print);
    identity_fingerprint_format(&print, print_text);
    assert_int_equal(strlen(print_text), IDENTITY_FINGERPRINT_TEXT_SIZE - 1);
    identity_free(identity);
}

static void two_nodes_share_a_key_and_a_third_does_not(void **state)
{
    (void)state;
    struct identity *a = NULL, *b = NULL, *c = NULL;
    struct err e;
    uint8_t ab[IDENTITY_SHARED_BYTES], ba[IDENTITY_SHARED_BYTES], cb[IDENTITY_SHARED_BYTES];
    assert_int_equal(identity_new(&a, &e), 0);
    assert_int_equal(identity_new(&b, &e), 0);
    assert_int_equal(identity_new(&c, &e), 0);
    assert_true(identity_shared(a, identity_public(b), ab));
    assert_true(identity_shared(b, identity_public(a), ba));
    assert_true(identity_shared(c, identity_public(b), cb));
    assert_memory_equal(ab, ba, sizeof ab);
    assert_memory_not_equal(ab, cb, sizeof ab);
    struct identity_public neutral = {.bytes = {1}};
    assert_false(identity_shared(a, &neutral, ab));
    identity_free(a);
    identity_free(b);
    identity_free(c);
}

static void a_certificate_carries_key_and_id(void **state)
{
    (void)state;
    struct identity *identity = NULL;
    struct err e;
    static const node_id ids[] = {0, 1, 17, UINT64_MAX};
    assert_int_equal(identity_new(&identity, &e), 0);
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        X509 *x = NULL;
        EVP_PKEY *key = NULL;
        node_id id = 99;
        struct identity_public public;
        assert_int_equal(identity_certificate(identity, ids[i], &x, &key, &e), 0);
        assert_int_equal(X509_verify(x, key), 1);
        assert_true(identity_certificate_read(x, &id, &public));
        assert_int_equal(id, ids[i]);
        assert_true(identity_public_equal(&public, identity_public(identity)));
        X509_free(x);
        EVP_PKEY_free(key);
    }
    identity_free(identity);
}

static void a_certificate_of_another_form_says_nothing(void **state)
{
    (void)state;
    struct identity *identity = NULL;
    struct err e;
    static const char *const names[] = {"",
                                        "skerry-node-",
                                        "skerry-node-01",
                                        "skerry-node-x",
                                        "skerry-node--1",
                                        "skerry-node-18446744073709551616",
                                        "skerry-node-1 ",
                                        "other"};
    assert_int_equal(identity_new(&identity, &e), 0);
    X509 *x = NULL;
    EVP_PKEY *key = NULL;
    node_id id = 0;
    struct identity_public public;
    assert_int_equal(identity_certificate(identity, 3, &x, &key, &e), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        X509_NAME *name = X509_NAME_new();
        (void)X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_ASC,
                                         (const unsigned char *)names[i], -1, -1, 0);
        assert_int_equal(X509_set_subject_name(x, name), 1);
        assert_false(identity_certificate_read(x, &id, &public));
        X509_NAME_free(name);
    }
    EVP_PKEY *other = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    assert_non_null(other);
    assert_int_equal(X509_set_pubkey(x, other), 1);
    assert_false(identity_certificate_read(x, &id, &public));
    EVP_PKEY_free(other);
    X509_free(x);
    EVP_PKEY_free(key);
    identity_free(identity);
}

static void boot_numbers_rise(void **state)
{
    struct folder *f = *state;
    struct err e;
    uint64_t boot = 0;
    assert_int_equal(identity_boot_next(&boot, f->path, 1000, &e), 0);
    assert_int_equal(boot, 1000);
    assert_int_equal(identity_boot_next(&boot, f->path, 10, &e), 0);
    assert_int_equal(boot, 1001);
    assert_int_equal(identity_boot_next(&boot, f->path, 5000, &e), 0);
    assert_int_equal(boot, 5000);
    write_file(f, IDENTITY_BOOT_FILE, "many\n", 0600);
    assert_int_equal(identity_boot_next(&boot, f->path, 6000, &e), -ERR_INVALID);
    assert_int_equal(boot, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_key_is_made_once_and_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_that_start_at_once_have_one_key, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_key_that_others_can_read_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_key_is_refused_and_not_shown, set_up, tear_down),
        cmocka_unit_test(a_public_key_has_one_text),
        cmocka_unit_test(two_nodes_share_a_key_and_a_third_does_not),
        cmocka_unit_test(a_certificate_carries_key_and_id),
        cmocka_unit_test(a_certificate_of_another_form_says_nothing),
        cmocka_unit_test_setup_teardown(boot_numbers_rise, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
