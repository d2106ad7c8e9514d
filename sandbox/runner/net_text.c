/* What the kernel and nftables print about interfaces and chains. See net_host.h. */
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/net_host.h"

bool net_name_valid(const char *name, size_t length)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@";
    if (length == 0 || length >= NET_NAME_SIZE)
        return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '\0' || strchr(allowed, name[i]) == NULL)
            return false;
    /* They stand in paths below /proc/sys too. */
    return !(name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')));
}

bool net_uplinks_has(const struct net_uplinks *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->names[i], name) == 0)
            return true;
    return false;
}

bool net_uplinks_add(struct net_uplinks *list, const char *name, size_t length)
{
    char copy[NET_NAME_SIZE];
    if (!net_name_valid(name, length) || !text_format(copy, sizeof copy, "%.*s", (int)length, name))
        return false;
    if (net_uplinks_has(list, copy))
        return true;
    if (list->count == NET_UPLINKS_MAX)
        return false;
    text_copy(list->names[list->count++], NET_NAME_SIZE, copy);
    return true;
}

/* The text behind the end of the word at `text`, blanks skipped. */
static const char *word_next(const char *text)
{
    text += strcspn(text, " \t\n");
    return text + strspn(text, " \t");
}

void net_uplinks_of_routes(struct net_uplinks *out, const char *text)
{
    out->count = 0;
    /* Iface Destination Gateway Flags RefCnt Use Metric Mask ... */
    for (const char *line = text; *line != '\0';) {
        const char *destination = word_next(line), *mask = destination;
        for (int i = 0; i < 6; i++)
            mask = word_next(mask);
        if (strncmp(destination, "00000000", 8) == 0 && strncmp(mask, "00000000", 8) == 0)
            (void)net_uplinks_add(out, line, strcspn(line, " \t\n"));
        line += strcspn(line, "\n");
        line += *line == '\n';
    }
}

void net_uplinks_of_set(struct net_uplinks *out, const char *text)
{
    out->count = 0;
    const char *at = strstr(text, "elements = {");
    const char *end = at == NULL ? NULL : strchr(at, '}');
    while (at != NULL && end != NULL && (at = strchr(at, '"')) != NULL && at < end) {
        size_t length = strcspn(at + 1, "\"");
        (void)net_uplinks_add(out, at + 1, length);
        at += length + 2;
    }
}

/* Copies the line at `text` without blanks around it; returns what is behind it. */
static const char *line_take(const char *text, char *out, size_t size)
{
    text += strspn(text, " \t");
    size_t length = strcspn(text, "\n");
    (void)text_format(out, size, "%.*s", (int)length, text);
    return text + length + (text[length] == '\n');
}

static void head_cut(char *out, size_t size, const char *line, size_t keyword)
{
    size_t length = strlen(line + keyword);
    if (length >= 2 && strcmp(line + keyword + length - 2, " {") == 0)
        length -= 2;
    (void)text_format(out, size, "%.*s", (int)length, line + keyword);
}

bool net_forward_drop_find(const char *text, char *table, size_t table_size, char *chain,
                           size_t chain_size)
{
    char line[256];
    table[0] = chain[0] = '\0';
    while (*text != '\0') {
        text = line_take(text, line, sizeof line);
        if (strncmp(line, "table ", 6) == 0)
            head_cut(table, table_size, line, 6);
        else if (strncmp(line, "chain ", 6) == 0)
            head_cut(chain, chain_size, line, 6);
        else if (strstr(line, "hook forward") != NULL && strstr(line, "policy drop") != NULL &&
                 strstr(table, " " NET_TABLE_PREFIX_ANY) == NULL)
            return true;
    }
    return false;
}
