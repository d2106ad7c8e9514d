/* raft/state_parts.h - between the files of the state machine: one apply function for each command.
 *
 * An apply function changes `c` and fills *r (which comes with PROBLEM_NONE). It fails only without
 * memory, and may then leave `c` half changed: state_apply works on a copy that it throws away. */
#ifndef SKERRY_RAFT_STATE_PARTS_H
#define SKERRY_RAFT_STATE_PARTS_H

#include "raft/state.h"

typedef int state_apply_fn(struct state_content *c, const struct registry_command *command,
                           struct registry_result *r, struct err *e);

state_apply_fn state_apply_cluster_init;
state_apply_fn state_apply_node_put;
state_apply_fn state_apply_workload_put;
state_apply_fn state_apply_workload_remove;
state_apply_fn state_apply_workload_rollback;
state_apply_fn state_apply_instance_reserve;
state_apply_fn state_apply_instance_update;
state_apply_fn state_apply_instance_end;
state_apply_fn state_apply_sweep;
state_apply_fn state_apply_token_put;
state_apply_fn state_apply_token_revoke;
state_apply_fn state_apply_image_put;
state_apply_fn state_apply_image_remove;
state_apply_fn state_apply_feature_level;
state_apply_fn state_apply_node_join;
state_apply_fn state_apply_node_remove;
state_apply_fn state_apply_node_drain;
state_apply_fn state_apply_lease_grant;
state_apply_fn state_apply_lease_expire;
state_apply_fn state_apply_keyring;
state_apply_fn state_apply_ssh_key_put;
state_apply_fn state_apply_ssh_key_remove;
state_apply_fn state_apply_ssh_host_key;
state_apply_fn state_apply_domain_put;
state_apply_fn state_apply_domain_remove;
state_apply_fn state_apply_ticket_use;

