#include "node/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"
#include "base/document.h"
#include "base/domain.h"
#include "base/memory.h"

/* A NUL behind each, as gossip/gossip.h has room for them. */
#define LABEL_LENGTH_MAX 63
#define LABELS_BYTES_MAX 400 /* of its 700 for all that a node tells of itself */

/* --- checks of one value ---------------------------------------------------------------------- */

/* Brings *address into its canonical form. */
static int check_address(char **address, unsigned default_port, bool peer, struct err *e)
{
    struct sockaddr_storage parsed;
    char text[ADDRESS_TEXT_SIZE];
    int rc = address_parse(&parsed, *address, default_port, e);
    if (rc != 0)
        return rc;
    address_format(&parsed, text);
    if (peer) {
        rc = address_check_private(&parsed, e);
        if (rc != 0)
            return rc;
    }
    char *copy = strdup(text);
    if (copy == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    free(*address);
    *address = copy;
    return 0;
}

static int check_name(const char *name, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    if (name[0] == '\0' || host_name_valid(name, false))
        return 0;
    return err_set(e, ERR_INVALID, "%s is no name; a-z, 0-9 and -, at most 63, no - first or last",
                   text_show(name, shown));
}

static int check_domain(const char *domain, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    if (host_name_valid(domain, true))
        return 0;
    return err_set(e, ERR_INVALID,
                   "%s is no domain; write one like apps.example.org, in lower case",
                   text_show(domain, shown));
}

/* Addresses of the gateway. */
static int check_listen(struct field_list *list, unsigned default_port, struct err *e)
{
    for (size_t i = 0; i < list->count; i++) {
        int rc = check_address(&list->items[i], default_port, false, e);
        if (rc != 0)
            return rc;
        for (size_t j = 0; j < i; j++) {
            if (strcmp(list->items[i], list->items[j]) == 0)
                return err_set(e, ERR_INVALID, "%s is given twice", list->items[i]);
        }
    }
    return 0;
}

static int check_tls_listen(struct config *c, struct err *e)
{
    if (c->gateway.tls.listen.count > 0 && c->gateway.tls.certificate.count == 0)
        return err_set(e, ERR_INVALID,
                       "HTTPS needs a certificate; gateway: {tls: {certificate: FILE, key: FILE}}");
    return check_listen(&c->gateway.tls.listen, CONFIG_HTTPS_PORT, e);
}

static int check_certificates(const struct config *c, struct err *e)
{
    size_t certificates = c->gateway.tls.certificate.count, keys = c->gateway.tls.key.count;
    if (certificates != keys)
        return err_set(e, ERR_INVALID,
                       "%zu certificates and %zu keys; gateway.tls.key has one file for each of "
                       "gateway.tls.certificate, in the same order",
                       certificates, keys);
    if (certificates > 0 && c->gateway.tls.listen.count == 0)
        return err_set(e, ERR_INVALID,
                       "nothing listens for HTTPS; gateway: {tls: {listen: [\"0.0.0.0:443\"]}}");
    return 0;
}

static int check_redirect(struct config *c, struct err *e)
{
    if (c->gateway.tls.redirect.count > 0 && c->gateway.tls.listen.count == 0)
        return err_set(e, ERR_INVALID,
                       "nothing listens for HTTPS; gateway: {tls: {listen: [\"0.0.0.0:443\"]}}");
    return check_listen(&c->gateway.tls.redirect, CONFIG_REDIRECT_PORT, e);
}

/* "30000-30099" or "30000". */
static bool ports_parse(const char *text, unsigned *first, unsigned *last)
{
    char *end = NULL;
    unsigned long from = strtoul(text, &end, 10), to = from;
    if (text[0] < '0' || text[0] > '9' || (*end != '\0' && *end != '-'))
        return false;
    if (*end == '-') {
        const char *behind = end + 1;
        to = strtoul(behind, &end, 10);
        if (behind[0] < '0' || behind[0] > '9' || *end != '\0')
            return false;
    }
    *first = (unsigned)from;
    *last = (unsigned)to;
    return from > 0 && from <= to && to <= UINT16_MAX;
}

bool config_tcp_ports(const struct config *c, unsigned *first, unsigned *last)
{
    return ports_parse(c->gateway.tcp.ports, first, last);
}

static int check_tcp_ports(const struct config *c, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    unsigned first = 0, last = 0;
    if (c->gateway.tcp.ports[0] == '\0')
        return 0;
    if (!config_tcp_ports(c, &first, &last))
        return err_set(e, ERR_INVALID, "%s are no ports; write FIRST-LAST as in 30000-30099",
                       text_show(c->gateway.tcp.ports, shown));
    if (last - first >= CONFIG_TCP_PORTS_MAX)
        return err_set(e, ERR_INVALID, "%u ports; at most %d can be given to workloads",
                       last - first + 1, CONFIG_TCP_PORTS_MAX);
    return 0;
}

/* An address without its port, "127.0.0.1" or "[::1]". */
static int tcp_address_set(struct config *c, const char *with_port, struct err *e)
{
    char *copy = strdup(with_port);
    char *colon = copy == NULL ? NULL : strrchr(copy, ':');
    if (colon == NULL) {
        free(copy);
        return err_set(e, ERR_NO_MEMORY, "no memory");
    }
    *colon = '\0';
    free(c->gateway.tcp.address);
    c->gateway.tcp.address = copy;
    return 0;
}

static int check_tcp_address(struct config *c, struct err *e)
{
    struct sockaddr_storage parsed;
    char text[ADDRESS_TEXT_SIZE], shown[TEXT_SHOWN_SIZE];
    const unsigned none = UINT16_MAX;
    if (c->gateway.tcp.address[0] == '\0')
        return 0;
    int rc = address_parse(&parsed, c->gateway.tcp.address, none, e);
    if (rc != 0)
        return rc;
    address_format(&parsed, text);
    if (strtoul(strrchr(text, ':') + 1, NULL, 10) != none)
        return err_set(e, ERR_INVALID, "%s has a port; those are gateway.tcp.ports",
                       text_show(c->gateway.tcp.address, shown));
    return tcp_address_set(c, text, e);
}

static int check_peers(struct config *c, struct err *e)
{
    for (size_t i = 0; i < c->peers.count; i++) {
        int rc = check_address(&c->peers.items[i], CONFIG_PEER_PORT, true, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* As gossip tells them to others. */
static int check_labels(const struct config *c, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    size_t bytes = 0;
    for (size_t i = 0; i < c->labels.count; i++) {
        const char *item = c->labels.items[i];
        size_t length = strcspn(item, "=");
        if (length == 0 || length > LABEL_LENGTH_MAX || item[length] == '\0' ||
            strlen(item + length + 1) > LABEL_LENGTH_MAX)
            return err_set(e, ERR_INVALID,
                           "%s is no label; NAME: value, both of at most %d characters",
                           text_show(item, shown), LABEL_LENGTH_MAX);
        bytes += strlen(item) + 1;
    }
    if (bytes > LABELS_BYTES_MAX)
        return err_set(e, ERR_INVALID,
                       "the labels have %zu bytes together; %d can be told to other nodes", bytes,
                       LABELS_BYTES_MAX);
    return 0;
}

static int check_voters(const struct config *c, struct err *e)
{
    if (c->raft.voters % 2 == 1)
        return 0;
    return err_set(e, ERR_INVALID,
                   "%llu is even, and lives through no more failures than %llu; 1, 3, 5 or 7",
                   (unsigned long long)c->raft.voters, (unsigned long long)c->raft.voters - 1);
}

static int check_value(struct config *c, const char *path, struct err *e)
{
    if (strcmp(path, "peers") == 0)
        return check_peers(c, e);
    if (strcmp(path, "zone") == 0)
        return check_name(c->zone, e);
    if (strcmp(path, "labels") == 0)
        return check_labels(c, e);
    if (strcmp(path, "raft.voters") == 0)
        return check_voters(c, e);
    if (strcmp(path, "name") == 0)
        return check_name(c->name, e);
    if (strcmp(path, "cluster") == 0)
        return check_name(c->cluster, e);
    if (strcmp(path, "domain") == 0)
        return check_domain(c->domain, e);
    if (strcmp(path, "http") == 0)
        return check_listen(&c->http, CONFIG_HTTP_PORT, e);
    if (strcmp(path, "bind") == 0)
        return check_address(&c->bind, CONFIG_PEER_PORT, true, e);
    if (strcmp(path, "advertise") == 0 && c->advertise[0] != '\0')
        return check_address(&c->advertise, CONFIG_PEER_PORT, true, e);
    if (strcmp(path, "api") == 0 && strcmp(c->api, "none") != 0)
        return check_address(&c->api, CONFIG_API_PORT, false, e);
    if (strcmp(path, "gateway.ssh") == 0 && strcmp(c->gateway.ssh, "none") != 0)
        return check_address(&c->gateway.ssh, CONFIG_SSH_PORT, false, e);
    if (strcmp(path, "gateway.tcp.ports") == 0)
        return check_tcp_ports(c, e);
    if (strcmp(path, "gateway.tcp.address") == 0)
        return check_tcp_address(c, e);
    if (strcmp(path, "gateway.tls.listen") == 0)
        return check_tls_listen(c, e);
    if (strcmp(path, "gateway.tls.certificate") == 0 || strcmp(path, "gateway.tls.key") == 0)
        return check_certificates(c, e);
    if (strcmp(path, "gateway.tls.redirect") == 0)
        return check_redirect(c, e);
    return 0;
}

static const char *const checked_paths[] = {"name",
                                            "cluster",
                                            "domain",
                                            "http",
                                            "bind",
                                            "advertise",
                                            "api",
                                            "peers",
                                            "zone",
                                            "labels",
                                            "raft.voters",
                                            "gateway.ssh",
                                            "gateway.tcp.ports",
                                            "gateway.tcp.address",
                                            "gateway.tls.listen",
                                            "gateway.tls.certificate",
                                            "gateway.tls.key",
                                            "gateway.tls.redirect"};

/* --- the file --------------------------------------------------------------------------------- */

int config_defaults(struct config *c, struct err *e)
{
    *c = (struct config){0};
    return fields_defaults(config_fields(), c, e);
}

/* The whole file as a text; the caller frees. */
static int file_read(char **out, size_t *out_length, const char *path, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    /* One byte more than is taken tells that it is too long. */
    CLEANUP_FREE char *text = malloc(DOCUMENT_BYTES_MAX + 1);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", path);
    size_t length = 0;
    while (length <= DOCUMENT_BYTES_MAX) {
        ssize_t n = read(fd, text + length, DOCUMENT_BYTES_MAX + 1 - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read %s", path);
        if (n == 0)
            break;
        length += (size_t)n;
    }
    *out = steal_pointer(&text);
    *out_length = length;
    return 0;
}

static int document_read(struct config *c, const struct document *d, struct err *e)
{
    int rc = fields_parse(config_fields(), d, c, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(checked_paths); i++) {
        struct err inner = {0};
        const char *path = checked_paths[i];
        rc = check_value(c, path, &inner);
        if (rc != 0)
            fields_refuse(d, path, e, "%s", inner.msg);
    }
    return rc;
}

int config_load(struct config *c, const char *path, struct err *e)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    struct document *d;
    *c = (struct config){0};
    int rc = file_read(&text, &length, path, e);
    if (rc == 0)
        rc = document_parse(&d, path, text, length, e);
    if (rc != 0)
        return rc;
    rc = document_read(c, d, e);
    if (rc != 0)
        config_free(c);
    document_free(d);
    return rc;
}

/* --- flags ------------------------------------------------------------------------------------ */

static const struct flag {
    const char *name;
    const char *path;
    bool takes_value;
} flags[] = {
    {"--name", "name", true},
    {"--bind", "bind", true},
    {"--advertise", "advertise", true},
    {"--http", "http", true},
    {"--api", "api", true},
    {"--data", "data", true},
    {"--bootstrap", "bootstrap", false},
    {"--peers", "peers", true},
    {"--token-file", "token_file", true},
};

static const struct flag *flag_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (strcmp(flags[i].name, name) == 0)
            return &flags[i];
    }
    return NULL;
}

bool config_flag_known(const char *flag, bool *out_takes_value)
{
    const struct flag *f = flag_find(flag);
    if (f != NULL)
        *out_takes_value = f->takes_value;
    return f != NULL;
}

/* "A,B" replaces the list. */
static int list_set(struct config *c, const char *path, struct field_list *list, const char *value,
                    const char *flag, struct err *e)
{
    CLEANUP_FREE char *copy = strdup(value);
    if (copy == NULL)
        return err_set(e, ERR_NO_MEMORY, "%s: no memory", flag);
    struct config parts = {0};
    /* The same list of the other config: fields_set makes one of one item. */
    struct field_list *part =
        (struct field_list *)(void *)((char *)&parts + ((char *)list - (char *)c));
    char *rest = copy;
    int rc = fields_set(config_fields(), c, path, strsep(&rest, ","), flag, e);
    while (rc == 0 && rest != NULL) {
        rc = fields_set(config_fields(), &parts, path, strsep(&rest, ","), flag, e);
        char **items = rc != 0 ? NULL : realloc(list->items, (list->count + 1) * sizeof *items);
        if (items != NULL) {
            items[list->count++] = steal_pointer(&part->items[0]);
            list->items = items;
        } else if (rc == 0) {
            rc = err_set(e, ERR_NO_MEMORY, "%s: no memory", flag);
        }
    }
    fields_free(config_fields(), &parts);
    return rc;
}

static int value_set(struct config *c, const char *path, const char *value, const char *flag,
                     struct err *e)
{
    if (strcmp(path, "http") == 0)
        return list_set(c, path, &c->http, value, flag, e);
    if (strcmp(path, "peers") == 0)
        return list_set(c, path, &c->peers, value, flag, e);
    return fields_set(config_fields(), c, path, value, flag, e);
}

int config_flag(struct config *c, const char *flag, const char *value, struct err *e)
{
    const struct flag *f = flag_find(flag);
    if (f == NULL)
        return err_set(e, ERR_NOT_FOUND, "%s: unknown flag", flag);
    if (!f->takes_value)
        return fields_set(config_fields(), c, f->path, "true", flag, e);
    int rc = value_set(c, f->path, value, flag, e);
    if (rc != 0)
        return rc;
    rc = check_value(c, f->path, e);
    return rc == 0 ? 0 : err_wrap(e, "%s", flag);
}

/* --- the whole -------------------------------------------------------------------------------- */

/* The host's name as a name of ours: its first label in lower case, "node1" when that is none. */
static char *name_of_host(void)
{
    char name[64] = "";
    if (gethostname(name, sizeof name - 1) != 0)
        name[0] = '\0';
    name[strcspn(name, ".")] = '\0';
    for (char *at = name; *at != '\0'; at++) {
        if (*at >= 'A' && *at <= 'Z')
            *at = (char)(*at | 0x20);
    }
    return strdup(host_name_valid(name, false) ? name : "node1");
}

static bool has_item(const struct field_list *list, const char *item)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i], item) == 0)
            return true;
    return false;
}

