// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/blocks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKER_SEND_TIMEOUT_US 5000000u
#define WORKER_ZAP_TIMEOUT_US 2000000u
/* How often a worker with nothing to do looks at its residents' high-water mark. */
#define WORKER_TICK_MS 250

struct zap_wait {
    struct zap_wait *next;
    uint32_t cookie;
    bool done;
    int err;
};

const char *worker_state_name(enum worker_state state)
{
    static const char *const names[] = {"waiting", "attached", "profiling",  "sending",
                                        "sent",    "incoming", "committing", "split"};

    return names[state];
}

void worker_wake(struct worker *worker)
{
    uint64_t one = 1;
    ssize_t ignored = write(worker->wake, &one, sizeof(one));

    (void)ignored;
}

/*
 * By a signal and not by QEMU's own stop: a vCPU that waits in a fault would keep that from coming
 * to an end, and QEMU's monitor with it.
 */
void worker_pause(void *opaque, bool pause)
{
    struct worker *worker = opaque;
    int number = pause ? SIGSTOP : SIGCONT;

    if (syscall(SYS_pidfd_send_signal, worker->qemu_pidfd, number, NULL, 0) < 0) {
        log_error("the guest cannot be %s: %m", pause ? "stopped" : "continued");
    }
}

void worker_event(void *opaque, const char *name, json_t *data)
{
    struct worker *worker = opaque;

    if (!data) {
        data = json_object();
    }
    json_object_set_new(data, "uuid", json_string(worker->uuid_text));
    if (worker->control) {
        control_broadcast(worker->control, name, data);
    } else {
        json_decref(data);
    }
}

int worker_send(struct worker *worker, uint16_t type, uint32_t cookie, const void *body,
                uint32_t length)
{
    pthread_mutex_lock(&worker->send_lock);
    int err = -ENOTCONN;
    if (worker->qemu_fd >= 0) {
        err = handoff_send(worker->qemu_fd, type, cookie, body, length, NULL, 0,
                           units_now_us() + WORKER_SEND_TIMEOUT_US);
        if (err < 0) {
            shutdown(worker->qemu_fd, SHUT_RDWR);
        }
    }
    pthread_mutex_unlock(&worker->send_lock);
    return err;
}

int worker_send_result(struct worker *worker, uint16_t type, uint32_t cookie, int result,
                       const struct reason *reason)
{
    pthread_mutex_lock(&worker->send_lock);
    int err = -ENOTCONN;
    if (worker->qemu_fd >= 0) {
        err = handoff_send_result(worker->qemu_fd, type, cookie, result, reason,
                                  units_now_us() + WORKER_SEND_TIMEOUT_US);
        if (err < 0) {
            shutdown(worker->qemu_fd, SHUT_RDWR);
        }
    }
    pthread_mutex_unlock(&worker->send_lock);
    return err;
}

static void worker_deadline(struct timespec *deadline, uint64_t us)
{
    clock_gettime(CLOCK_REALTIME, deadline);
    deadline->tv_sec += (time_t)(us / 1000000);
    deadline->tv_nsec += (long)(us % 1000000) * 1000;
    if (deadline->tv_nsec >= 1000000000) {
        deadline->tv_sec++;
        deadline->tv_nsec -= 1000000000;
    }
}

static int worker_zap_some(struct worker *worker, const struct handoff_range *ranges, uint32_t n)
{
    union {
        struct handoff_ranges head;
        uint8_t bytes[HANDOFF_MAX_BODY];
    } *body = malloc(sizeof(*body));
    struct zap_wait wait = {0};
    struct timespec deadline;

    if (!body) {
        return -ENOMEM;
    }
    memcpy(body->head.range, ranges, n * sizeof(*ranges));
    pthread_mutex_lock(&worker->zap_lock);
    n = blocks_to_qemu(worker, body->head.range, n);
    body->head.n = n;
    body->head.pad = 0;
    wait.cookie = ++worker->next_cookie ? worker->next_cookie : ++worker->next_cookie;
    wait.next = worker->zaps;
    worker->zaps = &wait; // cppcheck-suppress autoVariables // taken out again below
    pthread_mutex_unlock(&worker->zap_lock);

    int err = worker_send(worker, HANDOFF_ZAP, wait.cookie, body,
                          (uint32_t)(sizeof(body->head) + n * sizeof(*ranges)));
    free(body);
    worker_deadline(&deadline, WORKER_ZAP_TIMEOUT_US);
    pthread_mutex_lock(&worker->zap_lock);
    while (!err && !wait.done) {
        err = -pthread_cond_timedwait(&worker->zap_done, &worker->zap_lock, &deadline);
    }
    for (struct zap_wait **p = &worker->zaps; *p; p = &(*p)->next) {
        if (*p == &wait) {
            *p = wait.next;
            break;
        }
    }
    pthread_mutex_unlock(&worker->zap_lock);
    return wait.done ? wait.err : err;
}