/* The answer is no, and why. */
void state_refuse(struct registry_result *r, enum problem problem, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* --- keys of the maps ------------------------------------------------------------------------- */

struct state_map_key {
    size_t length;
    unsigned char bytes[MAP_KEY_LENGTH_MAX];
};
/* The longest: a workload's name, a zero, and a join key or a time and an id. */
_Static_assert(WORKLOAD_NAME_LENGTH_MAX + 1 + REGISTRY_KEY_LENGTH_MAX <= MAP_KEY_LENGTH_MAX &&
                   WORKLOAD_NAME_LENGTH_MAX + 1 + 8 + INSTANCE_ID_LENGTH_MAX <=
                       MAP_KEY_LENGTH_MAX &&
                   WORKLOAD_NAME_LENGTH_MAX + 1 + REGISTRY_DOMAIN_LENGTH_MAX <= MAP_KEY_LENGTH_MAX,
               "keys of the registry's maps fit");

void state_key_text(struct state_map_key *key, const char *text); /* with its end */
void state_key_bytes(struct state_map_key *key, const void *bytes, size_t length);
void state_key_u64(struct state_map_key *key, uint64_t number);
bool state_key_starts_with(const void *key, size_t key_length, const struct state_map_key *prefix);

/* --- access ------------------------------------------------------------------------------------- */

int state_put(struct state_content *c, enum state_map map, const struct state_map_key *key,
              struct map_value *value, struct err *e) ERR_CHECKED;
int state_remove(struct state_content *c, enum state_map map, const struct state_map_key *key,
                 struct err *e) ERR_CHECKED;
/* As state_put, and gives the caller's reference on `value` away, also when it fails. NULL stands
 * for a value that there was no memory to make. */
int state_put_new(struct state_content *c, enum state_map map, const struct state_map_key *key,
                  struct map_value *value, struct err *e) ERR_CHECKED;
struct map_value *state_get(const struct state_content *c, enum state_map map,
                            const struct state_map_key *key);

const struct state_workload *state_workload(const struct state_content *c, const char *name);
/* Of its instances, those that scale.max bounds. */
uint32_t state_workload_counted(const struct state_content *c, const struct state_workload *w);
const struct state_version *state_version(const struct state_content *c, const char *name,
                                          uint64_t version);
const struct registry_instance *state_instance(const struct state_content *c,
                                               const struct instance_id *id);
const struct registry_node *state_node(const struct state_content *c, node_id id);
const struct registry_node *state_node_named(const struct state_content *c, const char *name);
const struct registry_token *state_token(const struct state_content *c, const char *id);

/* The next epoch; false, and refused, when this generation has no more. */
bool state_epoch_next(struct state_content *c, uint64_t *epoch, struct registry_result *r);

/* --- workloads ---------------------------------------------------------------------------------- */

/* Reads a version that is new into the state, and counts its bytes; as state_version_put otherwise. */
int state_version_add(struct state_content *c, const struct registry_workload *like,
                      struct state_spec *spec, struct err *e) ERR_CHECKED;
int state_spec_new(struct state_spec **out, const char *json, struct err *e) ERR_CHECKED;
int state_version_put(struct state_content *c, const struct registry_workload *like,
                      struct state_spec *spec, struct err *e) ERR_CHECKED;
int state_workload_put(struct state_content *c, const struct state_workload *like,
                       struct err *e) ERR_CHECKED;
/* Forgets versions that no instance runs, oldest first, down to what is kept of them. */
int state_versions_prune(struct state_content *c, const char *name, struct err *e) ERR_CHECKED;
/* One instance more or less of a name and version. */
int state_count(struct state_content *c, const char *name, uint64_t version, int live, int ended,
                const struct registry_usage *usage /* to add, or NULL */,
                struct err *e) ERR_CHECKED;

/* --- instances ---------------------------------------------------------------------------------- */

/* Puts an instance and what points to it, uncounted; it must not be there. */
int state_instance_link(struct state_content *c, const struct registry_instance *like,
                        struct err *e) ERR_CHECKED;
/* Who holds the key that `i` has or asks for; NULL: nobody. */
const struct instance_id *state_key_holder(const struct state_content *c,
                                           const struct registry_instance *i);
/* The first of a node that has not ended; NULL: it has none. */
const struct registry_instance *state_owned_first(const struct state_content *c, node_id owner);
/* Ends up to `max` of those as node_lost; adds how many. */
int state_owned_lose(struct state_content *c, node_id owner, uint64_t wall_ms, size_t max,
                     size_t *ended, struct err *e) ERR_CHECKED;
/* Likewise for all nodes that are not there, or whose lease has ended. */
int state_lost_end(struct state_content *c, uint64_t wall_ms, size_t max, size_t *ended,
                   struct err *e) ERR_CHECKED;
/* Forgets up to `max` ended instances of a name that ended before a time; adds how many. */
int state_ended_forget(struct state_content *c, const char *name, uint64_t before_wall_ms,
                       size_t max, size_t *forgotten, struct err *e) ERR_CHECKED;

/* --- the rest: a copy of `like` is put or replaced ------------------------------------------------- */

int state_node_put(struct state_content *c, const struct registry_node *like,
                   struct err *e) ERR_CHECKED;
int state_ssh_key_put(struct state_content *c, const struct registry_ssh_key *like,
                      struct err *e) ERR_CHECKED;
const struct registry_domain *state_domain(const struct state_content *c, const char *name);
int state_domain_put(struct state_content *c, const struct registry_domain *like,
                     struct err *e) ERR_CHECKED;
/* All of one workload. */
int state_domains_remove(struct state_content *c, const char *workload, struct err *e) ERR_CHECKED;
int state_ticket_put(struct state_content *c, const struct registry_ticket *ticket,
                     struct err *e) ERR_CHECKED;
/* Forgets at most `max` of those that are over; *removed counts them. */
int state_tickets_forget(struct state_content *c, uint64_t wall_ms, size_t max, size_t *removed,
                         struct err *e) ERR_CHECKED;
int state_token_put(struct state_content *c, const struct registry_token *like,
                    struct err *e) ERR_CHECKED;
int state_token_remove(struct state_content *c, const char *id, struct err *e) ERR_CHECKED;
int state_image_put(struct state_content *c, const struct registry_image *like,
                    struct err *e) ERR_CHECKED;

/* Adds a key of gossip's seal to the ring if it is not there; used: it becomes the one. At the bound the
 * oldest that is not used goes. */
void state_keyring_put(struct state_content *c, const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES],
                       bool used);

/* --- sessions ----------------------------------------------------------------------------------- */

/* True if its node was removed: what it asked and was not yet done is not done any more, and not
 * remembered. */
bool state_session_refused(const struct state_content *c, const struct command_session *asked,
                           struct registry_result *r);
/* Forgets up to `max` results and sessions of nodes that are not registered; adds how many. */
int state_sessions_forget(struct state_content *c, size_t max, size_t *forgotten,
                          struct err *e) ERR_CHECKED;
/* True if the number was answered before, or can no longer be: *r is what to answer. */
bool state_session_recall(const struct state_content *c, const struct command_session *asked,
                          struct registry_result *r);
int state_session_remember(struct state_content *c, const struct command_session *asked,
                           const struct registry_result *r, uint64_t index,
                           struct err *e) ERR_CHECKED;
/* Its session is there and has come so far. */
bool state_session_knows(const struct state_content *c, const struct command_session *asked);
int state_session_put(struct state_content *c, const struct state_session *like,
                      struct err *e) ERR_CHECKED;
int state_result_put(struct state_content *c, const struct command_session *asked,
                     const struct registry_result *r, struct err *e) ERR_CHECKED;

#endif
