/* A weight-balanced tree (Adams; the parameters <3, 2> of Hirai and Yamamoto, "Balancing weight-
 * balanced trees", 2011, which they prove to keep the balance over insert and delete).
 *
 * A node's weight is the number of its entries + 1. Neither side of a node weighs more than three
 * times the other, so a child has at most 3/4 of its parent's weight and the depth stays below
 * log(2^32) / log(4/3) = 78: recursion over a tree is bounded by that.
 *
 * Key and value live in an entry of their own, so that copying a path copies small nodes only.
 *
 * Ownership inside this file: a function that takes nodes as `left` and `right` consumes one
 * reference of each, also when it fails; NULL is the empty tree. */
#include "base/map.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { WEIGHT_RATIO = 3, ROTATION_RATIO = 2 };

/* Far below the 2^32 that a node can count. */
#define MAP_COUNT_MAX (UINT32_MAX / 4)

struct entry {
    uint32_t references; /* of nodes */
    uint32_t key_length;
    struct map_value *value;
    unsigned char key[];
};

struct map_node {
    union {
        struct {
            uint32_t references; /* of parents and roots */
            uint32_t count;      /* entries in this tree, its own among them */
        };
        struct map_node *garbage_next; /* of a node that has no references any more */
    };
    struct map_node *left;
    struct map_node *right;
    struct entry *entry;
};

void map_value_init(struct map_value *value, void (*release)(struct map_value *))
{
    *value = (struct map_value){.references = 1, .release = release};
}

void map_value_hold(struct map_value *value)
{
    assert_always(value->references > 0 && value->references < UINT32_MAX);
    value->references++;
}

void map_value_drop(struct map_value *value)
{
    if (value == NULL)
        return;
    assert_always(value->references > 0);
    if (--value->references == 0 && value->release != NULL)
        value->release(value);
}

static struct entry *entry_new(const void *key, size_t key_length, struct map_value *value)
{
    struct entry *entry = malloc(sizeof *entry + key_length);
    if (entry == NULL)
        return NULL;
    *entry = (struct entry){.references = 1, .key_length = (uint32_t)key_length, .value = value};
    if (key_length > 0)
        memcpy(entry->key, key, key_length);
    map_value_hold(value);
    return entry;
}

static struct entry *entry_hold(struct entry *entry)
{
    assert_always(entry->references < UINT32_MAX);
    entry->references++;
    return entry;
}

static void entry_drop(struct entry *entry)
{
    if (--entry->references > 0)
        return;
    map_value_drop(entry->value);
    free(entry);
}

static struct map_node *node_hold(struct map_node *node)
{
    if (node != NULL) {
        assert_always(node->references > 0 && node->references < UINT32_MAX);
        node->references++;
    }
    return node;
}

/* Recurses to the left and loops to the right: as deep as the tree at most. */
static void node_drop(struct map_node *node)
{
    while (node != NULL) {
        assert_always(node->references > 0);
        if (--node->references > 0)
            return;
        struct map_node *right = node->right;
        node_drop(node->left);
        entry_drop(node->entry);
        free(node);
        node = right;
    }
}

static uint32_t count_of(const struct map_node *node)
{
    return node == NULL ? 0 : node->count;
}

static uint64_t weight_of(const struct map_node *node)
{
    return (uint64_t)count_of(node) + 1;
}

static struct map_node *node_new(struct entry *entry, struct map_node *left, struct map_node *right)
{
    struct map_node *node = malloc(sizeof *node);
    if (node == NULL) {
        node_drop(left);
        node_drop(right);
        return NULL;
    }
    *node = (struct map_node){.references = 1,
                              .count = count_of(left) + count_of(right) + 1,
                              .left = left,
                              .right = right,
                              .entry = entry_hold(entry)};
    return node;
}

/* The right side is too heavy: its inner tree moves over to the left, whole (single rotation) or
 * split at its root (double rotation). */
