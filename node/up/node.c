#include "node/up/node.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/home.h"
#include "node/config.h"
#include "sandbox/shared/userns.h"

const char *const up_daemon_names[] = {[UP_SERVE] = "serve", [UP_RUNNER] = "runner"};
const char *const up_config_names[] = {[UP_SERVE] = "skerry.yaml", [UP_RUNNER] = "runner.yaml"};

/* --- the folder ------------------------------------------------------------------------------- */

void up_node_path(const struct up_node *n, const char *name, char out[UP_PATH_SIZE])
{
    assert_always(text_format(out, UP_PATH_SIZE, "%s/%s", n->directory, name));
}

static int choose_directory(char *out, size_t size, const char *dir, struct err *e)
{
    const char *state = getenv("XDG_STATE_HOME");
    bool root = userns_is_machine();
    char here[UP_PATH_SIZE] = "";
    bool fits;
    if (dir != NULL && dir[0] != '/') {
        if (getcwd(here, sizeof here) == NULL)
            return err_sys(e, ERR_IO, errno, "find the current folder");
        fits = text_format(out, size, "%s/%s", here, dir);
    } else if (dir != NULL) {
        fits = text_copy(out, size, dir);
    } else if (!root) {
        if (!home_state(out, size))
            return err_set(e, ERR_INVALID, "this user has no home: set HOME, or --dir");
        fits = true;
    } else if (state != NULL && state[0] == '/') {
        fits = text_format(out, size, "%s/skerry", state);
    } else {
        fits = text_copy(out, size, "/var/lib/skerry/up");
    }
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/')
        out[--length] = '\0';
    /* The paths of sockets below it have 108 bytes at most. */
    if (!fits || length > 70)
        return err_set(e, ERR_INVALID, "folder %.80s...: its path may have 70 bytes", out);
    return 0;
}

int up_node_init(struct up_node *n, const char *dir, unsigned number, struct err *e)
{
    char base[UP_PATH_SIZE];
    *n = (struct up_node){.number = number, .uid = UP_UID_DEFAULT, .gid = UP_UID_DEFAULT};
    int rc = choose_directory(base, sizeof base, dir, e);
    if (rc != 0)
        return rc;
    (void)text_format(n->directory, sizeof n->directory, "%s/node%u", base, number);
    n->root = userns_is_machine();
    const struct passwd *user = n->root ? getpwnam("skerry") : NULL;
    if (!n->root) {
        n->uid = geteuid();
        n->gid = getegid();
    } else if (user != NULL) {
        n->uid = user->pw_uid;
        n->gid = user->pw_gid;
    }
    return 0;
}

const char *up_node_name(const struct up_node *n)
{
    return strrchr(n->directory, '/') + 1;
}

bool up_node_exists(const struct up_node *n)
{
    char path[UP_PATH_SIZE];
    up_node_path(n, up_config_names[UP_SERVE], path);
    return access(path, F_OK) == 0;
}

static int make_folder(const char *path, mode_t mode, uid_t uid, gid_t gid, struct err *e)
{
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make folder %s", path);
    if (chown(path, uid, gid) < 0 || chmod(path, mode) < 0)
        return err_sys(e, ERR_IO, errno, "give folder %s its owner", path);
    return 0;
}

/* All folders above `path`; another user's serve must be able to pass through them. */
static int make_parents(const char *path, bool root, struct err *e)
{
    CLEANUP_FREE char *copy = strdup(path);
    if (copy == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    char *last = strrchr(copy, '/');
    for (char *p = copy + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        struct stat st;
        if (mkdir(copy, root ? 0755 : 0700) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make folder %s", copy);
        if (stat(copy, &st) < 0)
            return err_sys(e, ERR_IO, errno, "look at folder %s", copy);
        if (root && (st.st_mode & S_IXOTH) == 0) {
            /* DIR itself is ours to open; what is above belongs to somebody else. */
            if (p != last)
                return err_set(e, ERR_DENIED,
                               "the user that runs serve cannot pass through %s; choose another "
                               "--dir, or chmod o+x %s",
                               copy, copy);
            if (chmod(copy, (st.st_mode | S_IXOTH) & 07777) < 0)
                return err_sys(e, ERR_IO, errno, "open folder %s for serve", copy);
        }
        *p = '/';
    }
    return 0;
}

int up_node_prepare(const struct up_node *n, struct err *e)
{
    static const struct {
        const char *name;
        mode_t mode;
        bool of_serve;
    } folders[] = {
        {"", 0755, false}, {"run", 0755, true}, {"runner", 0755, false}, {"data", 0700, true}};
    int rc = make_parents(n->directory, n->root, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(folders); i++) {
        char path[UP_PATH_SIZE];
        up_node_path(n, folders[i].name, path);
        bool ours = n->root && !folders[i].of_serve;
        rc = make_folder(path, n->root ? folders[i].mode : 0700, ours ? 0 : n->uid,
                         ours ? 0 : n->gid, e);
    }
    return rc == 0 ? up_write_configuration(n, e) : rc;
}

int up_node_load(struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE];
    struct config config;
    up_node_path(n, up_config_names[UP_SERVE], path);
    int rc = config_load(&config, path, e);
    if (rc != 0)
        return rc;
    if (!text_copy(n->api_socket, sizeof n->api_socket, config.api_socket) ||
        !text_copy(n->runner_socket, sizeof n->runner_socket, config.runner_socket))
        rc = err_set(e, ERR_INVALID, "%s: the path of a socket is too long", path);
    /* Canonical addresses fit. */
    const char *http = n->http != NULL         ? n->http
                       : config.http.count > 0 ? config.http.items[0]
                                               : "";
    (void)text_copy(n->http_address, sizeof n->http_address, http);
    (void)text_copy(n->api_address, sizeof n->api_address, n->api != NULL ? n->api : config.api);
    (void)text_copy(n->peer_address, sizeof n->peer_address,
                    config.advertise[0] != '\0' ? config.advertise : config.bind);
    config_free(&config);
    return rc;
}

/* --- the link --------------------------------------------------------------------------------- */

static bool somebody_listens(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || !text_copy(address.sun_path, sizeof address.sun_path, path))
        return true;
    return connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
}

bool up_node_link_path(const struct up_node *n, char out[UP_PATH_SIZE])
{
    if (n->root)
        return text_copy(out, UP_PATH_SIZE, CLIENT_ADDRESS_DEFAULT);
    for (int link = 0; link < HOME_LINK_COUNT; link++)
        if (home_socket((enum home_link)link, out, UP_PATH_SIZE))
            return true;
    return false;
}

static bool link_is_ours(const struct up_node *n, const char *path)
{
    char target[UP_PATH_SIZE];
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    return strcmp(target, n->api_socket) == 0;
}

bool up_node_link(const struct up_node *n)
{
    char path[UP_PATH_SIZE];
    if (!up_node_link_path(n, path))
        return false;
    if (link_is_ours(n, path) || strcmp(n->api_socket, path) == 0)
        return true;
    if (somebody_listens(path))
        return false;
    char *slash = strrchr(path, '/');
    *slash = '\0';
    (void)mkdir(path, n->root ? 0755 : 0700);
    *slash = '/';
    (void)unlink(path);
    return symlink(n->api_socket, path) == 0;
}

void up_node_unlink(const struct up_node *n)
{
    char path[UP_PATH_SIZE];
    if (!up_node_link_path(n, path))
        return;
    if (link_is_ours(n, path))
        (void)unlink(path);
    *strrchr(path, '/') = '\0';
    (void)rmdir(path); /* if nothing else is there */
}
