// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/guests.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/handoff.h"
#include "common/units.h"
#include "uffd-pager/options.h"
#include "uffd-pager/session.h"

#define GUESTS_PEEK_TIMEOUT_MS 5000
#define GUESTS_CONNECT_TIMEOUT_MS 5000
#define GUESTS_START_TIMEOUT_MS 10000

extern char **environ;

struct guests {
    struct guests_config config;
    char dir[80];          /* RUN/guests */
    pthread_mutex_t spawn; /* one worker is started at a time, so no guest gets two */
};

struct guests_watch {
    struct guests *guests;
    char uuid[UUID_TEXT_LEN];
    pid_t child; /* 0: adopted */
};

static void guests_path(const struct guests *guests, const char *uuid, const char *name,
                        char *path, size_t size)
{
    snprintf(path, size, "%s/%s%s%s", guests->dir, uuid, name[0] ? "/" : "", name);
}

static int guests_socket(const struct guests *guests, const char *uuid, const char *name,
                         struct endpoint *endpoint)
{
    memset(endpoint, 0, sizeof(*endpoint));
    endpoint->is_unix = true;
    guests_path(guests, uuid, name, endpoint->host, sizeof(endpoint->host));
    return access(endpoint->host, F_OK) < 0 ? -ENOENT : 0;
}

/* Does a worker of this guest answer? */
static bool guests_alive(const struct guests *guests, const char *uuid)
{
    struct endpoint endpoint;
    int fd = guests_socket(guests, uuid, "worker.sock", &endpoint) == 0
                 ? endpoint_connect(&endpoint, 500, NULL)
                 : -ENOENT;

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

/* ---- watching a worker ---- */

static void guests_forward_event(void *opaque, const char *name, const json_t *data)
{
    struct guests_watch *watch = opaque;

    watch->guests->config.event(watch->guests->config.opaque, name, json_deep_copy(data));
}

static void guests_listen(struct guests_watch *watch)
{
    struct endpoint endpoint;
    struct control_client *client;

    if (guests_socket(watch->guests, watch->uuid, "worker.sock", &endpoint) < 0 ||
        control_connect(&client, &endpoint, GUESTS_CONNECT_TIMEOUT_MS, NULL) < 0) {
        return;
    }
    control_on_event_set(client, guests_forward_event, watch);
    struct pollfd pfd = {.fd = control_fd(client), .events = POLLIN};
    while ((poll(&pfd, 1, -1) > 0 || errno == EINTR) && control_poll(client) == 0) {
    }
    control_close(client);
}

/*
 * A worker has ended.  If its folder is still there it did not end in order: a
 * live QEMU will connect again and get a new worker; for a dead one nothing
 * must be left on any host.
 */
static void guests_bury(struct guests_watch *watch)
{
    char dir[320];
    struct session *session = malloc(sizeof(*session));
    struct reason reason = {""};

    guests_path(watch->guests, watch->uuid, "", dir, sizeof(dir));
    pthread_mutex_lock(&watch->guests->spawn);
    if (guests_alive(watch->guests, watch->uuid)) { /* QEMU was quick: another has followed */
        pthread_mutex_unlock(&watch->guests->spawn);
        free(session);
        return;
    }
    int err = session && access(dir, F_OK) == 0 ? session_load(session, dir, &reason) : -ENOENT;
    bool alive = err == 0 && session->qemu_pid &&
                 session_process_start(session->qemu_pid) == session->qemu_start;
    if (err == 0 && !alive) {
        log_warn("guest %s ended with its worker: its regions are freed", watch->uuid);
        session_delete_regions(session, watch->uuid);
    }
    if (!alive) {
        session_remove(dir);
    } else {
        log_error("the worker of guest %s died: the guest waits until QEMU has connected again",
                  watch->uuid);
    }
    pthread_mutex_unlock(&watch->guests->spawn);
    free(session);
}

/* A dead worker whose QEMU lives but never comes back is buried when QEMU dies. */
static void guests_wait_for_qemu(struct guests_watch *watch)
{
    char dir[320];
    struct session *session = malloc(sizeof(*session));

    guests_path(watch->guests, watch->uuid, "", dir, sizeof(dir));
    if (session && session_load(session, dir, NULL) == 0 && session->qemu_pid) {
        int pidfd = (int)syscall(SYS_pidfd_open, session->qemu_pid, 0);
        struct pollfd pfd = {.fd = pidfd, .events = POLLIN};
        if (pidfd >= 0 && session->lost_action == ENGINE_LOSS_PAUSE &&
            session_process_start(session->qemu_pid) == session->qemu_start) {
            /* Its worker may have died with the guest stopped; only a running one connects again. */
            syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0);
        }
        while (pidfd >= 0 && poll(&pfd, 1, 500) == 0) {
            if (guests_alive(watch->guests, watch->uuid)) { /* the follower has its own watch */
                close(pidfd);
                free(session);
                return;
            }
        }
        if (pidfd >= 0) {
            close(pidfd);
        }
        guests_bury(watch);
    }
    free(session);
}