static struct map_node *rotate_left(struct entry *entry, struct map_node *left,
                                    struct map_node *right)
{
    struct map_node *inner = right->left;
    struct map_node *a, *b, *out = NULL;
    if (weight_of(inner) < ROTATION_RATIO * weight_of(right->right)) {
        a = node_new(entry, left, node_hold(inner));
        if (a != NULL)
            out = node_new(right->entry, a, node_hold(right->right));
    } else {
        assert_always(inner != NULL); /* it weighs twice the other, so more than nothing */
        a = node_new(entry, left, node_hold(inner->left));
        b = node_new(right->entry, node_hold(inner->right), node_hold(right->right));
        if (a != NULL && b != NULL) {
            out = node_new(inner->entry, a, b);
        } else {
            node_drop(a);
            node_drop(b);
        }
    }
    node_drop(right);
    return out;
}

static struct map_node *rotate_right(struct entry *entry, struct map_node *left,
                                     struct map_node *right)
{
    struct map_node *inner = left->right;
    struct map_node *a, *b, *out = NULL;
    if (weight_of(inner) < ROTATION_RATIO * weight_of(left->left)) {
        b = node_new(entry, node_hold(inner), right);
        if (b != NULL)
            out = node_new(left->entry, node_hold(left->left), b);
    } else {
        assert_always(inner != NULL);
        a = node_new(left->entry, node_hold(left->left), node_hold(inner->left));
        b = node_new(entry, node_hold(inner->right), right);
        if (a != NULL && b != NULL) {
            out = node_new(inner->entry, a, b);
        } else {
            node_drop(a);
            node_drop(b);
        }
    }
    node_drop(left);
    return out;
}

/* A node over two trees of which one may have gained or lost an entry since they were in balance. */
static struct map_node *balance(struct entry *entry, struct map_node *left, struct map_node *right)
{
    if (weight_of(right) > WEIGHT_RATIO * weight_of(left))
        return rotate_left(entry, left, right);
    if (weight_of(left) > WEIGHT_RATIO * weight_of(right))
        return rotate_right(entry, left, right);
    return node_new(entry, left, right);
}

static int compare(const void *a, size_t a_length, const void *b, size_t b_length)
{
    size_t common = a_length < b_length ? a_length : b_length;
    int order = common == 0 ? 0 : memcmp(a, b, common);
    if (order != 0)
        return order;
    return a_length < b_length ? -1 : a_length > b_length;
}

static int compare_key(const void *key, size_t key_length, const struct map_node *node)
{
    return compare(key, key_length, node->entry->key, node->entry->key_length);
}

/* NULL without memory. */
static struct map_node *insert(const struct map_node *node, struct entry *entry)
{
    if (node == NULL)
        return node_new(entry, NULL, NULL);
    int order = compare_key(entry->key, entry->key_length, node);
    if (order == 0)
        return node_new(entry, node_hold(node->left), node_hold(node->right));
    if (order < 0) {
        struct map_node *left = insert(node->left, entry);
        return left == NULL ? NULL : balance(node->entry, left, node_hold(node->right));
    }
    struct map_node *right = insert(node->right, entry);
    return right == NULL ? NULL : balance(node->entry, node_hold(node->left), right);
}

static const struct map_node *first_of(const struct map_node *node)
{
    while (node->left != NULL)
        node = node->left;
    return node;
}

/* `node` without its first entry. False without memory; *out may become NULL, the empty tree. */
static bool remove_first(struct map_node **out, const struct map_node *node)
{
    if (node->left == NULL) {
        *out = node_hold(node->right);
        return true;
    }
    struct map_node *left;
    if (!remove_first(&left, node->left))
        return false;
    *out = balance(node->entry, left, node_hold(node->right));
    return *out != NULL;
}

/* `node` without its own entry. */
static bool remove_top(struct map_node **out, const struct map_node *node)
{
    if (node->left == NULL || node->right == NULL) {
        *out = node_hold(node->left == NULL ? node->right : node->left);
        return true;
    }
    struct map_node *right;
    if (!remove_first(&right, node->right))
        return false;
    *out = balance(first_of(node->right)->entry, node_hold(node->left), right);
    return *out != NULL;
}

/* The key must be in the tree. */
static bool remove_key(struct map_node **out, const struct map_node *node, const void *key,
                       size_t key_length)
{
    struct map_node *side;
    int order = compare_key(key, key_length, node);
    if (order == 0)
        return remove_top(out, node);
    if (!remove_key(&side, order < 0 ? node->left : node->right, key, key_length))
        return false;
    if (order < 0)
        *out = balance(node->entry, side, node_hold(node->right));
    else
        *out = balance(node->entry, node_hold(node->left), side);
    return *out != NULL;
}

