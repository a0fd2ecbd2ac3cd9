// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fuzz_handoff.c - what QEMU's side of the hand-off socket may send
 *
 * The input is cut into messages: two bytes of length, one byte that says how
 * many descriptors come along, then the bytes.  They go through a real socket
 * pair (descriptors and all) into attach_read(), which must end without a
 * crash, a hang or a leaked descriptor, whatever they say.  attach.c is
 * included so that its static functions can be reached.
 */
#include "uffd-pager/attach.c" // NOLINT(bugprone-suspicious-include)

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int fuzz_memfd(void)
{
    static int memfd = -1;

    if (memfd < 0) {
        memfd = memfd_create("fuzz", MFD_CLOEXEC);
        if (memfd < 0 || ftruncate(memfd, 64 << 20) < 0) {
            abort();
        }
    }
    return memfd;
}

static void fuzz_send(int fd, const uint8_t *data, size_t size, unsigned n_fds)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++) {
            int memfd = fuzz_memfd();
            memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &memfd, sizeof(memfd));
        }
    }
    ssize_t ignored = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
}

static unsigned fuzz_open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;

    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool started;
    struct attachment *attachment = attach_new();
    struct reason reason = {""};
    int pair[2];

    if (!started) {
        log_init("fuzz", LOG_LEVEL_ERROR);
        fuzz_memfd();
        started = true;
    }
    unsigned before = fuzz_open_fds();
    if (!attachment || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        abort();
    }
    while (size >= 3) {
        size_t length = (size_t)(data[0] | data[1] << 8);
        unsigned n_fds = data[2] % 4;
        data += 3;
        size -= 3;
        length = length < size ? length : size;
        if (length) {
            fuzz_send(pair[0], data, length, n_fds);
        }
        data += length;
        size -= length;
    }
    close(pair[0]);
    attach_read(pair[1], attachment, &reason);
    attach_discard(attachment);
    free(attachment);
    close(pair[1]);
    if (fuzz_open_fds() != before) {
        abort(); /* a descriptor leaked */
    }
    return 0;
}
