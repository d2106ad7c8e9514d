#include "base/socket_bio.h"

static long control_cb(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    switch (command) {
    case BIO_CTRL_FLUSH:
    case BIO_CTRL_DUP:
        return 1;
    case BIO_CTRL_EOF:
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    default:
        return 0;
    }
}

BIO_METHOD *socket_bio_method(const char *name,
                              int (*write)(BIO *bio, const char *data, size_t size,
                                           size_t *written),
                              int (*read)(BIO *bio, char *out, size_t size, size_t *count))
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, name);
    if (method == NULL || BIO_meth_set_write_ex(method, write) != 1 ||
        BIO_meth_set_read_ex(method, read) != 1 || BIO_meth_set_ctrl(method, control_cb) != 1) {
        BIO_meth_free(method);
        return NULL;
    }
    return method;
}
