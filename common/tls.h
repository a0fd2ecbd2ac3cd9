/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tls.h - TLS by GnuTLS, under a channel (channel.h)
 *
 * A process has one identity, set once: X.509 certificates in libvirt's layout,
 * or a file of pre-shared keys as psktool(1) makes it.  A server always asks for
 * a certificate (or a key), a client always checks the server's name.  The files
 * are read again for each connection, so that renewed ones are used at once.
 *
 *   --tls-certificates not given:       with it:
 *   /etc/pki/CA/cacert.pem              DIR/cacert.pem
 *   /etc/pki/libvirt/servercert.pem     DIR/servercert.pem
 *   /etc/pki/libvirt/private/serverkey.pem  DIR/serverkey.pem
 *   /etc/pki/libvirt/clientcert.pem     DIR/clientcert.pem
 *   /etc/pki/libvirt/private/clientkey.pem  DIR/clientkey.pem
 */
#ifndef COMMON_TLS_H
#define COMMON_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/log.h"

struct tls_config {
    const char *certificates; /* directory; NULL: libvirt's places */
    const char *psk;          /* file of keys; NULL: X.509 */
    const char *username;     /* whose key a client uses; NULL: the first of the file */
};

enum tls_role { TLS_SERVER, TLS_CLIENT };

/**
 * tls_configure() - set the process's identity; before other threads
 * @config: strings are copied
 * Return: 0, or -EINVAL with a sentence in @reason if it contradicts itself.
 */
int tls_configure(const struct tls_config *config, struct reason *reason);

/** tls_configured() - true if an identity was named (not only libvirt's places are left) */
bool tls_configured(void);

/** tls_check() - can the files for this role be used?  Return: 0, or -errno with @reason. */
int tls_check(enum tls_role role, struct reason *reason);

struct tls;

/** tls_start() - handshake on @fd, which is made non-blocking; see channel_secure() */
int tls_start(struct tls **tls, int fd, const char *host, uint64_t deadline_us,
              struct reason *reason);

/** tls_recv() - see channel_recv() */
ssize_t tls_recv(struct tls *tls, void *to, size_t n, bool wait);

/** tls_sendv() - see channel_sendv(); the iovecs are not changed */
ssize_t tls_sendv(struct tls *tls, const struct iovec *iov, size_t n, bool wait);

/** tls_more() - see channel_more() */
bool tls_more(const struct tls *tls);

/** tls_timeout() - for calls that wait; 0: none */
void tls_timeout(struct tls *tls, int timeout_ms);

/** tls_error() - a sentence about what broke the connection, or NULL */
const char *tls_error(const struct tls *tls);

/** tls_end() - close_notify if it can be sent at once; free; the socket stays open */
void tls_end(struct tls *tls);

#endif
