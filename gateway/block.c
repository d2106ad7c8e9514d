#include "gateway/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"

struct block *block_take(struct block_pool *pool, size_t capacity)
{
    struct block *block = pool->free;
    if (capacity <= BLOCK_BYTES && block != NULL) {
        pool->free = block->next;
        pool->free_count--;
    } else {
        if (capacity < BLOCK_BYTES)
            capacity = BLOCK_BYTES;
        block = malloc(sizeof *block + capacity);
        if (block == NULL)
            return NULL;
        block->capacity = capacity;
    }
    block->next = NULL;
    block->begin = block->end = 0;
    return block;
}

void block_give(struct block_pool *pool, struct block *block)
{
    if (block->capacity != BLOCK_BYTES || pool->free_count >= BLOCKS_KEPT_MAX) {
        free(block);
        return;
    }
    block->next = pool->free;
    pool->free = block;
    pool->free_count++;
}

void block_pool_free(struct block_pool *pool)
{
    while (pool->free != NULL) {
        struct block *next = pool->free->next;
        free(pool->free);
        pool->free = next;
    }
    pool->free_count = 0;
}

char *queue_reserve(struct block_pool *pool, struct queue *q, size_t n)
{
    struct block *block = q->block;
    if (block == NULL) {
        q->block = block_take(pool, n);
        return q->block == NULL ? NULL : q->block->data;
    }
    if (block->capacity - block->end >= n)
        return block->data + block->end;
    size_t pending = block->end - block->begin;
    struct block *to = block;
    if (block->capacity - pending < n) {
        to = block_take(pool, pending + n);
        if (to == NULL)
            return NULL;
    }
    memmove(to->data, block->data + block->begin, pending);
    to->begin = 0;
    to->end = pending;
    if (to != block) {
        block_give(pool, block);
        q->block = to;
    }
    return to->data + to->end;
}

void queue_commit(struct queue *q, size_t n)
{
    assert_always(q->block->capacity - q->block->end >= n);
    q->block->end += n;
}

bool queue_append(struct block_pool *pool, struct queue *q, const void *data, size_t n)
{
    if (n == 0)
        return true;
    char *to = queue_reserve(pool, q, n);
    if (to == NULL)
        return false;
    memcpy(to, data, n);
    queue_commit(q, n);
    return true;
}

void queue_consume(struct block_pool *pool, struct queue *q, size_t n)
{
    if (n == 0 && q->block == NULL)
        return;
    assert_always(n <= queue_pending(q));
    q->block->begin += n;
    if (q->block->begin == q->block->end)
        queue_clear(pool, q);
}

void queue_clear(struct block_pool *pool, struct queue *q)
{
    if (q->block != NULL)
        block_give(pool, q->block);
    q->block = NULL;
}

enum queue_write queue_send(struct block_pool *pool, struct queue *q, int fd, bool is_socket,
                            size_t *written)
{
    while (queue_pending(q) > 0) {
        size_t pending = queue_pending(q);
        ssize_t n = is_socket ? send(fd, queue_data(q), pending, MSG_NOSIGNAL)
                              : write(fd, queue_data(q), pending);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return QUEUE_BLOCKED;
        if (n < 0)
            return QUEUE_BROKEN;
        if (written != NULL)
            *written += (size_t)n;
        queue_consume(pool, q, (size_t)n);
        if ((size_t)n < pending)
            return QUEUE_BLOCKED;
    }
    queue_clear(pool, q);
    return QUEUE_EMPTY;
}
