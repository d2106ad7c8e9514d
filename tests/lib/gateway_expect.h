/* tests/lib/gateway_expect.h - what tests of the gateway share beside its fixture. */
#ifndef SKERRY_TESTS_LIB_GATEWAY_EXPECT_H
#define SKERRY_TESTS_LIB_GATEWAY_EXPECT_H

#include "tests/lib/gateway_fixture.h"

#define HOST "Host: localhost\r\n"
#define GET(path) "GET " path " HTTP/1.1\r\n" HOST "\r\n"

/* Set-up and tear-down: *state is the fixture. */
void gateway_start_with(void **state, const struct gateway_fixture_options *options);
int gateway_start_default(void **state);
int gateway_stop(void **state);

void gateway_assert_problem(struct test_answer *a, unsigned status, const char *code);
void gateway_expect_problem(struct gateway_fixture *f, const char *request, unsigned status,
                            const char *code);
/* The common name of what a client of HTTPS that asks for `name` is shown. */
void gateway_expect_certificate(struct gateway_fixture *f, SSL_CTX *client, const char *name,
                                const char *expected);
void gateway_expect_body(struct gateway_fixture *f, const char *request, const char *body);

#endif
