#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/lib/gateway_expect.h"

void gateway_start_with(void **state, const struct gateway_fixture_options *options)
{
    struct gateway_fixture *f = malloc(sizeof *f);
    gateway_fixture_start(f, options);
    *state = f;
}

int gateway_start_default(void **state)
{
    struct gateway_fixture_options options = {0};
    gateway_start_with(state, &options);
    return 0;
}

int gateway_stop(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_fixture_stop(f);
    free(f);
    return 0;
}

void gateway_assert_problem(struct test_answer *a, unsigned status, const char *code)
{
    char member[96];
    if (a->status != status)
        fail_msg("status %u instead of %u\n%s%s", a->status, status, a->head, a->body);
    assert_non_null(test_answer_field(a, "Skerry-Error"));
    assert_string_equal(test_answer_field(a, "Skerry-Error"), code);
    assert_string_equal(test_answer_field(a, "Content-Type"), "application/problem+json");
    text_format(member, sizeof member, "\"code\":\"%s\"", code);
    assert_non_null(strstr(a->body, member));
    assert_non_null(strstr(a->body, "\"ran\":\""));
    assert_non_null(strstr(a->body, "\"retryable\":"));
    assert_non_null(strstr(a->body, "\"request_id\":\"r-"));
    if (status == 429 || status == 503)
        assert_non_null(test_answer_field(a, "Retry-After"));
}

void gateway_expect_problem(struct gateway_fixture *f, const char *request, unsigned status,
                            const char *code)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, request);
    gateway_assert_problem(&a, status, code);
    test_answer_free(&a);
}

void gateway_expect_body(struct gateway_fixture *f, const char *request, const char *body)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, request);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, body);
    test_answer_free(&a);
}

void gateway_expect_certificate(struct gateway_fixture *f, SSL_CTX *client, const char *name,
                                const char *expected)
{
    struct test_client c;
    char shown[128] = "";
    test_client_open_tls(&c, f, client, name);
    X509 *x = SSL_get1_peer_certificate(c.ssl);
    assert_non_null(x);
    X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, shown, sizeof shown);
    X509_free(x);
    assert_string_equal(shown, expected);
    test_client_close(&c);
}
