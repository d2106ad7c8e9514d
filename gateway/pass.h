/* gateway/pass.h - how a browser comes to a private workload: a ticket in a link, then a cookie.
 *
 *     GET /page?skerry_ticket=skj_...   -> 303 to /page, Set-Cookie: skerry_join=...
 *     GET /page, Cookie: skerry_join=...
 *
 * Only on a host name of the workload's own: what shares an origin shares its cookies. Here is what heads
 * say of them; whether they are good is asked of struct gateway_calls. Over HTTPS the cookie is called
 * __Host-skerry_join, which no other host can set; the code behind gets neither name, and can set neither.
 *
 * Thread: any; pure functions. Texts point into the head's bytes. */
#ifndef SKERRY_GATEWAY_PASS_H
#define SKERRY_GATEWAY_PASS_H

#include "gateway/http.h"

#define PASS_COOKIE "skerry_join"
#define PASS_COOKIE_SECURE "__Host-skerry_join"
/* Of one request so many cookies of that name are looked at: pages of other hosts may set more. */
#define PASS_COOKIES_MAX 8

enum pass_ticket {
    PASS_TICKET_NONE,
    PASS_TICKET_ONE,
    PASS_TICKET_SEVERAL, /* or an empty one */
};
/* The ticket in the query of a path. */
enum pass_ticket pass_ticket_find(struct http_text path, struct http_text *ticket);
/* The path without it, as a reference to the same host whatever the path looks like. At most `path.length` + 3
 * bytes; returns how many. */
size_t pass_location_write(struct http_text path, char *out);

/* The cookies of the name that `secure` has; returns how many. */
size_t pass_cookies(const struct http_head *head, bool secure,
                    struct http_text out[PASS_COOKIES_MAX]);
/* A Cookie field's value without ours, the others untouched; at most `value.length` bytes. Returns how
 * many; 0: the field has no others. */
size_t pass_cookies_strip(struct http_text value, char *out);
/* Whether it has ours. */
bool pass_cookies_has(struct http_text value);
/* Whether a Set-Cookie field sets one of ours. */
bool pass_cookie_sets(struct http_text value);

/* Whether a cookie counts: not for what a page of another origin asked for behind its user's back. Another
 * host below the same domain is the "same site", so SameSite does not see to that. `forwarded`: believe
 * X-Forwarded-Host. */
bool pass_origin_own(const struct http_head *head, bool forwarded);

#endif
