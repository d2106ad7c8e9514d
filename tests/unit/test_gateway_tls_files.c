/* What the gateway shows over HTTPS: files, and new ones; redirects; challenges of ACME. */
#include <errno.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/certificates.h"
#include "tests/lib/gateway_expect.h"
#include "tests/lib/tls_files.h"

enum { DAY_S = 86400 };

/* Of the whole program: what *state is by the fixture's own functions has no room for it. */
static struct tls_files files;
static SSL_CTX *client;
static char webroot[96];

static int open_files(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes to sockets that are closed */
    tls_files_open(&files);
    client = tls_files_client();
    text_format(webroot, sizeof webroot, "%s/www", files.directory);
    return 0;
}

static int close_files(void **state)
{
    (void)state;
    SSL_CTX_free(client);
    tls_files_close(&files);
    return 0;
}

static int start_default(void **state)
{
    struct gateway_fixture_options options = {.threads = 2, .acme_webroot = webroot};
    tls_files_make(&files, 0, "first.test", -DAY_S, DAY_S);
    tls_files_make(&files, 1, "*.second.test", -DAY_S, 2 * DAY_S);
    options.tls.certificates = files.certificate_list;
    options.tls.keys = files.key_list;
    options.tls.certificate_count = 2;
    gateway_start_with(state, &options);
    return 0;
}

/* --- files ---------------------------------------------------------------------------------------- */

static void expect_refusal(size_t count, const char *text)
{
    struct certificates *c = NULL;
    struct err e = {0};
    struct gateway_tls_options o = {.listen_count = 1,
                                    .certificates = files.certificate_list,
                                    .keys = files.key_list,
                                    .certificate_count = count};
    assert_true(certificates_load(&c, &o, &e) < 0);
    if (strstr(e.msg, text) == NULL || strstr(e.msg, files.directory) == NULL)
        fail_msg("\"%s\" does not say \"%s\", or not where", e.msg, text);
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void files_that_cannot_be_used_are_named(void **state)
{
    (void)state;
    tls_files_make(&files, 0, "first.test", -DAY_S, DAY_S);
    tls_files_make(&files, 1, "first.test", -2 * DAY_S, -DAY_S);
    expect_refusal(2, "expired at");
    tls_files_make(&files, 1, "first.test", DAY_S, 2 * DAY_S);
    expect_refusal(2, "is not valid before");
    tls_files_make(&files, 1, "first.test", -DAY_S, DAY_S);
    files.key_list[1] = files.keys[0];
    expect_refusal(2, "is not the key of");
    files.key_list[1] = files.keys[1];
    assert_int_equal(chmod(files.keys[1], 0644), 0);
    expect_refusal(2, "has mode 0644");
    assert_int_equal(chmod(files.keys[1], 0660), 0);
    expect_refusal(2, "has mode 0660");
    assert_int_equal(chmod(files.keys[1], 0640), 0);
    struct certificates *c = NULL;
    struct err e = {0};
    struct gateway_tls_options o = {
        .certificates = files.certificate_list, .keys = files.key_list, .certificate_count = 2};
    assert_int_equal(certificates_load(&c, &o, &e), 0);
    char described[256];
    certificates_describe(c, described, sizeof described);
    assert_non_null(strstr(described, "first.test until 20"));
    certificates_release(c);
    write_text(files.keys[1], "-----BEGIN NONSENSE-----\n");
    expect_refusal(2, "holds no private key");
    write_text(files.certificates[1], "nothing\n");
    expect_refusal(2, "holds no certificate");
    unlink(files.certificates[1]);
    expect_refusal(2, "No such file");
    assert_int_equal(mkfifo(files.certificates[1], 0600), 0);
    expect_refusal(2, "is no file");
    unlink(files.certificates[1]);
}

static void a_pass_phrase_is_not_asked_for(void **state)
{
    (void)state;
    tls_files_make(&files, 0, "first.test", -DAY_S, DAY_S);
    EVP_PKEY *key = EVP_EC_gen("P-256");
    FILE *file = fopen(files.keys[0], "w");
    assert_non_null(file);
    assert_int_equal(PEM_write_PrivateKey(file, key, EVP_aes_128_cbc(),
                                          (const unsigned char *)"secret", 6, NULL, NULL),
                     1);
    fclose(file);
    EVP_PKEY_free(key);
    expect_refusal(1, "has a pass phrase");
}

static void new_certificates_come_without_a_break(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client old;
    struct test_answer a;
    struct gateway_counters before, after;
    test_client_open_tls(&old, f, client, NULL);
    test_client_send(&old, "GET /w/web/echo HTTP/1.1\r\nHo");
    gateway_counters(f->gateway, &before);
    /* What cannot be used leaves all as it is. */
    write_text(files.certificates[1], "nothing\n");
    gateway_reload_certificates(f->gateway);
    tls_files_make(&files, 0, "renewed.test", -DAY_S, 20 * DAY_S);
    gateway_reload_certificates(f->gateway);
    gateway_expect_certificate(f, client, NULL, "first.test");
    tls_files_make(&files, 1, "*.second.test", -DAY_S, 30 * DAY_S);
    gateway_reload_certificates(f->gateway);
    wait_until((gateway_counters(f->gateway, &after),
                after.certificate_expires_s > before.certificate_expires_s));
    wait_until((gateway_expect_certificate(f, client, "a.second.test", "*.second.test"), true));
    struct test_client c;
    char shown[128] = "";
    for (int i = 0; i < 400 && strcmp(shown, "renewed.test") != 0; i++) {
        test_client_open_tls(&c, f, client, NULL);
        X509 *x = SSL_get1_peer_certificate(c.ssl);
        X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, shown, sizeof shown);
        X509_free(x);
        test_client_close(&c);
    }
    assert_string_equal(shown, "renewed.test");
    /* The old connection goes on where it was. */
    test_client_send(&old, "st: localhost\r\n\r\n");
    test_client_read(&old, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_close(&old);
}

/* --- redirects and ACME --------------------------------------------------------------------------- */

static void expect_redirect(struct gateway_fixture *f, const char *request, const char *host_path)
{
    struct test_client c;
    struct test_answer a;
    char location[256];
    const char *slash = strchr(host_path, '/');
    text_format(location, sizeof location, "https://%.*s:%u%s", (int)(slash - host_path), host_path,
                f->https_port, slash);
    test_client_connect(&c, f->redirect_port);
    test_client_send(&c, request);
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 308);
    assert_non_null(test_answer_field(&a, "Location"));
    assert_string_equal(test_answer_field(&a, "Location"), location);
    test_answer_free(&a);
    test_client_close(&c);
}

