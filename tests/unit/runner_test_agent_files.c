/* Files out of an instance and into it, and terminals. */
#include "tests/lib/agent_host.h"

#include <dirent.h>

#include "sandbox/shared/tar.h"

/* A sandbox without main, and a folder that its user owns. */
struct fixture {
    struct host host;
    char folder[64];
    uint32_t exec_id;
};

static void run_as_root(const char *script, const char *folder)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", script, "sh", folder, NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static int set_up(void **state)
{
    static struct fixture f;
    struct host_setup s;
    f = (struct fixture){.folder = "/tmp/skerry-files-XXXXXX"};
    assert_non_null(mkdtemp(f.folder));
    assert_int_equal(chown(f.folder, HOST_UID_FIRST + 1000, HOST_UID_FIRST + 1001), 0);
    host_start(&f.host);
    host_setup_default(&s);
    host_setup_send(&f.host, &s);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    host_stop(&f->host);
    run_as_root("rm -rf \"$1\"", f->folder);
    return 0;
}

/* Runs a file verb; its exit code. `message` gets what Exited says. */
static uint32_t file_verb(struct fixture *f, uint32_t verb, const char *name, const void *input,
                          size_t input_length, char *output, size_t size, char message[256])
{
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    char path[160];
    snprintf(path, sizeof path, "%s%s", f->folder, name);
    command.exec_id = ++f->exec_id;
    command.file_verb = verb;
    command.path = path;
    Skerry__Agent__FromAgent *m =
        host_pipe(&f->host, &command, NULL, input, input_length, output, size);
    uint32_t code = m->exited->exit_code;
    (void)text_copy(message, 256, m->exited->message);
    host_free(m);
    return code;
}

static void expect_file(struct fixture *f, const char *name, const char *want, mode_t mode)
{
    char path[160], text[256] = "";
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 07777, mode);
    assert_int_equal(st.st_uid, HOST_UID_FIRST + 1000);
    assert_true(read(fd, text, sizeof text - 1) >= 0);
    assert_string_equal(text, want);
}

static bool there(struct fixture *f, const char *name)
{
    char path[160];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    return lstat(path, &st) == 0;
}

/* Archives made in the test. */
struct archive {
    uint8_t bytes[32 * 1024];
    size_t length;
};

static void archive_put(struct archive *a, enum tar_type type, const char *path, const char *link,
                        const char *data)
{
    struct tar_entry entry = {.type = type, .mode = 0640, .size = data == NULL ? 0 : strlen(data)};
    if (type == TAR_DIRECTORY)
        entry.mode = 0750;
    (void)text_copy(entry.path, sizeof entry.path, path);
    (void)text_copy(entry.link, sizeof entry.link, link == NULL ? "" : link);
    a->length += tar_encode(&entry, a->bytes + a->length);
    if (data == NULL)
        return;
    memcpy(a->bytes + a->length, data, strlen(data));
    a->length += strlen(data) + tar_padding(strlen(data));
}

static void archive_end(struct archive *a)
{
    a->length += (size_t)2 * TAR_BLOCK_BYTES;
}

static void plain_file_goes_in_and_out(void **state)
{
    struct fixture *f = *state;
    char out[256], message[256];
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN, "/new/a.txt",
                               "hello", 5, out, sizeof out, message),
                     0);
    expect_file(f, "new/a.txt", "hello", 0644);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN, "/new/a.txt", "bye",
                               3, out, sizeof out, message),
                     0);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_READ_PLAIN, "/new/a.txt", "", 0,
                               out, sizeof out, message),
                     0);
    assert_string_equal(out, "bye");
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_READ_PLAIN, "/none", "", 0, out,
                               sizeof out, message),
                     1);
    assert_non_null(strstr(message, "/none: No such file or directory"));
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_READ_PLAIN, "/new", "", 0, out,
                               sizeof out, message),
                     1);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN, "/new", "x", 1, out,
                               sizeof out, message),
                     1);
}