int worker_zap(void *opaque, const struct handoff_range *ranges, uint32_t n)
{
    const uint32_t most =
        (HANDOFF_MAX_BODY - sizeof(struct handoff_ranges)) / sizeof(struct handoff_range);
    int err = 0;

    for (uint32_t i = 0; i < n && !err; i += most) {
        err = worker_zap_some(opaque, ranges + i, n - i < most ? n - i : most);
    }
    return err;
}

/* End the wait for @cookie; cookie 0 ends all of them (the connection is gone). */
static void worker_zapped(struct worker *worker, uint32_t cookie, int err)
{
    pthread_mutex_lock(&worker->zap_lock);
    for (struct zap_wait *wait = worker->zaps; wait; wait = wait->next) {
        if (!cookie || wait->cookie == cookie) {
            wait->done = true;
            wait->err = err;
        }
    }
    pthread_cond_broadcast(&worker->zap_done);
    pthread_mutex_unlock(&worker->zap_lock);
}

static void worker_drop_qemu(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    pthread_mutex_lock(&worker->send_lock);
    if (worker->qemu_fd >= 0) {
        close(worker->qemu_fd);
        worker->qemu_fd = -1;
    }
    pthread_mutex_unlock(&worker->send_lock);
    worker->in_wait = false;
    outgoing_qemu_lost(worker);
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    worker_zapped(worker, 0, -ENOTCONN);
}

static void worker_read_qemu(struct worker *worker)
{
    struct handoff_frame *frame = malloc(sizeof(*frame));
    struct reason reason = {""};
    int err = frame ? handoff_recv(worker->qemu_fd, frame, units_now_us() + WORKER_SEND_TIMEOUT_US,
                                   &reason)
                    : -ENOMEM;

    if (!err) {
        if (frame->header.type == HANDOFF_ZAPPED) {
            const struct handoff_result *result = (const void *)frame->body.bytes;
            worker_zapped(worker, frame->header.cookie, -(int)result->status);
        } else {
            err = attach_dispatch(worker, frame);
        }
        handoff_frame_close(frame);
    }
    free(frame);
    if (err) {
        log_info("QEMU's hand-off connection ended: %s",
                 reason.text[0] ? reason.text : strerror(-err));
        worker_drop_qemu(worker);
    }
}

/* The daemon passes an accepted hand-off connection on: one byte with the descriptor. */
static void worker_accept_attach(struct worker *worker, int listener)
{
    int peer = endpoint_accept(listener);
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct pollfd pfd = {.fd = peer, .events = POLLIN};

    if (peer < 0) {
        return;
    }
    if (poll(&pfd, 1, 1000) > 0 && recvmsg(peer, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) == 1) {
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        if (cmsg && cmsg->cmsg_type == SCM_RIGHTS && cmsg->cmsg_len == CMSG_LEN(sizeof(int))) {
            int fd;
            memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
            if (worker->qemu_fd >= 0) {
                worker_drop_qemu(worker); /* QEMU connects again only after the old one broke */
            }
            attach_accept(worker, fd);
        }
    }
    close(peer);
}

static void worker_reap_mover(struct worker *worker)
{
    int status;
    pid_t pid = worker->out.mover_pid;

    if (pid > 0 && waitpid(pid, &status, WNOHANG) == pid) {
        worker->out.mover_pid = 0;
        if (WIFSIGNALED(status)) {
            log_warn("the mover was ended by signal %d", WTERMSIG(status));
        }
    }
}

static void worker_tick(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    worker_reap_mover(worker);
    if (worker->state == WORKER_SPLIT) {
        uint64_t resident = engine_resident(&worker->layout);
        if (resident > worker->resident_max) {
            worker->resident_max = resident;
        }
    }
    pthread_mutex_unlock(&worker->lock);
    incoming_tidy(worker);
}

/* True when the worker has no guest and nobody announced one. */
static bool worker_idle(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    bool idle = worker->state == WORKER_WAITING && !worker->have_layout &&
                units_now_us() - worker->started_us > 10000000u;
    pthread_mutex_unlock(&worker->lock);
    return idle;
}

