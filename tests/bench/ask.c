/* tests/bench/ask.c - asks one question of an API COUNT times on one connection, GAP_MS apart, and takes its
 * time:
 *
 *     ask COUNT GAP_MS SOCKET METHOD PATH
 *
 * A line for each: microseconds from before the question was written to when the answer was whole, and its
 * body, of one line of JSON. What launch is to programs: as little of its own as can be. Ends with 1 on an answer that is not
 * 2xx, or not of a stated length. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES_MAX = 1 << 16 };

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (strlen(path) >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, strlen(path) + 1);
    return fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ? -1 : fd;
}

/* Where the body is, if all of it is there. */
static const char *body_of(const char *answer, size_t length)
{
    const char *end = strstr(answer, "\r\n\r\n");
    const char *field = end == NULL ? NULL : strcasestr(answer, "\r\nContent-Length:");
    if (field == NULL || field > end)
        return NULL;
    size_t size = strtoul(field + strlen("\r\nContent-Length:"), NULL, 10);
    return length >= (size_t)(end + 4 - answer) + size ? end + 4 : NULL;
}

static const char *ask(int fd, const char *question, char *answer)
{
    size_t length = 0;
    const char *body = NULL;
    if (write(fd, question, strlen(question)) != (ssize_t)strlen(question))
        return NULL;
    while (body == NULL && length < ANSWER_BYTES_MAX) {
        ssize_t n = read(fd, answer + length, ANSWER_BYTES_MAX - length);
        if (n <= 0)
            return NULL;
        length += (size_t)n;
        answer[length] = '\0';
        body = body_of(answer, length);
    }
    return body != NULL && strncmp(answer, "HTTP/1.1 2", 10) == 0 ? body : NULL;
}

int main(int argc, char **argv)
{
    static char question[4096], answer[ANSWER_BYTES_MAX + 1];
    if (argc != 6) {
        fprintf(stderr, "usage: ask COUNT GAP_MS SOCKET METHOD PATH\n");
        return 2;
    }
    int fd = connect_to(argv[3]);
    snprintf(question, sizeof question,
             "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Length: "
             "0\r\n\r\n",
             argv[4], argv[5]);
    for (int i = atoi(argv[1]); fd >= 0 && i > 0; i--) {
        (void)usleep((useconds_t)atoi(argv[2]) * 1000);
        double begun = now_us();
        const char *body = ask(fd, question, answer);
        double taken = now_us() - begun;
        if (body == NULL) {
            fprintf(stderr, "ask: %s %s: %s\n", argv[4], argv[5], answer);
            return 1;
        }
        printf("%.0f %.*s\n", taken, (int)strcspn(body, "\r\n"), body);
    }
    return fd < 0;
}