/* `root` is a reference of its own: taken from here. */
static void set_root(struct map *out, const struct map *in, struct map_node *root)
{
    if (out == in)
        node_drop(out->root);
    *out = (struct map){.root = root, .count = count_of(root)};
}

int map_put(struct map *out, const struct map *in, const void *key, size_t key_length,
            struct map_value *value, struct err *e)
{
    assert_always(value != NULL);
    if (key_length > MAP_KEY_LENGTH_MAX)
        return err_set(e, ERR_LIMIT, "a key of %zu bytes, at most %d are allowed", key_length,
                       MAP_KEY_LENGTH_MAX);
    if (in->count >= MAP_COUNT_MAX)
        return err_set(e, ERR_LIMIT, "the map holds %zu entries, its bound", in->count);
    struct entry *entry = entry_new(key, key_length, value);
    if (entry == NULL)
        return err_set(e, ERR_NO_MEMORY, "put into a map of %zu entries: no memory", in->count);
    struct map_node *root = insert(in->root, entry);
    entry_drop(entry);
    if (root == NULL)
        return err_set(e, ERR_NO_MEMORY, "put into a map of %zu entries: no memory", in->count);
    set_root(out, in, root);
    return 0;
}

int map_remove(struct map *out, const struct map *in, const void *key, size_t key_length,
               struct err *e)
{
    struct map_node *root;
    if (map_get(in, key, key_length) == NULL)
        root = node_hold(in->root);
    else if (!remove_key(&root, in->root, key, key_length))
        return err_set(e, ERR_NO_MEMORY, "remove from a map of %zu entries: no memory", in->count);
    set_root(out, in, root);
    return 0;
}

struct map map_hold(const struct map *m)
{
    node_hold(m->root);
    return *m;
}

void map_release(struct map *m)
{
    struct map_node *root = m->root;
    *m = (struct map){0};
    node_drop(root);
}

/* Drops a reference; a node that was held by it alone waits, with its children. */
static void node_discard(struct map_node *node, struct map_garbage *garbage)
{
    if (node == NULL)
        return;
    assert_always(node->references > 0);
    if (--node->references > 0)
        return;
    node->garbage_next = garbage->first;
    garbage->first = node;
}

void map_discard(struct map *m, struct map_garbage *garbage)
{
    struct map_node *root = m->root;
    *m = (struct map){0};
    node_discard(root, garbage);
}

bool map_collect(struct map_garbage *garbage, size_t entries_max)
{
    for (; garbage->first != NULL && entries_max > 0; entries_max--) {
        struct map_node *node = garbage->first;
        garbage->first = node->garbage_next;
        node_discard(node->left, garbage);
        node_discard(node->right, garbage);
        entry_drop(node->entry);
        free(node);
    }
    return garbage->first != NULL;
}

struct map_value *map_get(const struct map *m, const void *key, size_t key_length)
{
    const struct map_node *node = m->root;
    while (node != NULL) {
        int order = compare_key(key, key_length, node);
        if (order == 0)
            return node->entry->value;
        node = order < 0 ? node->left : node->right;
    }
    return NULL;
}

struct walk {
    const void *from;
    size_t from_length;
    bool (*visit)(void *user, const void *key, size_t key_length, struct map_value *value);
    void *user;
};

/* False once the visitor wants no more. */
static bool walk_node(const struct walk *w, const struct map_node *node)
{
    while (node != NULL) {
        int order = w->from == NULL ? -1 : compare_key(w->from, w->from_length, node);
        if (order < 0 && !walk_node(w, node->left))
            return false;
        if (order <= 0 &&
            !w->visit(w->user, node->entry->key, node->entry->key_length, node->entry->value))
            return false;
        node = node->right;
    }
    return true;
}

void map_walk(const struct map *m, const void *from, size_t from_length,
              bool (*visit)(void *user, const void *key, size_t key_length,
                            struct map_value *value),
              void *user)
{
    const struct walk w = {.from = from, .from_length = from_length, .visit = visit, .user = user};
    walk_node(&w, m->root);
}