static void worker_loop(struct worker *worker, int attach_listener)
{
    for (;;) {
        pthread_mutex_lock(&worker->lock);
        struct pollfd pfds[] = {
            {.fd = attach_listener, .events = POLLIN},
            {.fd = worker->wake, .events = POLLIN},
            {.fd = worker->qemu_fd, .events = POLLIN},
            {.fd = worker->qemu_pidfd, .events = POLLIN},
            {.fd = worker->out.mover_fd, .events = POLLIN},
        };
        bool quit = worker->quit;
        pthread_mutex_unlock(&worker->lock);
        if (quit) {
            return;
        }
        if (poll(pfds, sizeof(pfds) / sizeof(pfds[0]), WORKER_TICK_MS) < 0 && errno != EINTR) {
            log_error("poll failed: %m");
            return;
        }
        if (pfds[1].revents) {
            uint64_t n;
            ssize_t ignored = read(worker->wake, &n, sizeof(n));
            (void)ignored;
        }
        if (pfds[2].revents && pfds[2].fd == worker->qemu_fd) {
            worker_read_qemu(worker);
        }
        if (pfds[4].revents) {
            pthread_mutex_lock(&worker->lock);
            if (pfds[4].fd == worker->out.mover_fd) {
                outgoing_from_mover(worker);
            }
            pthread_mutex_unlock(&worker->lock);
        }
        if (pfds[3].revents) {
            log_info("QEMU has exited");
            return;
        }
        if (pfds[0].revents) {
            worker_accept_attach(worker, attach_listener);
        }
        worker_tick(worker);
        if (worker_idle(worker)) {
            return;
        }
    }
}

/* QEMU is gone (or never came): nothing of the guest may be left anywhere. */
static void worker_finish(struct worker *worker)
{
    worker_drop_qemu(worker);
    pthread_mutex_lock(&worker->lock);
    struct engine *engine = worker->engine;
    worker->engine = NULL;
    bool split = worker->state == WORKER_SPLIT || worker->state == WORKER_COMMITTING;
    struct receive *receive = worker->receive;
    worker->receive = NULL;
    if (worker->out.mover_pid > 0) {
        kill(worker->out.mover_pid, SIGKILL);
    }
    pthread_mutex_unlock(&worker->lock);
    if (receive) {
        receive_stop(receive);
    }
    if (engine) {
        engine_stop(engine);
    }
    if (split) {
        session_delete_regions(&worker->session, worker->uuid_text);
    }
    worker_event(worker, "GUEST_GONE", NULL);
    session_remove(worker->dir);
}

static int worker_listen(const char *dir, const char *name, struct reason *reason)
{
    struct endpoint endpoint = {.is_unix = true};

    if (snprintf(endpoint.host, sizeof(endpoint.host), "%s/%s", dir, name) > 107) {
        return reason_set(reason, -ENAMETOOLONG,
                          "the run directory's name is too long for a socket: %s", dir);
    }
    return endpoint_listen(&endpoint, reason);
}

/* The daemon that follows a dead one finds its workers by this file. */
static int worker_write_pid(const char *dir)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/worker.pid", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    dprintf(fd, "%d\n", (int)getpid());
    close(fd);
    return 0;
}

static int worker_init(struct worker *worker, const char *run_dir, const char *uuid,
                       const struct endpoint *data)
{
    pthread_mutex_init(&worker->lock, NULL);
    pthread_mutex_init(&worker->send_lock, NULL);
    pthread_mutex_init(&worker->zap_lock, NULL);
    pthread_cond_init(&worker->changed, NULL);
    pthread_cond_init(&worker->zap_done, NULL);
    worker->qemu_fd = worker->qemu_pidfd = worker->uffd = worker->pagemap = -1;
    worker->out.mover_fd = worker->out.partition_fd = -1;
    worker->data = *data;
    worker->started_us = units_now_us();
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    snprintf(worker->uuid_text, sizeof(worker->uuid_text), "%s", uuid);
    snprintf(worker->dir, sizeof(worker->dir), "%s/guests/%s", run_dir, uuid);
    return worker->wake < 0 ? -errno : units_parse_uuid(uuid, worker->uuid);
}

int worker_main(const char *run_dir, const char *uuid, const struct endpoint *data, int ready_fd)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    struct reason reason = {""};

    log_set_instance(uuid);
    signal(SIGPIPE, SIG_IGN);
    if (!worker || worker_init(worker, run_dir, uuid, data) < 0) {
        log_error("the worker could not start");
        return EXIT_FAILURE;
    }
    if (mkdir(worker->dir, 0700) < 0 && errno != EEXIST) {
        log_error("cannot make %s: %m", worker->dir);
        return EXIT_FAILURE;
    }
    worker_write_pid(worker->dir);
    int attach = worker_listen(worker->dir, "attach.sock", &reason);
    if (attach < 0 || worker_verbs_start(worker, &reason) < 0) {
        log_error("%s", reason.text);
        return EXIT_FAILURE;
    }
    if (ready_fd >= 0) {
        ssize_t ignored = write(ready_fd, "r", 1);
        (void)ignored;
        close(ready_fd);
    }
    worker_loop(worker, attach);
    worker_finish(worker);
    /* Threads of the control server may still answer; the process's end takes them. */
    return EXIT_SUCCESS;
}
