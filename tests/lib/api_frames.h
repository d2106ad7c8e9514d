/* tests/lib/api_frames.h - a client of skerry-exec/1, byte by byte. Header only; asserts by cmocka. */
#ifndef SKERRY_TESTS_LIB_API_FRAMES_H
#define SKERRY_TESTS_LIB_API_FRAMES_H

#include "tests/lib/api_client.h"

struct frame {
    unsigned type;
    size_t size;
    char data[65537];
};

/* In one: who refuses a frame by its header may have closed before what follows is sent. */
static inline void frame_send(int fd, unsigned type, const void *data, size_t size)
{
    const unsigned char header[5] = {(unsigned char)type, 0, (unsigned char)(size >> 16),
                                     (unsigned char)(size >> 8), (unsigned char)size};
    unsigned char *frame = malloc(sizeof header + size);
    assert_non_null(frame);
    memcpy(frame, header, sizeof header);
    if (size > 0)
        memcpy(frame + sizeof header, data, size);
    raw_send(fd, frame, sizeof header + size);
    free(frame);
}

static inline bool frame_read(int fd, struct frame *out)
{
    unsigned char h[5] = {0};
    if (!raw_read(fd, h, sizeof(h)))
        return false;
    out->type = h[0];
    out->size = (size_t)h[1] << 24 | (size_t)h[2] << 16 | (size_t)h[3] << 8 | h[4];
    assert_true(out->size <= 65536);
    assert_true(raw_read(fd, out->data, out->size));
    out->data[out->size] = '\0';
    return true;
}

/* The upgraded connection; fails if it is not. */
static inline int upgrade_over(struct fake *f, bool tcp, const char *path, const char *body)
{
    char head[2048];
    char answer[2048];
    int fd = raw_connect(f, tcp);
    (void)text_format(head, sizeof(head),
                      "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
                      "Skerry-Token: %s\r\nUpgrade: skerry-exec/1\r\n%s"
                      "Content-Length: %zu\r\n\r\n%s",
                      path, f->admin, body[0] != '\0' ? "Content-Type: application/json\r\n" : "",
                      strlen(body), body);
    raw_send(fd, head, strlen(head));
    raw_head(fd, answer, sizeof(answer));
    if (strncmp(answer, "HTTP/1.1 101 ", 13) != 0)
        fail_msg("%s", answer);
    assert_non_null(strstr(answer, "Upgrade: skerry-exec/1\r\n"));
    assert_non_null(strstr(answer, "onnection: Upgrade\r\n"));
    return fd;
}

static inline int upgrade(struct fake *f, const char *path, const char *body)
{
    return upgrade_over(f, false, path, body);
}

#endif
