/* gateway/block.h - pooled buffers, and queues of bytes that wait to be written.
 *
 * A thread has one pool. Blocks are held only while bytes are in them, so a parked connection costs
 * none; the last one given back is the first taken, so it is still in the cache.
 *
 * Thread: the gateway thread that owns the pool. */
#ifndef SKERRY_GATEWAY_BLOCK_H
#define SKERRY_GATEWAY_BLOCK_H

#include <stdbool.h>
#include <stddef.h>

#define BLOCK_BYTES (32u * 1024u)
#define BLOCKS_KEPT_MAX 128u

struct block {
    struct block *next;
    size_t capacity;
    size_t begin, end; /* what is in it */
    char data[];
};

struct block_pool {
    struct block *free; /* all of BLOCK_BYTES */
    unsigned free_count;
};

/* At least `capacity` bytes; NULL without memory. */
struct block *block_take(struct block_pool *pool, size_t capacity);
void block_give(struct block_pool *pool, struct block *block);
void block_pool_free(struct block_pool *pool);

/* --- a queue: zeroed is empty --- */
struct queue {
    struct block *block;
};

static inline size_t queue_pending(const struct queue *q)
{
    return q->block == NULL ? 0 : q->block->end - q->block->begin;
}
static inline const char *queue_data(const struct queue *q)
{
    return q->block->data + q->block->begin;
}
/* Room for `n` bytes in one piece behind what is pending; NULL without memory. They count when
 * queue_commit tells how many there are. The caller keeps the bound: see QUEUE_BYTES_MAX. */
char *queue_reserve(struct block_pool *pool, struct queue *q, size_t n);
void queue_commit(struct queue *q, size_t n);
bool queue_append(struct block_pool *pool, struct queue *q, const void *data, size_t n);
/* Drops bytes at the front; gives the block back with the last. */
void queue_consume(struct block_pool *pool, struct queue *q, size_t n);
void queue_clear(struct block_pool *pool, struct queue *q);

/* What may wait in one direction of a bridge before its source is no longer read. A head may go
 * beyond. */
#define QUEUE_BYTES_MAX (24u * 1024u)
static inline size_t queue_room(const struct queue *q)
{
    size_t pending = queue_pending(q);
    return pending >= QUEUE_BYTES_MAX ? 0 : QUEUE_BYTES_MAX - pending;
}

enum queue_write { QUEUE_EMPTY, QUEUE_BLOCKED, QUEUE_BROKEN };
/* Writes what the descriptor takes; *written (may be NULL) is added to. */
enum queue_write queue_send(struct block_pool *pool, struct queue *q, int fd, bool is_socket,
                            size_t *written);

#endif
