#include "base/workload.h"

#include <stdlib.h>
#include <string.h>

#include "base/destination.h"
#include "base/id.h"
#include "base/memory.h"

enum {
    /* Command, environment and health check travel to the runner in one datagram of 256 KiB, and
     * with a key's value and our own variables they must stay below execve's bounds. */
    TEXTS_BYTES_MAX = 96 * 1024,
    JOIN_PATH_MAX = 16,
    LABEL_LENGTH_MAX = 63, /* of a name, and of a value, as nodes tell each other */
};

/* --- small languages -------------------------------------------------------------------------- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* One number of 0 to 65534 without leading zeros; moves *text behind it. 65535 is the agent's. */
static bool read_id(const char **text, uint32_t *out)
{
    uint32_t value = 0;
    const char *at = *text;
    for (; is_digit(*at) && at - *text < 6; at++)
        value = value * 10 + (uint32_t)(*at - '0');
    if (at == *text || value > 65534 || (**text == '0' && at - *text > 1))
        return false;
    *text = at;
    *out = value;
    return true;
}

bool workload_user_parse(const char *user, uint32_t *uid, uint32_t *gid)
{
    if (!read_id(&user, uid))
        return false;
    *gid = *uid;
    if (*user == ':') {
        user++;
        if (!read_id(&user, gid))
            return false;
    }
    return *user == '\0';
}

/* A token of RFC 9110 section 5.6.2: names of headers and, by RFC 6265, of cookies. */
static bool token_valid(const char *text)
{
    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        if (!is_letter(*text) && !is_digit(*text) && strchr("!#$%&'*+-.^_`|~", *text) == NULL)
            return false;
    }
    return true;
}

/* Of a query: what needs no percent-encoding (RFC 3986 section 2.3). */
static bool query_name_valid(const char *text)
{
    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        if (!is_letter(*text) && !is_digit(*text) && strchr("-._~", *text) == NULL)
            return false;
    }
    return true;
}

static bool path_number_valid(const char *text)
{
    int value = 0;
    if (*text < '1' || *text > '9')
        return false;
    for (; is_digit(*text) && value <= JOIN_PATH_MAX; text++)
        value = value * 10 + (*text - '0');
    return *text == '\0' && value <= JOIN_PATH_MAX;
}

static const struct key_source {
    const char *prefix;
    enum join_key_source source;
    bool (*valid)(const char *name);
} key_sources[] = {
    {"header:", JOIN_KEY_HEADER, token_valid},
    {"query:", JOIN_KEY_QUERY, query_name_valid},
    {"cookie:", JOIN_KEY_COOKIE, token_valid},
    {"path:", JOIN_KEY_PATH, path_number_valid},
};

enum join_key_source workload_key_source(const struct workload *w, const char **out_name)
{
    const char *key = w->join.key == NULL ? "" : w->join.key;
    *out_name = "";
    for (size_t i = 0; i < ARRAY_SIZE(key_sources); i++) {
        size_t length = strlen(key_sources[i].prefix);
        if (strncmp(key, key_sources[i].prefix, length) != 0 || !key_sources[i].valid(key + length))
            continue;
        *out_name = key + length;
        return key_sources[i].source;
    }
    return JOIN_KEY_NONE;
}

/* Names of images: as Docker's, with a tag, or a digest. */
static bool image_valid(const char *text)
{
    if (strncmp(text, "sha256:", 7) == 0)
        return strlen(text) == 7 + 64 && strspn(text + 7, "0123456789abcdef") == 64;
    if (!(*text >= 'a' && *text <= 'z') && !is_digit(*text))
        return false;
    bool tag = false;
    for (; *text != '\0'; text++) {
        bool plain = (*text >= 'a' && *text <= 'z') || is_digit(*text) || strchr("._-", *text);
        bool separator = !tag && (*text == '/' || *text == ':');
        if (!plain && !separator && !(tag && is_letter(*text)))
            return false;
        tag = tag || *text == ':';
        if (separator && (text[1] == '\0' || strchr("/:.", text[1]) != NULL))
            return false;
    }
    return true;
}

static bool variable_name_valid(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!is_letter(text[i]) && text[i] != '_' && !(i > 0 && is_digit(text[i])))
            return false;
    }
    return length > 0;
}

/* --- checks of one key ------------------------------------------------------------------------ */