/* What tar(1) packs we unpack, and the other way round. */
static void trees_go_in_and_out(void **state)
{
    struct fixture *f = *state;
    static char archive[256 * 1024];
    char out[256], message[256];
    run_as_root("cd \"$1\" && mkdir -p src/d/e && echo one > src/one && chmod 600 src/one &&"
                "echo two > src/d/e/two && ln -s ../one src/d/link && ln src/one src/same &&"
                "head -c 100000 /dev/zero > src/zeros && mkfifo src/fifo &&"
                "mkdir src/$(head -c 200 /dev/zero | tr '\\0' n) && chown -R 301000:301001 src",
                f->folder);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_READ, "/src", "", 0, archive,
                               sizeof archive, message),
                     0);
    char path[96];
    snprintf(path, sizeof path, "%s/a.tar", f->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    assert_int_equal(write(fd, archive, sizeof archive), sizeof archive);
    close(fd);
    run_as_root("cd \"$1\" && mkdir x && tar -xf a.tar -C x && rm src/fifo && diff -r src x/src &&"
                "test \"$(readlink x/src/d/link)\" = ../one &&"
                "test $(stat -c %a x/src/one) = 600 && rm -r x",
                f->folder);
    run_as_root("cd \"$1\" && rm src/zeros && tar -cf a.tar src && gzip -kf a.tar", f->folder);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, archive, sizeof archive);
    close(fd);
    assert_true(length > 0 && length <= 65536);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE, "/into/here", archive,
                               (size_t)length, out, sizeof out, message),
                     0);
    run_as_root("cd \"$1\" && diff -r src into/here/src && test into/here/src/one -ef "
                "into/here/src/same && test $(stat -c %a into/here/src/one) = 600",
                f->folder);
}

static void expect_refused(struct fixture *f, const struct archive *a, const char *why)
{
    char out[256], message[256];
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE, "/in", a->bytes, a->length,
                               out, sizeof out, message),
                     1);
    if (strstr(message, why) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", message, why);
}

static void hostile_archives_stay_inside(void **state)
{
    struct fixture *f = *state;
    static struct archive a;
    static const struct {
        const char *path;
        const char *why;
    } names[] = {{"../out", ".. are refused"},
                 {"/tmp/out", ".. are refused"},
                 {"a/../../out", ".. are refused"}};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        a = (struct archive){0};
        archive_put(&a, TAR_FILE, names[i].path, NULL, "x");
        archive_end(&a);
        expect_refused(f, &a, names[i].why);
    }
    /* Through a link that the archive brought. */
    a = (struct archive){0};
    archive_put(&a, TAR_SYMLINK, "up", "..", NULL);
    archive_put(&a, TAR_FILE, "up/out", NULL, "x");
    archive_end(&a);
    expect_refused(f, &a, "up leads out");
    a = (struct archive){0};
    archive_put(&a, TAR_SYMLINK, "root", "/tmp", NULL);
    archive_put(&a, TAR_FILE, "root/out", NULL, "x");
    archive_end(&a);
    expect_refused(f, &a, "root leads out");
    a = (struct archive){0};
    archive_put(&a, TAR_HARDLINK, "hard", "../../etc/passwd", NULL);
    archive_end(&a);
    expect_refused(f, &a, "links out of the archive");
    a = (struct archive){0};
    archive_put(&a, TAR_FILE, "cut", NULL, "x");
    a.length = TAR_BLOCK_BYTES;
    expect_refused(f, &a, "ends within cut");
    a = (struct archive){0};
    memset(a.bytes, 'z', TAR_BLOCK_BYTES);
    a.length = TAR_BLOCK_BYTES;
    expect_refused(f, &a, "not a tar archive");
    assert_false(there(f, "out"));
}

static void deep_archive_and_device_are_refused(void **state)
{
    struct fixture *f = *state;
    static struct archive a;
    char deep[2 * 300 + 1];
    for (size_t i = 0; i < 300; i++)
        memcpy(deep + 2 * i, "d/", 3);
    a = (struct archive){0};
    archive_put(&a, TAR_DIRECTORY, deep, NULL, NULL);
    archive_end(&a);
    expect_refused(f, &a, "nest deeper");
    a = (struct archive){0};
    archive_put(&a, TAR_FILE, "node", NULL, NULL);
    a.bytes[156] = '3'; /* a character device */
    unsigned sum = 0;
    for (size_t k = 0; k < TAR_BLOCK_BYTES; k++)
        sum += k >= 148 && k < 156 ? ' ' : a.bytes[k];
    snprintf((char *)a.bytes + 148, 8, "%06o", sum);
    archive_end(&a);
    expect_refused(f, &a, "is a device");
}