static void *guests_watch_thread(void *arg)
{
    struct guests_watch *watch = arg;
    int status = 0;

    pthread_setname_np(pthread_self(), "watch");
    guests_listen(watch);
    if (watch->child) {
        while (waitpid(watch->child, &status, 0) < 0 && errno == EINTR) {
        }
        if (WIFSIGNALED(status)) {
            log_error("the worker of guest %s was ended by signal %d", watch->uuid,
                      WTERMSIG(status));
        }
    }
    guests_bury(watch);
    guests_wait_for_qemu(watch);
    free(watch);
    return NULL;
}

static int guests_watch_start(struct guests *guests, const char *uuid, pid_t child)
{
    struct guests_watch *watch = calloc(1, sizeof(*watch));
    pthread_attr_t attr;
    pthread_t thread;

    if (!watch) {
        return -ENOMEM;
    }
    watch->guests = guests;
    watch->child = child;
    snprintf(watch->uuid, sizeof(watch->uuid), "%s", uuid);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int err = -pthread_create(&thread, &attr, guests_watch_thread, watch);
    pthread_attr_destroy(&attr);
    if (err) {
        free(watch);
    }
    return err;
}

/* ---- starting a worker ---- */

static int guests_spawn(struct guests *guests, const char *uuid, struct reason *reason)
{
    char data[ENDPOINT_TEXT_LEN];
    char uuid_copy[UUID_TEXT_LEN];
    char name[] = "uffd-pager";
    char worker[] = "--worker";
    char run[] = "--run-dir";
    char data_option[] = "--data";
    char debug[] = "--verbose";
    char *argv[] = {name,        worker, uuid_copy, run, (char *)(uintptr_t)guests->config.run_dir,
                    data_option, data,   [8 + OPTIONS_PASS] = NULL};
    unsigned n = 7;
    int ready[2];
    pid_t pid;

    n += options_pass(argv + n);
    argv[n] = guests->config.debug ? debug : NULL;
    endpoint_format(&guests->config.data, data);
    snprintf(uuid_copy, sizeof(uuid_copy), "%s", uuid);
    if (pipe2(ready, O_CLOEXEC) < 0) {
        return reason_set(reason, -errno, "a worker cannot be started: %m");
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none); /* the daemon blocks signals to wait for them */
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ready[1], 3);
    int err = -posix_spawn(&pid, "/proc/self/exe", &actions, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    close(ready[1]);
    struct pollfd pfd = {.fd = ready[0], .events = POLLIN};
    char byte;
    if (!err && (poll(&pfd, 1, GUESTS_START_TIMEOUT_MS) <= 0 || read(ready[0], &byte, 1) != 1)) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        err = -ECHILD;
    }
    close(ready[0]);
    if (err) {
        return reason_set(reason, err, "a worker for guest %s cannot be started: %s", uuid,
                          err == -ECHILD ? "it ended at once" : strerror(-err));
    }
    return guests_watch_start(guests, uuid, pid);
}

/* A connection to a socket of the guest's worker, which is started if need be. */
static int guests_reach(struct guests *guests, const char *uuid, const char *name, bool start,
                        struct reason *reason)
{
    struct endpoint endpoint;
    int fd = -ENOENT;