static int check_texts(const struct workload *w, const struct document *d, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    uint32_t uid, gid;
    const char *name;
    if (!workload_name_valid(w->id, strlen(w->id)))
        return fields_refuse(d, "id", e,
                             "%s is no name; a-z, 0-9 and -, 2 to 63 of them, a letter first, no "
                             "- last",
                             text_show(w->id, shown));
    if (!image_valid(w->image))
        return fields_refuse(
            d, "image", e, "%s is no image; host, a name like app or team/app:v1, or sha256:DIGEST",
            text_show(w->image, shown));
    if (!workload_user_parse(w->user, &uid, &gid))
        return fields_refuse(d, "user", e,
                             "%s is not possible; UID or UID:GID, numbers of 0 to 65534 (65535 is "
                             "the agent's)",
                             text_show(w->user, shown));
    if (w->join.key[0] != '\0' && workload_key_source(w, &name) == JOIN_KEY_NONE)
        return fields_refuse(d, "join.key", e,
                             "%s is no key; header:NAME, query:NAME, cookie:NAME or path:N with N "
                             "of 1 to %d",
                             text_show(w->join.key, shown), JOIN_PATH_MAX);
    return 0;
}

static int check_environment(const struct workload *w, const struct document *d, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    for (size_t i = 0; i < w->environment.count; i++) {
        const char *item = w->environment.items[i];
        size_t length = strcspn(item, "=");
        CLEANUP_FREE char *name = strndup(item, length);
        if (name == NULL)
            return err_set(e, ERR_NO_MEMORY, "check environment: no memory");
        if (!variable_name_valid(name, length))
            return fields_refuse(d, "environment", e,
                                 "%s is no name of a variable; letters, digits and _, no digit "
                                 "first",
                                 text_show(name, shown));
        if (strcmp(name, "PORT") == 0 || strncmp(name, "SKERRY_", 7) == 0)
            return fields_refuse(d, "environment", e,
                                 "%s is set by Skerry itself; choose another name, or set port:",
                                 text_show(name, shown));
    }
    return 0;
}

static int check_labels(const struct workload *w, const struct document *d, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    for (size_t i = 0; i < w->placement.labels.count; i++) {
        const char *item = w->placement.labels.items[i];
        size_t length = strcspn(item, "=");
        if (length == 0 || length > LABEL_LENGTH_MAX || item[length] == '\0' ||
            strlen(item + length + 1) > LABEL_LENGTH_MAX)
            return fields_refuse(d, "placement.labels", e,
                                 "%s is no label; NAME: value, both of at most %d characters",
                                 text_show(item, shown), LABEL_LENGTH_MAX);
    }
    return 0;
}

static int check_network(const struct workload *w, const struct document *d, struct err *e)
{
    static const char *const paths[] = {"network.allow", "network.deny"};
    const struct field_list *lists[] = {&w->network.allow, &w->network.deny};
    if (w->network.bandwidth_bytes != BYTES_NONE && w->network.mode == NETWORK_NONE)
        return fields_refuse(d, "network.bandwidth", e,
                             "network.mode is none, so this cannot act; leave it out, or mode: "
                             "egress");
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
        if (lists[i]->count > 0 && w->network.mode == NETWORK_NONE)
            return fields_refuse(d, paths[i], e,
                                 "network.mode is none, so this cannot act; leave it out, or mode: "
                                 "egress");
        for (size_t n = 0; n < lists[i]->count; n++) {
            struct destination to;
            struct err why;
            if (destination_parse(&to, lists[i]->items[n], &why) < 0)
                return fields_refuse(d, paths[i], e, "%s", why.msg);
            if (lists[i] == &w->network.deny && to.kind == DESTINATION_NAME)
                return fields_refuse(d, paths[i], e,
                                     "%s is a name, whose addresses nobody knows beforehand; "
                                     "write the network that is to be denied",
                                     to.name);
        }
    }
    return 0;
}

static size_t list_bytes(const struct field_list *list)
{
    size_t bytes = 0;
    for (size_t i = 0; i < list->count; i++)
        bytes += strlen(list->items[i]) + 1;
    return bytes;
}