static void plain_http_is_led_to_https(void **state)
{
    struct gateway_fixture *f = *state;
    expect_redirect(f, "GET /w/web/a%2Fb?c=d HTTP/1.1\r\nHost: shop.test:8080\r\n\r\n",
                    "shop.test/w/web/a%2Fb?c=d");
    expect_redirect(f, "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 9\r\n\r\n",
                    "shop.test/");
    expect_redirect(f, "GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "[::1]/x");
    expect_redirect(f, "GET http://shop.test?q HTTP/1.1\r\nHost: shop.test\r\n\r\n",
                    "shop.test/?q");
    struct test_client c;
    struct test_answer a;
    test_client_connect(&c, f->redirect_port);
    test_client_send(&c, GET("/livez"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_send(&c, "GET /w/web/ HTTP/1.0\r\n\r\n");
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 400, "bad_request");
    test_answer_free(&a);
    test_client_close(&c);
    assert_int_equal(f->backend_connections, 0);
}

static void expect_challenge(struct gateway_fixture *f, unsigned port, const char *name,
                             const char *expected)
{
    struct test_client c;
    struct test_answer a;
    char request[512];
    (void)f;
    text_format(request, sizeof request,
                "GET /.well-known/acme-challenge/%s HTTP/1.1\r\nHost: shop.test\r\n\r\n", name);
    test_client_connect(&c, port);
    test_client_send(&c, request);
    test_client_read(&c, &a, false);
    if (expected == NULL)
        gateway_assert_problem(&a, 404, "not_found");
    else if (a.status != 200 || strcmp(a.body, expected) != 0)
        fail_msg("%s: %s%s", name, a.head, a.body);
    test_answer_free(&a);
    test_client_close(&c);
}

static void challenges_come_from_the_folder_and_from_nowhere_else(void **state)
{
    struct gateway_fixture *f = *state;
    char folder[160], challenges[192], path[256], outside[160];
    text_format(folder, sizeof folder, "%s/.well-known", webroot);
    text_format(challenges, sizeof challenges, "%s/acme-challenge", folder);
    text_format(outside, sizeof outside, "%s/outside", webroot);
    expect_challenge(f, f->redirect_port, "abc", NULL); /* there is no folder yet */
    assert_int_equal(mkdir(webroot, 0755) | mkdir(folder, 0755) | mkdir(challenges, 0755), 0);
    write_text(outside, "secret");
    text_format(path, sizeof path, "%s/abc-DEF_1", challenges);
    write_text(path, "abc.thumbprint");
    text_format(path, sizeof path, "%s/link", challenges);
    assert_int_equal(symlink(outside, path), 0);
    text_format(path, sizeof path, "%s/pipe", challenges);
    assert_int_equal(mkfifo(path, 0600), 0);
    text_format(path, sizeof path, "%s/sub", challenges);
    assert_int_equal(mkdir(path, 0755), 0);
    text_format(path, sizeof path, "%s/large", challenges);
    assert_int_equal(truncate((write_text(path, ""), path), 5000), 0);

    expect_challenge(f, f->redirect_port, "abc-DEF_1", "abc.thumbprint");
    expect_challenge(f, f->redirect_port, "abc-DEF_1?x=y", "abc.thumbprint");
    expect_challenge(f, f->port, "abc-DEF_1", "abc.thumbprint");
    static const char *const refused[] = {
        "",       "none",          "link",     "pipe",      "sub",    "large",
        "sub/",   "../../outside", "..",       ".",         "%2e%2e", "..%2f..%2foutside",
        "abc%00", "abc-DEF_1/",    "a\\..\\b", "//outside", "link?x", "sub/../abc-DEF_1",
    };
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
        expect_challenge(f, f->redirect_port, refused[i], NULL);
    static const char *const made[] = {"abc-DEF_1", "link", "pipe", "large"};
    for (size_t i = 0; i < ARRAY_SIZE(made); i++) {
        text_format(path, sizeof path, "%s/%s", challenges, made[i]);
        assert_int_equal(unlink(path), 0);
    }
    text_format(path, sizeof path, "%s/sub", challenges);
    assert_int_equal(rmdir(path) | rmdir(challenges) | rmdir(folder) | unlink(outside), 0);
    assert_int_equal(rmdir(webroot), 0);
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_that_cannot_be_used_are_named),
        cmocka_unit_test(a_pass_phrase_is_not_asked_for),
        TEST(new_certificates_come_without_a_break, start_default),
        TEST(plain_http_is_led_to_https, start_default),
        TEST(challenges_come_from_the_folder_and_from_nowhere_else, start_default),
    };
    return cmocka_run_group_tests_name("gateway_tls_files", tests, open_files, close_files);
}