    pthread_mutex_lock(&guests->spawn);
    if (guests_socket(guests, uuid, name, &endpoint) == 0) {
        fd = endpoint_connect(&endpoint, GUESTS_CONNECT_TIMEOUT_MS, NULL);
    }
    if (fd < 0 && start) {
        int err = guests_spawn(guests, uuid, reason);
        fd = err ? err : endpoint_connect(&endpoint, GUESTS_CONNECT_TIMEOUT_MS, reason);
    } else if (fd < 0) {
        fd = reason_set(reason, -ENOENT, "there is no guest %s on this host", uuid);
    }
    pthread_mutex_unlock(&guests->spawn);
    return fd;
}

int guests_connect(struct guests *guests, const char *uuid, bool start,
                   struct control_client **client, struct reason *reason)
{
    struct endpoint endpoint;
    int fd = guests_reach(guests, uuid, "worker.sock", start, reason);

    if (fd < 0) {
        return fd;
    }
    close(fd);
    guests_socket(guests, uuid, "worker.sock", &endpoint);
    return control_connect(client, &endpoint, GUESTS_CONNECT_TIMEOUT_MS, reason);
}

static int guests_pass(int to, int fd)
{
    char byte = 'h';
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    return sendmsg(to, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* Look at HELLO without taking it: the descriptors in it are for the worker. */
static int guests_peek_uuid(int fd, char uuid[UUID_TEXT_LEN])
{
    struct {
        struct handoff_header header;
        struct handoff_hello hello;
    } head;
    uint64_t deadline = units_now_us() + GUESTS_PEEK_TIMEOUT_MS * 1000u;
    ssize_t n;

    for (;;) {
        n = recv(fd, &head, sizeof(head), MSG_PEEK | MSG_DONTWAIT);
        if (n == 0 || n == (ssize_t)sizeof(head) || units_now_us() > deadline) {
            break;
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            break;
        }
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        poll(&pfd, 1, n > 0 ? 10 : 500); /* part of it makes poll return at once */
        if (n > 0) {
            usleep(1000);
        }
    }
    if (n != (ssize_t)sizeof(head) || head.header.magic != HANDOFF_MAGIC ||
        head.header.version != HANDOFF_VERSION || head.header.type != HANDOFF_HELLO) {
        return -EPROTO;
    }
    units_format_uuid(head.hello.uuid, uuid);
    return 0;
}

void guests_attach(struct guests *guests, int fd)
{
    char uuid[UUID_TEXT_LEN];
    struct reason reason = {""};

    int err = guests_peek_uuid(fd, uuid);
    if (err) {
        log_error("a hand-off connection did not begin with a HELLO of version %u",
                  HANDOFF_VERSION);
    } else {
        int to = guests_reach(guests, uuid, "attach.sock", true, &reason);
        if (to < 0) {
            log_error("%s", reason.text);
        } else {
            guests_pass(to, fd);
            close(to);
        }
    }
    close(fd);
}

json_t *guests_list(struct guests *guests)
{
    json_t *list = json_array();
    DIR *dir = opendir(guests->dir);
    struct dirent *entry;
    uint8_t uuid[16];

    while (dir && (entry = readdir(dir))) {
        if (units_parse_uuid(entry->d_name, uuid) == 0) {
            json_array_append_new(list, json_string(entry->d_name));
        }
    }
    if (dir) {
        closedir(dir);
    }
    return list;
}

static void guests_adopt(struct guests *guests)
{
    json_t *list = guests_list(guests);
    json_t *value;
    size_t i;

    json_array_foreach(list, i, value) {
        log_info("guest %s is taken over from an earlier daemon", json_string_value(value));
        guests_watch_start(guests, json_string_value(value), 0);
    }
    json_decref(list);
}

int guests_new(struct guests **out, const struct guests_config *config, struct reason *reason)
{
    struct guests *guests = calloc(1, sizeof(*guests));

    if (!guests) {
        return -ENOMEM;
    }
    guests->config = *config;
    pthread_mutex_init(&guests->spawn, NULL);
    snprintf(guests->dir, sizeof(guests->dir), "%s/guests", config->run_dir);
    if (mkdir(guests->dir, 0700) < 0 && errno != EEXIST) {
        int err = reason_set(reason, -errno, "cannot make %s: %m", guests->dir);
        free(guests);
        return err;
    }
    guests_adopt(guests);
    *out = guests;
    return 0;
}