static int check_lists(const struct workload *w, const struct document *d, struct err *e)
{
    /* "python3 app.py" as one text would be the name of one program. */
    const struct document_node *command = fields_find(d, "command");
    if (command != NULL && command->kind == DOCUMENT_SCALAR && strpbrk(command->text, " \t\n"))
        return fields_refuse(d, "command", e,
                             "one text with spaces; write a list, [\"python3\", \"app.py\"], or "
                             "[\"sh\", \"-c\", \"LINE\"] for a line of the shell");
    if (w->command.count > 0 && w->command.items[0][0] == '\0')
        return fields_refuse(d, "command", e, "the program is empty; write its name or path");
    const struct field_list *test = &w->healthcheck.test;
    if (test->count > 0) {
        const char *how = test->items[0];
        bool good = (strcmp(how, "CMD") == 0 && test->count >= 2 && test->items[1][0] != '\0') ||
                    (strcmp(how, "CMD-SHELL") == 0 && test->count == 2) ||
                    (strcmp(how, "NONE") == 0 && test->count == 1);
        if (!good)
            return fields_refuse(d, "healthcheck.test", e,
                                 "write [\"CMD\", PROGRAM, ARGUMENT...], [\"CMD-SHELL\", LINE] or "
                                 "[\"NONE\"]");
    }
    size_t bytes = list_bytes(&w->command) + list_bytes(&w->environment) + list_bytes(test);
    if (bytes > TEXTS_BYTES_MAX)
        return fields_refuse(d, list_bytes(&w->command) > bytes / 2 ? "command" : "environment", e,
                             "command, environment and healthcheck hold %zu bytes; at most %d are "
                             "allowed",
                             bytes, TEXTS_BYTES_MAX);
    return 0;
}

/* --- checks across keys ----------------------------------------------------------------------- */

static bool has_healthcheck(const struct workload *w)
{
    return w->healthcheck.test.count > 0 && strcmp(w->healthcheck.test.items[0], "NONE") != 0;
}

static int check_listen(const struct workload *w, const struct document *d, struct err *e)
{
    if (w->protocol != PROTOCOL_TCP)
        return fields_refuse(d, "listen.tcp", e,
                             "only with protocol: tcp; HTTP is joined through the gateway");
    if (w->access != ACCESS_PUBLIC)
        return fields_refuse(d, "listen.tcp", e,
                             "a connection brings no token, so whoever reaches the port may join: "
                             "say access: public, or leave it out and use skerry proxy");
    if (w->join.key[0] != '\0')
        return fields_refuse(d, "listen.tcp", e,
                             "a connection brings no key; leave out join.key, or this and use "
                             "skerry proxy --key");
    return 0;
}

static int check_server(const struct workload *w, const struct document *d, struct err *e)
{
    if (w->ready != READY_NONE && w->port == 0)
        return fields_refuse(d, "port", e,
                             "a server needs one: port: 8080, or ready: none for code that never "
                             "listens");
    if (w->protocol == PROTOCOL_TCP && w->port == 0)
        return fields_refuse(d, "protocol", e,
                             "tcp needs the port that the code listens on: port: 5432");
    if (w->listen.tcp != 0) {
        int rc = check_listen(w, d, e);
        if (rc != 0)
            return rc;
    }
    if (w->ready != READY_NONE && w->command.count == 0)
        return fields_refuse(d, "command", e,
                             "missing: what shall run? command: [\"python3\", \"app.py\"]");
    if (w->ready == READY_HEALTHCHECK && !has_healthcheck(w))
        return fields_refuse(d, "ready", e,
                             "healthcheck needs one: healthcheck: {test: [\"CMD\", \"true\"]}");
    return 0;
}

/* A command runs once for one request, so nothing that is about joining, waiting for a listener or
 * keeping ahead can act on it. */
static int check_command(const struct workload *w, const struct document *d, struct err *e)
{
    const struct {
        const char *path;
        bool wrong;
    } rules[] = {
        {"port", w->port != 0},
        {"protocol", w->protocol != PROTOCOL_HTTP},
        {"listen.tcp", w->listen.tcp != 0},
        {"ready", w->ready != READY_NONE},
        {"join.max_joiners", w->join.max_joiners != 1},
        {"join.window", w->join.window_ms != DURATION_NONE},
        {"join.key", w->join.key[0] != '\0'},
        {"life.idle", w->life.idle_ms != DURATION_NONE},
        {"scale.idle_min", w->scale.idle_min != 0},
        {"scale.target", w->scale.target_thousandths != 1000},
        {"healthcheck.test", has_healthcheck(w)},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        if (rules[i].wrong)
            return fields_refuse(d, rules[i].path, e,
                                 "kind: command runs once per request, so this cannot act; leave "
                                 "it out, or kind: server");
    }
    if (w->command.count == 0)
        return fields_refuse(d, "command", e,
                             "missing: what shall run? command: [\"python3\", \"app.py\"]");
    return 0;
}

