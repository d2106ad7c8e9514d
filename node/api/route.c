/* node/api/route.c - every route, in one table; docs/openapi.yaml has the same ones. */
#include <string.h>

#include "node/api/internal.h"

#define COMMAND_QUERY "command env user timeout tty rows columns stdin"
#define RUN_QUERY COMMAND_QUERY " image source memory cpus pids disk network read_only"

#define ADMIN .need = TOKEN_ROLE_ADMIN
#define DEPLOY .need = TOKEN_ROLE_DEPLOY
#define INVOKE .need = TOKEN_ROLE_INVOKE
#define OF_WORKLOAD .scope = API_SCOPE_WORKLOAD
#define OF_INSTANCE .scope = API_SCOPE_INSTANCE
#define OF_QUERY .scope = API_SCOPE_QUERY
#define OF_BODY .scope = API_SCOPE_BODY
#define TEXT .body = API_BODY_TEXT
#define STREAM .body = API_BODY_STREAM
#define COMMAND .body = API_BODY_COMMAND
#define ROUTE(m, p, q, h, ...)                                                                     \
    {                                                                                              \
        .method = m, .path = p, .query = q, .handle = h, __VA_ARGS__                               \
    }

static const struct api_route routes[] = {
    ROUTE("GET", "/v1/workloads", "consistent", api_workloads_list, DEPLOY),
    ROUTE("POST", "/v1/workloads", "dry_run", api_workload_deploy, DEPLOY, OF_BODY, TEXT),
    ROUTE("GET", "/v1/workloads/{workload}", "version consistent", api_workload_get, INVOKE,
          OF_WORKLOAD),
    ROUTE("PUT", "/v1/workloads/{workload}", "dry_run", api_workload_put, DEPLOY, OF_WORKLOAD,
          TEXT),
    ROUTE("DELETE", "/v1/workloads/{workload}", "", api_workload_remove, DEPLOY, OF_WORKLOAD),
    ROUTE("GET", "/v1/workloads/{workload}/versions", "", api_workload_versions, INVOKE,
          OF_WORKLOAD),
    ROUTE("POST", "/v1/workloads/{workload}/rollback", "version", api_workload_rollback, DEPLOY,
          OF_WORKLOAD),

    ROUTE("POST", "/v1/workloads/{workload}/join", "key again", api_workload_join, INVOKE,
          OF_WORKLOAD, .streams = true),
    ROUTE("POST", "/v1/workloads/{workload}/connect", "port host key again", api_workload_connect,
          INVOKE, OF_WORKLOAD, TEXT, .streams = true),
    ROUTE("POST", "/v1/workloads/{workload}/ticket", "", api_workload_ticket, INVOKE, OF_WORKLOAD,
          TEXT),
    ROUTE("GET", "/v1/instances", "workload state all prefix limit after consistent",
          api_instances_list, DEPLOY, OF_QUERY),
    ROUTE("POST", "/v1/instances", "", api_instance_start, INVOKE, OF_BODY, TEXT),
    ROUTE("GET", "/v1/instances/{instance}", "consistent", api_instance_get, INVOKE, OF_INSTANCE),
    ROUTE("DELETE", "/v1/instances/{instance}", "", api_instance_stop, DEPLOY, OF_INSTANCE),
    ROUTE("POST", "/v1/instances/{instance}/stop", "", api_instance_stop, DEPLOY, OF_INSTANCE),
    ROUTE("POST", "/v1/instances/{instance}/extend", "for", api_instance_extend, DEPLOY,
          OF_INSTANCE, TEXT),
    ROUTE("POST", "/v1/instances/{instance}/join", "", api_instance_join, INVOKE, OF_INSTANCE,
          .streams = true),
    ROUTE("POST", "/v1/instances/{instance}/ticket", "", api_instance_ticket, INVOKE, OF_INSTANCE,
          TEXT),
    ROUTE("GET", "/v1/instances/{instance}/logs", "follow tail since stream", api_logs_get, INVOKE,
          OF_INSTANCE, .streams = true),
    ROUTE("POST", "/v1/instances/{instance}/exec", COMMAND_QUERY, api_exec, DEPLOY, OF_INSTANCE,
          COMMAND),
    ROUTE("POST", "/v1/instances/{instance}/connect", "port host join", api_instance_connect,
          INVOKE, OF_INSTANCE, TEXT, .streams = true),
    ROUTE("GET", "/v1/instances/{instance}/files", "path plain", api_files_read, DEPLOY,
          OF_INSTANCE, .streams = true),
    ROUTE("PUT", "/v1/instances/{instance}/files", "path plain", api_files_write, DEPLOY,
          OF_INSTANCE, STREAM),
    ROUTE("POST", "/v1/run", RUN_QUERY, api_run, DEPLOY, COMMAND),

    ROUTE("GET", "/v1/images", "", api_images_list, DEPLOY),
    ROUTE("POST", "/v1/images", "name", api_image_import, DEPLOY, STREAM),
    ROUTE("POST", "/v1/images/gc", "", api_images_gc, DEPLOY),
    ROUTE("GET", "/v1/images/{image}", "", api_image_get, DEPLOY),
    ROUTE("DELETE", "/v1/images/{image}", "", api_image_remove, DEPLOY),
    ROUTE("POST", "/v1/sources", "", api_source_send, DEPLOY, STREAM),

    ROUTE("GET", "/v1/nodes", "", api_nodes_list, DEPLOY),
    ROUTE("GET", "/v1/nodes/{node}", "", api_node_get, DEPLOY),
    ROUTE("DELETE", "/v1/nodes/{node}", "", api_node_remove, ADMIN),
    ROUTE("POST", "/v1/nodes/{node}/drain", "", api_node_drain, ADMIN),
    ROUTE("POST", "/v1/nodes/{node}/undrain", "", api_node_undrain, ADMIN),
    ROUTE("GET", "/v1/operator/keyring", "", api_keyring_list, ADMIN),
    ROUTE("POST", "/v1/operator/keyring", "", api_keyring_add, ADMIN),
    ROUTE("POST", "/v1/operator/keyring/{key}/use", "", api_keyring_use, ADMIN),
    ROUTE("DELETE", "/v1/operator/keyring/{key}", "", api_keyring_remove, ADMIN),
    ROUTE("GET", "/v1/operator/raft/snapshot", "", api_raft_snapshot, ADMIN, .streams = true),
    ROUTE("POST", "/v1/operator/raft/transfer", "to", api_raft_transfer, ADMIN),
    ROUTE("GET", "/v1/status", "", api_status, DEPLOY),
    ROUTE("GET", "/v1/tokens", "", api_tokens_list, ADMIN),
    ROUTE("POST", "/v1/tokens", "", api_token_create, ADMIN, TEXT),
    ROUTE("DELETE", "/v1/tokens/{token}", "", api_token_revoke, ADMIN),
    ROUTE("GET", "/v1/ssh-keys", "workload", api_ssh_keys_list, DEPLOY, OF_QUERY),
    ROUTE("POST", "/v1/ssh-keys", "", api_ssh_key_add, DEPLOY, OF_BODY, TEXT),
    ROUTE("DELETE", "/v1/ssh-keys/{key}", "", api_ssh_key_remove, DEPLOY, OF_BODY),
    ROUTE("GET", "/v1/domains", "workload", api_domains_list, DEPLOY, OF_QUERY),
    ROUTE("POST", "/v1/domains", "", api_domain_add, DEPLOY, TEXT),
    ROUTE("DELETE", "/v1/domains/{domain}", "", api_domain_remove, DEPLOY),
    ROUTE("GET", "/v1/events", "follow after", api_events, DEPLOY, .streams = true),
    ROUTE("GET", "/v1/explain/{subject}", "", api_explain, DEPLOY),
    ROUTE("GET", "/v1/version", "", api_version, INVOKE, .scope = API_SCOPE_ANY),

    ROUTE("GET", "/livez", "", api_livez, .open = true),
    ROUTE("GET", "/readyz", "", api_readyz, .open = true),
    ROUTE("GET", "/metrics", "", api_metrics, DEPLOY),
};

