/* node/config.h - what a node is told: skerry.yaml, then the flags of `skerry serve`.
 *
 *     config_defaults, config_load (optional), config_flag for each flag, config_finish
 *
 * Each value is checked where it is read, so errors name file, line and key, or the flag. Addresses
 * are literal and canonical after that (base/address.h).
 *
 * Thread: filled before threads start, then constant. Durations are milliseconds. */
#ifndef SKERRY_NODE_CONFIG_H
#define SKERRY_NODE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/fields.h"
#include "base/log.h"

#define CONFIG_PATH_DEFAULT "/etc/skerry/skerry.yaml"
#define CONFIG_PEER_PORT 7600
#define CONFIG_HTTP_PORT 8080
#define CONFIG_API_PORT 8081
#define CONFIG_SSH_PORT 2222
#define CONFIG_HTTPS_PORT 8443
#define CONFIG_REDIRECT_PORT 80
#define CONFIG_PEERS_MAX 64
#define CONFIG_TCP_PORTS_MAX 1000 /* each that is used takes a descriptor of each gateway thread */

enum config_tls_minimum { CONFIG_TLS_12, CONFIG_TLS_13 };

struct config {
    char *name;               /* of this node; "" until config_finish takes the host's */
    char *cluster;            /* its name, for people */
    char *data;               /* folder: registry, logs, images */
    bool bootstrap;           /* make a cluster of this node if `data` holds none */
    char *bind;               /* address for peers, always private */
    char *advertise;          /* as other nodes reach it; "" until config_finish takes `bind` */
    struct field_list peers;  /* nodes of the cluster that this one joins, if `data` holds none */
    char *token_file;         /* a join token, for that; "" none */
    char *zone;               /* "" none */
    struct field_list labels; /* "key=value" */
    struct field_list http;   /* addresses of the gateway */
    char *api;                /* address of the API, or "none" */
    char *api_socket;
    char *runner_socket;
    char *domain; /* WORKLOAD.DOMAIN, INSTANCE.DOMAIN */
    struct {
        int level;  /* enum log_level */
        int format; /* enum log_format */
    } log;
    struct {
        uint64_t threads; /* 0: one a core */
        uint64_t header_bytes_max;
        uint64_t body_bytes_max; /* BYTES_NONE: no bound */
        uint64_t header_timeout_ms, body_timeout_ms, keepalive_timeout_ms;
        uint64_t connections_max;
        char *ssh; /* address of joins over SSH, or "none" */
        uint64_t ssh_sessions_max;
        struct {
            char *ports;   /* "30000-30099" that workloads may have opened; "" none */
            char *address; /* where, without a port; "" until config_finish takes that of `http` */
        } tcp;
        bool forwarded; /* X-Forwarded-* of who connects are believed */
        struct {
            struct field_list listen, redirect; /* addresses */
            uint64_t redirect_port;             /* 0: that of `listen` */
            struct field_list certificate, key; /* files, as many of one as of the other */
            int minimum;                        /* enum config_tls_minimum */
            uint64_t handshake_timeout_ms;
        } tls;
        char *acme_webroot; /* "" none */
    } gateway;
    struct {
        uint64_t instances_max, waiters_max; /* on this node */
    } limits;
    struct {
        uint64_t bytes_max; /* of one instance */
    } logs;
    struct {
        bool allow_unenforced;
        uint64_t starts_max; /* at the same time */
    } sandbox;
    struct {
        uint64_t voters, standbys; /* of the cluster, as its leader's file has them */
    } raft;
};

int config_defaults(struct config *c, struct err *e) ERR_CHECKED;
/* Replaces everything by the file and, where it is silent, the defaults. -ERR_NOT_FOUND when there
 * is no such file; on any failure *c is empty. */
int config_load(struct config *c, const char *path, struct err *e) ERR_CHECKED;
/* One flag of `skerry serve`, "--http": false if there is none of that name. */
bool config_flag_known(const char *flag, bool *out_takes_value);
/* `value` is ignored for a flag that takes none. */
int config_flag(struct config *c, const char *flag, const char *value, struct err *e) ERR_CHECKED;
/* The ports of gateway.tcp.ports; false: none. */
bool config_tcp_ports(const struct config *c, unsigned *first, unsigned *last);
/* What depends on several values. *c is complete afterwards. */
int config_finish(struct config *c, struct err *e) ERR_CHECKED;
void config_free(struct config *c);
/* The table, for docs and `--help`. */
const struct field_table *config_fields(void);

#endif