static int check_not_above(const struct document *d, const char *path, uint64_t value,
                           const char *bound_path, uint64_t bound, struct err *e)
{
    char is[UNIT_TEXT_SIZE], at_most[UNIT_TEXT_SIZE];
    /* "none" is the largest of numbers, and a fit bound for everything but itself. */
    if (value <= bound || value == DURATION_NONE)
        return 0;
    duration_format(value, is);
    duration_format(bound, at_most);
    return fields_refuse(d, path, e, "%s is longer than %s: %s, so it could never act", is,
                         bound_path, at_most);
}

static int check_together(const struct workload *w, const struct document *d, struct err *e)
{
    int rc = w->kind == WORKLOAD_COMMAND ? check_command(w, d, e) : check_server(w, d, e);
    if (rc == 0)
        rc = check_not_above(d, "join.window", w->join.window_ms, "life.max", w->life.max_ms, e);
    if (rc == 0)
        rc = check_not_above(d, "life.idle", w->life.idle_ms, "life.max", w->life.max_ms, e);
    if (rc == 0)
        rc = check_not_above(d, "timeouts.first_byte", w->timeouts.first_byte_ms,
                             "timeouts.request", w->timeouts.request_ms, e);
    if (rc != 0)
        return rc;
    if (w->scale.target_thousandths < 1000 && (w->join.key[0] != '\0' || w->join.max_joiners == 0))
        return fields_refuse(d, "scale.target", e, "%s, so this cannot act; leave it out",
                             w->join.key[0] != '\0' ? "each key has one instance (join.key)"
                                                    : "join.max_joiners: 0 has no bound");
    if (w->scale.idle_min > w->scale.max)
        return fields_refuse(d, "scale.idle_min", e,
                             "more instances ahead than scale.max, which is %llu",
                             (unsigned long long)w->scale.max);
    return 0;
}

/* Defaults that depend on other keys; what was written stays, to be checked. */
static void fit_defaults(struct workload *w, const struct document *d)
{
    bool is_command = w->kind == WORKLOAD_COMMAND;
    if (is_command && fields_line(d, "ready") == 0)
        w->ready = READY_NONE;
    if (is_command && fields_line(d, "join.max_joiners") == 0)
        w->join.max_joiners = 1;
    if (fields_line(d, "life.idle") == 0) {
        if (is_command)
            w->life.idle_ms = DURATION_NONE;
        else if (w->life.idle_ms > w->life.max_ms)
            w->life.idle_ms = w->life.max_ms;
    }
    if (fields_line(d, "timeouts.first_byte") == 0 &&
        w->timeouts.first_byte_ms > w->timeouts.request_ms)
        w->timeouts.first_byte_ms = w->timeouts.request_ms;
}

static int check(struct workload *w, const struct document *d, struct err *e)
{
    fit_defaults(w, d);
    int rc = check_texts(w, d, e);
    if (rc == 0)
        rc = check_environment(w, d, e);
    if (rc == 0)
        rc = check_labels(w, d, e);
    if (rc == 0)
        rc = check_network(w, d, e);
    if (rc == 0)
        rc = check_lists(w, d, e);
    if (rc == 0)
        rc = check_together(w, d, e);
    return rc;
}

/* --- the whole -------------------------------------------------------------------------------- */

int workload_parse(struct workload *w, const char *name, const char *text, size_t length,
                   struct err *e)
{
    struct document *d;
    *w = (struct workload){0};
    int rc = document_parse(&d, name, text, length, e);
    if (rc != 0)
        return rc;
    rc = fields_parse(workload_fields(), d, w, e);
    if (rc == 0)
        rc = check(w, d, e);
    if (rc != 0)
        workload_free(w);
    document_free(d);
    return rc;
}

json_t *workload_to_json(const struct workload *w)
{
    return fields_to_json(workload_fields(), w);
}

int workload_copy(struct workload *to, const struct workload *from, struct err *e)
{
    *to = (struct workload){0};
    return fields_copy(workload_fields(), to, from, e);
}

void workload_free(struct workload *w)
{
    fields_free(workload_fields(), w);
    *w = (struct workload){0};
}