static int check_apart(const struct config *c, struct err *e)
{
    const struct {
        const char *name;
        const struct field_list *list;
    } lists[] = {{"http", &c->http},
                 {"gateway.tls.listen", &c->gateway.tls.listen},
                 {"gateway.tls.redirect", &c->gateway.tls.redirect}};
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
        if (has_item(lists[i].list, c->api))
            return err_set(e, ERR_INVALID,
                           "%s and api are both %s; hosted pages must not share an origin with "
                           "the API: give one of them another port",
                           lists[i].name, c->api);
        for (size_t j = 0; j < i; j++)
            for (size_t k = 0; k < lists[j].list->count; k++)
                if (has_item(lists[i].list, lists[j].list->items[k]))
                    return err_set(e, ERR_INVALID, "%s and %s are both %s; one address, one kind",
                                   lists[j].name, lists[i].name, lists[j].list->items[k]);
    }
    return 0;
}

int config_finish(struct config *c, struct err *e)
{
    if (c->name[0] == '\0') {
        free(c->name);
        c->name = name_of_host();
    }
    if (c->advertise[0] == '\0') {
        free(c->advertise);
        c->advertise = strdup(c->bind);
    }
    if (c->name == NULL || c->advertise == NULL)
        return err_set(e, ERR_NO_MEMORY, "configuration: no memory");
    if (c->gateway.tcp.address[0] == '\0') {
        int rc = tcp_address_set(c, c->http.count > 0 ? c->http.items[0] : "127.0.0.1:", e);
        if (rc != 0)
            return rc;
    }
    return check_apart(c, e);
}

void config_free(struct config *c)
{
    fields_free(config_fields(), c);
    *c = (struct config){0};
}
