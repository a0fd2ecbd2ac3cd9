// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/units.h"

#define ENDPOINT_FORMS "expected unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"
#define ENDPOINT_BACKLOG 256

static bool refuse_exposed;

void endpoint_refuse_exposed(void)
{
    refuse_exposed = true;
}

static int endpoint_parse_port(const char *text, uint16_t *port)
{
    char *end;

    if (*text < '0' || *text > '9') {
        return -EINVAL;
    }
    unsigned long value = strtoul(text, &end, 10);
    if (*end || value > 65535) {
        return -EINVAL;
    }
    *port = (uint16_t)value;
    return 0;
}

int endpoint_parse(const char *text, struct endpoint *endpoint, struct reason *reason)
{
    memset(endpoint, 0, sizeof(*endpoint));
    if (strncmp(text, "unix:", 5) == 0) {
        size_t length = strlen(text + 5);
        if (length == 0 || length >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
            return reason_set(reason, -EINVAL, "address '%s': the path must have 1 to 107 characters",
                              text);
        }
        endpoint->is_unix = true;
        memcpy(endpoint->host, text + 5, length + 1);
        return 0;
    }
    const char *host = text + 4;
    endpoint->tls = strncmp(text, "tls:", 4) == 0;
    const char *colon =
        endpoint->tls || strncmp(text, "tcp:", 4) == 0 ? strrchr(host, ':') : NULL;
    if (!colon) {
        return reason_set(reason, -EINVAL, "address '%s' is of no known form: " ENDPOINT_FORMS, text);
    }
    size_t length = (size_t)(colon - host);
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host++;
        length -= 2;
    } else if (memchr(host, ':', length)) {
        return reason_set(reason, -EINVAL, "address '%s': an IPv6 address stands in brackets", text);
    }
    if (length >= sizeof(endpoint->host)) {
        return reason_set(reason, -EINVAL, "address '%.64s...': the host name is too long", text);
    }
    memcpy(endpoint->host, host, length);
    if (endpoint_parse_port(colon + 1, &endpoint->port) < 0) {
        return reason_set(reason, -EINVAL, "address '%s': the port must be a number from 0 to 65535",
                          text);
    }
    return 0;
}

const char *endpoint_format(const struct endpoint *endpoint, char text[ENDPOINT_TEXT_LEN])
{
    if (endpoint->is_unix) {
        snprintf(text, ENDPOINT_TEXT_LEN, "unix:%s", endpoint->host);
    } else {
        bool v6 = strchr(endpoint->host, ':') != NULL;
        snprintf(text, ENDPOINT_TEXT_LEN, "%s:%s%s%s:%u", endpoint->tls ? "tls" : "tcp",
                 v6 ? "[" : "", endpoint->host, v6 ? "]" : "", endpoint->port);
    }
    return text;
}

bool endpoint_is_local(const struct endpoint *endpoint)
{
    struct in_addr v4;
    struct in6_addr v6;

    if (endpoint->is_unix || strcmp(endpoint->host, "localhost") == 0) {
        return true;
    }
    /* A number, not a name that begins like one. */
    if (inet_pton(AF_INET, endpoint->host, &v4) == 1) {
        return ntohl(v4.s_addr) >> 24 == 127;
    }
    return inet_pton(AF_INET6, endpoint->host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

static void endpoint_unix_address(const struct endpoint *endpoint, struct sockaddr_un *address)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    snprintf(address->sun_path, sizeof(address->sun_path), "%.107s", endpoint->host);
}

/* A socket file nobody listens on is left over from a crash; one that answers is somebody's. */
static int endpoint_clear_stale(const struct sockaddr_un *address)
{
    struct stat st;

    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return 0;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    int rc = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    int err = errno;
    close(fd);
    if (rc == 0) {
        return -EADDRINUSE;
    }
    return err == ECONNREFUSED && unlink(address->sun_path) < 0 ? -errno : 0;
}

static int endpoint_listen_unix(const struct endpoint *endpoint)
{
    struct sockaddr_un address;

    endpoint_unix_address(endpoint, &address);
    int err = endpoint_clear_stale(&address);
    if (err < 0) {
        return err;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        chmod(address.sun_path, 0600) < 0 || listen(fd, ENDPOINT_BACKLOG) < 0) {
        err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

static int endpoint_listen_info(const struct addrinfo *info)
{
    int one = 1;
    int zero = 0;
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (info->ai_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    }
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, ENDPOINT_BACKLOG) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

static int endpoint_resolve(const struct endpoint *endpoint, int flags, struct addrinfo **list,
                            struct reason *reason)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    char port[8];

    snprintf(port, sizeof(port), "%u", endpoint->port);
    int rc = getaddrinfo(endpoint->host[0] ? endpoint->host : NULL, port, &hints, list);
    if (rc) {
        return reason_set(reason, -EHOSTUNREACH, "host '%s' cannot be found: %s", endpoint->host,
                          gai_strerror(rc));
    }
    return 0;
}

static uint16_t endpoint_bound_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound;
    socklen_t length = sizeof(bound);

    memset(&bound, 0, sizeof(bound));
    if (getsockname(fd, &bound.any, &length) < 0) {
        return 0;
    }
    return ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
}

int endpoint_group(const char *text, gid_t *gid, struct reason *reason)
{
    char buffer[16384]; /* a group may have many members */
    struct group group, *found = NULL;
    char *end;

    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && !errno && number < UINT32_MAX) {
        *gid = (gid_t)number;
        return 0;
    }
    getgrnam_r(text, &group, buffer, sizeof(buffer), &found);
    if (!found) {
        return reason_set(reason, -EINVAL, "there is no group '%.100s' on this host", text);
    }
    *gid = found->gr_gid;
    return 0;
}