static void link_in_the_way_is_replaced_not_followed(void **state)
{
    struct fixture *f = *state;
    static struct archive a;
    char out[256], message[256];
    run_as_root("mkdir \"$1/in\" && echo keep > \"$1/target\" && ln -s ../target \"$1/in/file\" &&"
                "chown -R 301000:301001 \"$1\"",
                f->folder);
    a = (struct archive){0};
    archive_put(&a, TAR_FILE, "file", NULL, "new");
    archive_end(&a);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE, "/in", a.bytes, a.length,
                               out, sizeof out, message),
                     0);
    expect_file(f, "in/file", "new", 0640);
    expect_file(f, "target", "keep\n", 0644);
}

/* The verbs run as the user, not as somebody who may more. */
static void verbs_have_no_more_rights_than_the_user(void **state)
{
    struct fixture *f = *state;
    char out[256], message[256];
    run_as_root("echo secret > \"$1/secret\" && chmod 600 \"$1/secret\" && mkdir \"$1/closed\"",
                f->folder);
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_READ_PLAIN, "/secret", "", 0, out,
                               sizeof out, message),
                     1);
    assert_string_equal(out, "");
    assert_int_equal(file_verb(f, SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN, "/closed/x", "x", 1,
                               out, sizeof out, message),
                     1);
    assert_non_null(strstr(message, "Permission denied"));
}

/* Reads from a terminal until `want` came. */
static void expect_from(int master, const char *want)
{
    char text[4096] = "";
    size_t length = 0;
    uint64_t until = clock_monotonic_ms() + HOST_DEADLINE_MS;
    while (strstr(text, want) == NULL) {
        struct pollfd wait = {.fd = master, .events = POLLIN};
        uint64_t now = clock_monotonic_ms();
        if (now >= until || poll(&wait, 1, (int)(until - now)) != 1)
            fail_msg("the terminal said \"%s\", not \"%s\"", text, want);
        ssize_t got = read(master, text + length, sizeof text - 1 - length);
        if (got <= 0)
            fail_msg("the terminal ended after \"%s\"", text);
        length += (size_t)got;
        text[length] = '\0';
    }
}

static void terminal_is_the_users_and_resizes(void **state)
{
    struct fixture *f = *state;
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = 1;
    command.tty = true;
    command.rows = 30;
    command.columns = 100;
    int master = -1;
    static const char script[] = "trap 'stty size' WINCH; stty size; echo $TERM; test -w $(tty) &&"
                                 "echo mine; echo x > /dev/tty; while read -r line; do "
                                 "echo \"got $line\"; done";
    assert_int_equal(
        host_run_fds(&f->host, &command, HOST_ARGV("bash", "-c", script), NULL, 0, &master), 0);
    assert_true(master >= 0);
    expect_from(master, "30 100\r\nxterm\r\nmine\r\nx\r\n");
    Skerry__Agent__Resize resize = SKERRY__AGENT__RESIZE__INIT;
    resize.exec_id = 1;
    resize.rows = 40;
    resize.columns = 120;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_RESIZE;
    message.resize = &resize;
    assert_int_equal(host_ask(&f->host, &message, NULL, 0, NULL), 0);
    assert_int_equal(write(master, "hello\n", 6), 6);
    expect_from(master, "got hello");
    /* Interrupted by its terminal, not by us. */
    assert_int_equal(write(master, "\003", 1), 1);
    Skerry__Agent__FromAgent *m =
        host_take(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
    assert_true(m->exited->signal == SIGINT || m->exited->exit_code == 130);
    host_free(m);
    close(master);
}

static void terminal_that_goes_away_hangs_up(void **state)
{
    struct fixture *f = *state;
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = 1;
    command.tty = true;
    int master = -1;
    assert_int_equal(host_run_fds(&f->host, &command, HOST_ARGV("sh", "-c", "echo up; sleep 1000"),
                                  NULL, 0, &master),
                     0);
    expect_from(master, "up");
    close(master);
    Skerry__Agent__FromAgent *m =
        host_take(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
    assert_int_equal(m->exited->signal, SIGHUP);
    host_free(m);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    if (geteuid() != 0) {
        print_message("skipped: making namespaces with mapped ids needs root\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        TEST(plain_file_goes_in_and_out),
        TEST(trees_go_in_and_out),
        TEST(hostile_archives_stay_inside),
        TEST(deep_archive_and_device_are_refused),
        TEST(link_in_the_way_is_replaced_not_followed),
        TEST(verbs_have_no_more_rights_than_the_user),
        TEST(terminal_is_the_users_and_resizes),
        TEST(terminal_that_goes_away_hangs_up),
    };
    return cmocka_run_group_tests_name("agent files", tests, NULL, NULL);
}
