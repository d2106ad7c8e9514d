#include "base/domain.h"

#include <string.h>

#include "base/id.h"
#include "base/memory.h"

bool host_name_valid(const char *text, bool points)
{
    size_t label = 0;
    for (const char *at = text;; at++) {
        if (*at == '\0' || (points && *at == '.')) {
            if (label == 0 || label > 63 || at[-1] == '-')
                return false;
            if (*at == '\0')
                return true;
            label = 0;
            continue;
        }
        bool plain = (*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9');
        if (!plain && !(*at == '-' && label > 0))
            return false;
        label++;
    }
}

bool domain_is_alias(const char *name)
{
    return strchr(name, '.') == NULL;
}

/* "10.0.0.1", and whatever else a client would take for an address. */
static bool ends_with_number(const char *name)
{
    const char *last = strrchr(name, '.');
    last = last == NULL ? name : last + 1;
    if (*last == '\0')
        return false;
    return strspn(last, "0123456789") == strlen(last) ||
           (strncmp(last, "0x", 2) == 0 &&
            strspn(last + 2, "0123456789abcdef") == strlen(last + 2));
}

bool domain_valid(const char *name)
{
    size_t length = strlen(name);
    if (domain_is_alias(name))
        return workload_name_valid(name, length);
    return length <= DOMAIN_LENGTH_MAX && host_name_valid(name, true) && !ends_with_number(name);
}

static const char *fault_of(const char *name)
{
    for (const char *at = name; *at != '\0'; at++)
        if ((unsigned char)*at >= 0x80)
            return "is not written in ASCII; give its form of IDNA, xn--...";
    if (strchr(name, '*') != NULL)
        return "is a wildcard, which is not taken; add each name";
    if (strchr(name, '/') != NULL)
        return "is a URL; give its host name alone";
    if (strchr(name, ':') != NULL || name[0] == '[')
        return "has a port or is an address; give a host name alone";
    if (domain_is_alias(name))
        return "is no alias; a-z, 0-9 and -, 2 to 63, a letter first, no - last";
    if (ends_with_number(name))
        return "is an address; a workload has host names only";
    return "is no host name; write one like app.example.org";
}

int domain_parse(char out[DOMAIN_TEXT_SIZE], const char *text, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    size_t length = strlen(text);
    if (length > 1 && text[length - 1] == '.')
        length--;
    if (length == 0)
        return err_set(e, ERR_INVALID, "a domain is a host name, like app.example.org");
    if (length > DOMAIN_LENGTH_MAX)
        return err_set(e, ERR_INVALID, "%s is too long: a host name has at most %d characters",
                       text_show(text, shown), DOMAIN_LENGTH_MAX);
    for (size_t i = 0; i < length; i++)
        out[i] = text[i] >= 'A' && text[i] <= 'Z' ? (char)(text[i] | 0x20) : text[i];
    out[length] = '\0';
    if (domain_valid(out))
        return 0;
    return err_set(e, ERR_INVALID, "%s %s", text_show(text, shown), fault_of(out));
}

bool domain_within(const char *name, const char *domain)
{
    size_t length = strlen(name), tail = strlen(domain);
    return length >= tail && strcmp(name + length - tail, domain) == 0 &&
           (length == tail || name[length - tail - 1] == '.');
}
