#include "base/destination.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "base/memory.h"

uint32_t destination_mask(unsigned prefix)
{
    assert_always(prefix <= 32);
    return prefix == 0 ? 0 : ~0u << (32 - prefix);
}

/* A number of at most `max` without leading zeros; moves *text behind it. */
static bool number_parse(const char **text, unsigned max, unsigned *out)
{
    const char *at = *text;
    unsigned value = 0;
    for (; *at >= '0' && *at <= '9' && value <= max; at++)
        value = value * 10 + (unsigned)(*at - '0');
    if (at == *text || value > max || (**text == '0' && at - *text > 1))
        return false;
    *text = at;
    *out = value;
    return true;
}

int destination_parse_network(uint32_t *network, unsigned *prefix, const char *text, struct err *e)
{
    char host[INET_ADDRSTRLEN], shown[TEXT_SHOWN_SIZE];
    struct in_addr address;
    size_t length = strcspn(text, "/");
    const char *at = text + length;
    *prefix = 32;
    if (!text_format(host, sizeof host, "%.*s", (int)length, text) ||
        inet_pton(AF_INET, host, &address) != 1)
        return err_set(e, ERR_INVALID, "%s is no IPv4 network; write 203.0.113.0/24",
                       text_show(text, shown));
    if (*at == '/') {
        at++;
        if (!number_parse(&at, 32, prefix))
            return err_set(e, ERR_INVALID,
                           "%s has no prefix length of 0 to 32; write "
                           "203.0.113.0/24",
                           text_show(text, shown));
    }
    if (*at != '\0')
        return err_set(e, ERR_INVALID, "%s has more behind the network", text_show(text, shown));
    *network = ntohl(address.s_addr);
    if ((*network & ~destination_mask(*prefix)) != 0)
        return err_set(e, ERR_INVALID,
                       "%s has bits behind its prefix of %u; write the first address of the "
                       "network, or /32 for one address",
                       text_show(text, shown), *prefix);
    return 0;
}

/* "443" or "8000-8099". */
static bool ports_parse(struct destination *d, const char *text)
{
    unsigned first, last;
    if (!number_parse(&text, UINT16_MAX, &first) || first == 0)
        return false;
    last = first;
    if (*text == '-') {
        text++;
        if (!number_parse(&text, UINT16_MAX, &last) || last < first)
            return false;
    }
    d->any_port = false;
    d->port_first = (uint16_t)first;
    d->port_last = (uint16_t)last;
    return *text == '\0';
}

static bool label_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* Letters, digits and hyphens in labels of at most 63, two at least, the last not a number: so no
 * address is ever taken for a name. */
static bool name_valid(const char *name)
{
    size_t label = 0, labels = 1;
    bool digits = true;
    for (const char *at = name; *at != '\0'; at++) {
        if (*at == '.') {
            if (label == 0)
                return false;
            label = 0;
            labels++;
            digits = true;
            continue;
        }
        if (!label_character(*at) || ++label > 63)
            return false;
        digits = digits && *at >= '0' && *at <= '9';
    }
    return label > 0 && labels >= 2 && !digits;
}

static int name_parse(struct destination *d, const char *text, size_t length, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    const char *at = text;
    d->kind = DESTINATION_NAME;
    d->subdomains = strncmp(text, "*.", 2) == 0;
    if (d->subdomains) {
        at += 2;
        length -= 2;
    }
    if (!text_format(d->name, sizeof d->name, "%.*s", (int)length, at))
        return err_set(e, ERR_INVALID, "%s is too long for a name", text_show(text, shown));
    for (char *c = d->name; *c != '\0'; c++)
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c - 'A' + 'a');
    if (!name_valid(d->name))
        return err_set(e, ERR_INVALID,
                       "%s is neither an IPv4 network nor a name; write 203.0.113.0/24, "
                       "203.0.113.7:443, pypi.org:443 or *.example.org:443",
                       text_show(text, shown));
    return 0;
}

int destination_parse(struct destination *out, const char *text, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE], host[DESTINATION_TEXT_SIZE];
    *out = (struct destination){.any_port = true};
    const char *colon = strchr(text, ':');
    if (colon != NULL && strchr(colon + 1, ':') != NULL)
        return err_set(e, ERR_INVALID,
                       "%s: instances have no IPv6 way out; write an IPv4 network or a name",
                       text_show(text, shown));
    size_t length = colon == NULL ? strlen(text) : (size_t)(colon - text);
    if (colon != NULL && !ports_parse(out, colon + 1))
        return err_set(e, ERR_INVALID, "%s has no port of 1 to 65535 behind its colon",
                       text_show(text, shown));
    if (!text_format(host, sizeof host, "%.*s", (int)length, text))
        return err_set(e, ERR_INVALID, "%s is too long", text_show(text, shown));
    /* A name's last label is no number. */
    struct in_addr address;
    char bare[DESTINATION_TEXT_SIZE];
    text_format(bare, sizeof bare, "%.*s", (int)strcspn(host, "/"), host);
    if (inet_pton(AF_INET, bare, &address) == 1 || strchr(host, '/') != NULL)
        return destination_parse_network(&out->network, &out->prefix, host, e);
    int rc = name_parse(out, host, length, e);
    if (rc == 0 && (out->any_port || out->port_first != out->port_last))
        return err_set(e, ERR_INVALID, "%s: a name needs one port; write %s:443",
                       text_show(text, shown), text_show(host, shown));
    return rc;
}

bool destination_matches_name(const struct destination *d, const char *name)
{
    if (d->kind != DESTINATION_NAME)
        return false;
    if (!d->subdomains)
        return strcmp(d->name, name) == 0;
    size_t length = strlen(name), tail = strlen(d->name);
    return length > tail + 1 && name[length - tail - 1] == '.' &&
           strcmp(name + length - tail, d->name) == 0;
}

bool destination_overlaps(const struct destination *d, uint32_t network, unsigned prefix)
{
    if (d->kind != DESTINATION_NETWORK)
        return false;
    uint32_t mask = destination_mask(d->prefix < prefix ? d->prefix : prefix);
    return (d->network & mask) == (network & mask);
}