int endpoint_share(const struct endpoint *endpoint, gid_t group, struct reason *reason)
{
    if (!endpoint->is_unix) {
        return 0;
    }
    /* The group first: until then nobody else may connect. */
    if (chown(endpoint->host, (uid_t)-1, group) < 0 || chmod(endpoint->host, 0660) < 0) {
        return reason_set(reason, -errno,
                          "%.120s cannot be given to group %u (is this process a member?): %m",
                          endpoint->host, (unsigned)group);
    }
    return 0;
}

int endpoint_listen(struct endpoint *endpoint, struct reason *reason)
{
    char text[ENDPOINT_TEXT_LEN];
    int fd;

    if (endpoint->is_unix) {
        fd = endpoint_listen_unix(endpoint);
    } else {
        struct addrinfo *list;
        int err = endpoint_resolve(endpoint, AI_PASSIVE, &list, reason);
        if (err < 0) {
            return err;
        }
        fd = -EADDRNOTAVAIL;
        for (struct addrinfo *info = list; info && fd < 0; info = info->ai_next) {
            fd = endpoint_listen_info(info);
        }
        freeaddrinfo(list);
        if (fd >= 0 && endpoint->port == 0) {
            endpoint->port = endpoint_bound_port(fd);
        }
    }
    if (fd < 0) {
        return reason_set(reason, fd, "cannot listen on %s: %s", endpoint_format(endpoint, text),
                          strerror(-fd));
    }
    return fd;
}

/* Connect with a deadline: non-blocking connect, poll, then blocking again. */
static int endpoint_connect_address(int family, const struct sockaddr *address, socklen_t length,
                                    uint64_t deadline_us)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -errno;
    }
    int err = connect(fd, address, length) < 0 ? errno : 0;
    if (err == EINPROGRESS || err == EAGAIN) {
        struct pollfd pfd = {.fd = fd, .events = POLLOUT};
        socklen_t size = sizeof(err);
        if (err == EINPROGRESS && poll(&pfd, 1, units_timeout_ms(deadline_us)) > 0) {
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size);
        } else {
            err = ETIMEDOUT;
        }
    }
    if (err) {
        close(fd);
        return -err;
    }
    int one = 1;
    if (family != AF_UNIX) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    return fd;
}

int endpoint_connect(const struct endpoint *endpoint, int timeout_ms, struct reason *reason)
{
    uint64_t deadline =
        timeout_ms < 0 ? UINT64_MAX : units_now_us() + (uint64_t)timeout_ms * 1000;
    char text[ENDPOINT_TEXT_LEN];
    int fd;

    if (refuse_exposed && endpoint_is_exposed(endpoint)) {
        return reason_set(reason, -EPERM,
                          "%.120s is on another host and has no TLS: give it as tls:HOST:PORT, or "
                          "start this program with --plaintext",
                          endpoint_format(endpoint, text));
    }
    if (endpoint->is_unix) {
        struct sockaddr_un address;
        endpoint_unix_address(endpoint, &address);
        fd = endpoint_connect_address(AF_UNIX, (struct sockaddr *)&address, sizeof(address),
                                      deadline);
    } else {
        struct addrinfo *list;
        int err = endpoint_resolve(endpoint, 0, &list, reason);
        if (err < 0) {
            return err;
        }
        fd = -EADDRNOTAVAIL;
        for (struct addrinfo *info = list; info && fd < 0; info = info->ai_next) {
            fd = endpoint_connect_address(info->ai_family, info->ai_addr, info->ai_addrlen,
                                          deadline);
        }
        freeaddrinfo(list);
    }
    if (fd < 0) {
        return reason_set(reason, fd, "cannot connect to %s: %s", endpoint_format(endpoint, text),
                          strerror(-fd));
    }
    return fd;
}

int endpoint_accept(int listener)
{
    int one = 1;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        return -errno;
    }
    /* Fails on UNIX sockets, which need it as little. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}
