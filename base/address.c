#include "base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "base/memory.h"

static bool port_parse(const char *text, unsigned *out)
{
    unsigned value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9' && value <= 65535; at++)
        value = value * 10 + (unsigned)(*at - '0');
    *out = value;
    return at != text && *at == '\0' && value <= 65535;
}

/* Splits "HOST:PORT" or "[HOST]:PORT"; *port stays when there is none. */
static bool address_split(const char *text, char host[ADDRESS_TEXT_SIZE], unsigned *port)
{
    const char *end = text[0] == '[' ? strchr(text, ']') : NULL;
    const char *colon = end != NULL ? end + 1 : strrchr(text, ':');
    if (text[0] == '[') {
        if (end == NULL || (*colon != '\0' && *colon != ':'))
            return false;
        if (!text_format(host, ADDRESS_TEXT_SIZE, "%.*s", (int)(end - text - 1), text + 1))
            return false;
        return *colon == '\0' || port_parse(colon + 1, port);
    }
    /* Two colons without brackets: an IPv6 address alone. */
    if (colon != NULL && strchr(text, ':') != colon)
        colon = NULL;
    size_t length = colon == NULL ? strlen(text) : (size_t)(colon - text);
    if (!text_format(host, ADDRESS_TEXT_SIZE, "%.*s", (int)length, text))
        return false;
    return colon == NULL || port_parse(colon + 1, port);
}

int address_parse(struct sockaddr_storage *out, const char *text, unsigned default_port,
                  struct err *e)
{
    char host[ADDRESS_TEXT_SIZE], shown[TEXT_SHOWN_SIZE];
    unsigned port = default_port == 0 ? UINT16_MAX + 1u : default_port;
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    text_show(text, shown);
    if (!address_split(text, host, &port))
        return err_set(e, ERR_INVALID, "%s is no address; write 127.0.0.1:8080 or [::1]:8080",
                       shown);
    if (port > UINT16_MAX)
        return err_set(e, ERR_INVALID, "%s has no port; write 127.0.0.1:8080 or [::1]:8080", shown);
    *out = (struct sockaddr_storage){0};
    v4.sin_port = v6.sin6_port = htons((uint16_t)port);
    if (text[0] != '[' && inet_pton(AF_INET, host, &v4.sin_addr) == 1)
        memcpy(out, &v4, sizeof v4);
    else if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1)
        memcpy(out, &v6, sizeof v6);
    else
        return err_set(e, ERR_INVALID,
                       "%s is no address; names are not looked up, write numbers as in "
                       "127.0.0.1:8080 or [::1]:8080",
                       shown);
    return 0;
}

bool address_private(const struct sockaddr_storage *address)
{
    static const struct {
        uint32_t network, mask;
    } v4_private[] = {
        {0x0a000000, 0xff000000}, /* 10/8 */
        {0xac100000, 0xfff00000}, /* 172.16/12 */
        {0xc0a80000, 0xffff0000}, /* 192.168/16 */
        {0x64400000, 0xffc00000}, /* 100.64/10 */
        {0x7f000000, 0xff000000}, /* 127/8 */
    };
    if (address->ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        uint32_t host = ntohl(v4.sin_addr.s_addr);
        for (size_t i = 0; i < ARRAY_SIZE(v4_private); i++) {
            if ((host & v4_private[i].mask) == v4_private[i].network)
                return true;
        }
        return false;
    }
    if (address->ss_family != AF_INET6)
        return false;
    struct sockaddr_in6 v6;
    memcpy(&v6, address, sizeof v6);
    return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) || (v6.sin6_addr.s6_addr[0] & 0xfe) == 0xfc;
}

void address_format(const struct sockaddr_storage *address, char out[ADDRESS_TEXT_SIZE])
{
    char host[INET6_ADDRSTRLEN] = "";
    if (address->ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
        text_format(out, ADDRESS_TEXT_SIZE, "%s:%u", host, ntohs(v4.sin_port));
    } else {
        struct sockaddr_in6 v6;
        memcpy(&v6, address, sizeof v6);
        inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof host);
        text_format(out, ADDRESS_TEXT_SIZE, "[%s]:%u", host, ntohs(v6.sin6_port));
    }
}

int address_check_private(const struct sockaddr_storage *address, struct err *e)
{
    char text[ADDRESS_TEXT_SIZE];
    if (address_private(address))
        return 0;
    address_format(address, text);
    return err_set(e, ERR_INVALID,
                   "%s is public; nodes speak to each other over private addresses only (10/8, "
                   "172.16/12, 192.168/16, 100.64/10, 127/8, fc00::/7, ::1): use one of "
                   "those, as of a VPN",
                   text);
}

socklen_t address_length(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

bool address_equal(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    char x[ADDRESS_TEXT_SIZE], y[ADDRESS_TEXT_SIZE];
    if (a->ss_family != b->ss_family)
        return false;
    address_format(a, x);
    address_format(b, y);
    return strcmp(x, y) == 0;
}

bool address_pack(struct address *out, const struct sockaddr_storage *from)
{
    *out = (struct address){0};
    if (from->ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, from, sizeof v4);
        out->family = ADDRESS_V4;
        out->port = ntohs(v4.sin_port);
        memcpy(out->bytes, &v4.sin_addr, 4);
        return true;
    }
    if (from->ss_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, from, sizeof v6);
        out->family = ADDRESS_V6;
        out->port = ntohs(v6.sin6_port);
        memcpy(out->bytes, &v6.sin6_addr, 16);
        return true;
    }
    return false;
}

bool address_unpack(struct sockaddr_storage *out, const struct address *from)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    *out = (struct sockaddr_storage){0};
    v4.sin_port = v6.sin6_port = htons(from->port);
    if (from->family == ADDRESS_V4) {
        memcpy(&v4.sin_addr, from->bytes, 4);
        memcpy(out, &v4, sizeof v4);
    } else if (from->family == ADDRESS_V6) {
        memcpy(&v6.sin6_addr, from->bytes, 16);
        memcpy(out, &v6, sizeof v6);
    } else {
        return false;
    }
    return true;
}

bool address_pack_equal(const struct address *a, const struct address *b)
{
    return a->family == b->family && a->port == b->port &&
           memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}
