// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * notify.c - the datagram of sd_notify(3)
 *
 * It is one datagram in a documented format, not worth a library in a process
 * that holds guests' memory.
 */
#include "common/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int notify_service(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (!path || !*path) {
        return 0;
    }
    size_t length = strlen(path);
    if (length >= sizeof(address.sun_path) || (*path != '/' && *path != '@')) {
        return -EINVAL;
    }
    memcpy(address.sun_path, path, length);
    if (*path == '@') { /* an abstract name */
        address.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    ssize_t n = sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    int err = n < 0 ? -errno : 0;
    close(fd);
    return err;
}
