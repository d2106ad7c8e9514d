/* Any bytes: document_parse refuses them with a text, or makes a tree that keeps its promises. */
#include <stdint.h>
#include <string.h>

#include "base/document.h"
#include "base/memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t check_node(const struct document_node *node, const struct document_node *parent,
                         unsigned depth)
{
    size_t count = 1;
    assert_always(depth <= DOCUMENT_DEPTH_MAX + 1);
    assert_always(node->line >= 1);
    assert_always((node->key != NULL) == (parent != NULL && parent->kind == DOCUMENT_MAP));
    assert_always((node->text != NULL) == (node->kind == DOCUMENT_SCALAR));
    for (const struct document_node *child = node->first; child != NULL; child = child->next) {
        count += check_node(child, node, depth + 1);
        if (child->key != NULL)
            assert_always(document_find(node, child->key) == child);
    }
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct document *d = NULL;
    struct err e = {0};
    int rc = document_parse(&d, "fuzz.yaml", (const char *)data, size, &e);
    if (rc != 0) {
        assert_always(d == NULL && e.code != ERR_OK && rc == -(int)e.code);
        assert_always(strncmp(e.msg, "fuzz.yaml:", 10) == 0);
        return 0;
    }
    assert_always(check_node(document_root(d), NULL, 1) <= DOCUMENT_NODES_MAX);
    document_free(d);
    return 0;
}
