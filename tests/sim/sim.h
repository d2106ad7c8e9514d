/* tests/sim/sim.h - one seeded clock for a whole cluster: an event queue, randomness, nodes that pause,
 * crawl and crash, and a network that loses, doubles, reorders, delays and cuts.
 *
 * Whatever runs in the simulation is started by sim_at (the world: faults, checks) or sim_node_at (a
 * timer of a node) or arrives by sim_datagram or sim_message, and never reads another clock. So a run
 * follows from its seed alone. Several subsystems of one node share the node: they stall and crash
 * together.
 *
 * Time: microseconds from 0. Memory: the simulation owns its events and copies what is sent. */
#ifndef SKERRY_TESTS_SIM_SIM_H
#define SKERRY_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim;

struct sim *sim_new(uint64_t seed, uint32_t nodes);
void sim_free(struct sim *s);

uint64_t sim_now_us(const struct sim *s);
uint64_t sim_random(struct sim *s);
uint64_t sim_below(struct sim *s, uint64_t bound); /* 0 for 0 */
uint64_t sim_between(struct sim *s, uint64_t low, uint64_t high);
bool sim_chance(struct sim *s, uint32_t permille);

/* `number` is the caller's. */
typedef void (*sim_run)(void *user, uint32_t node, uint64_t number);
void sim_at(struct sim *s, uint64_t at_us, sim_run run, void *user, uint64_t number);
/* Waits while the node is stalled; never runs when it crashed in between. */
void sim_node_at(struct sim *s, uint32_t node, uint64_t at_us, sim_run run, void *user,
                 uint64_t number);
/* Runs all events up to then. */
void sim_until(struct sim *s, uint64_t at_us);

/* --- nodes -------------------------------------------------------------------------------------- */

/* All are down at first. A crash loses what was under way to and in the node. */
void sim_node_up(struct sim *s, uint32_t node);
void sim_node_crash(struct sim *s, uint32_t node);
bool sim_node_is_up(const struct sim *s, uint32_t node);
/* Stopped, as by SIGSTOP: what comes waits until then. */
void sim_node_pause(struct sim *s, uint32_t node, uint64_t until_us);
/* Starved of CPU: it runs in bursts, with up to so much between them. 0: well. */
void sim_node_slow(struct sim *s, uint32_t node, uint64_t stall_max_us);

/* --- network ------------------------------------------------------------------------------------ */

struct sim_network {
    uint32_t loss_permille, double_permille; /* of datagrams */
    uint64_t delay_min_us, delay_max_us;     /* evenly in between, so datagrams overtake */
};
struct sim_network *sim_network(struct sim *s);
/* One way. A cut link loses datagrams, and messages that would arrive. */
void sim_cut(struct sim *s, uint32_t from, uint32_t to, bool cut);
bool sim_reachable(const struct sim *s, uint32_t from, uint32_t to);
void sim_heal(struct sim *s); /* all links, no node slow or paused */

typedef void (*sim_deliver)(void *user, uint32_t to, uint32_t from, const uint8_t *data,
                            size_t size);
/* As UDP. */
void sim_datagram(struct sim *s, uint32_t from, uint32_t to, const void *data, size_t size,
                  sim_deliver deliver, void *user);
/* As one message on a stream: neither lost nor doubled, in order between two nodes; gone when the
 * link is cut or a node crashed. */
void sim_message(struct sim *s, uint32_t from, uint32_t to, const void *data, size_t size,
                 sim_deliver deliver, void *user);

#endif