/* Segment by segment; {parameter} takes one that is not empty. */
static bool matches(const char *pattern, const char *path, size_t length, const char **parameter,
                    size_t *parameter_length)
{
    const char *end = path + length;
    *parameter = NULL;
    while (*pattern != '\0' && path < end) {
        if (*pattern != '{') {
            if (*pattern++ != *path++)
                return false;
            continue;
        }
        const char *stop = memchr(path, '/', (size_t)(end - path));
        if (stop == NULL)
            stop = end;
        *parameter = path;
        *parameter_length = (size_t)(stop - path);
        if (*parameter_length == 0)
            return false;
        path = stop;
        pattern = strchr(pattern, '}') + 1;
    }
    return *pattern == '\0' && path == end;
}

const struct api_route *api_route_find(const char *method, const char *path, size_t length,
                                       const char **parameter, size_t *parameter_length,
                                       bool *path_known)
{
    *path_known = false;
    for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
        if (!matches(routes[i].path, path, length, parameter, parameter_length))
            continue;
        *path_known = true;
        if (strcmp(routes[i].method, method) == 0)
            return &routes[i];
    }
    *parameter = NULL;
    return NULL;
}

void api_route_methods(const char *path, size_t length, char *out, size_t size)
{
    const char *parameter;
    size_t parameter_length;
    out[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
        if (!matches(routes[i].path, path, length, &parameter, &parameter_length))
            continue;
        size_t used = strlen(out);
        bool head = strcmp(routes[i].method, "GET") == 0 && !routes[i].streams;
        (void)text_format(out + used, size - used, "%s%s%s", used == 0 ? "" : ", ",
                          routes[i].method, head ? ", HEAD" : "");
    }
}

size_t api_route_count(void)
{
    return ARRAY_SIZE(routes);
}

struct api_route_view api_route_at(size_t index)
{
    assert_always(index < ARRAY_SIZE(routes));
    return (struct api_route_view){routes[index].method, routes[index].path, routes[index].query};
}
