// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tls.c - sessions: handshake, records in and out
 *
 * GnuTLS reads a record's head and body with two system calls and writes each
 * record with one.  A page is smaller than a record and a batch is many, so
 * both ways go through buffers of ours: records are made until a batch is
 * encrypted, then go out in one send; a receive takes what the socket has.
 * Writing into the buffer never fails, so GnuTLS never is in the middle of a
 * record when it returns; that the socket is full is our affair alone.
 *
 * The lock is held for each call of GnuTLS and never while waiting: one thread
 * may wait for bytes while another sends.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <gnutls/x509.h>

#include "common/tls_internal.h"
#include "common/units.h"

#define TLS_IN_BYTES (128u << 10)
#define TLS_BATCH_BYTES (128u << 10) /* plaintext that is encrypted before anything is sent */
#define TLS_OUT_BYTES (TLS_BATCH_BYTES + (32u << 10)) /* with the records' heads and MACs, and alerts */
#define TLS_HANDSHAKE_US 10000000u
#define TLS_LOG_INTERVAL_US 1000000u

struct tls {
    gnutls_session_t session;
    struct tls_credentials credentials;
    pthread_mutex_t lock;
    int fd;
    int timeout_ms; /* 0: none */
    _Atomic bool more; /* more may be in our buffers */
    bool dry;       /* the socket had nothing more */
    size_t taken;   /* plaintext of out that was not counted as sent yet */
    size_t in_at, in_have;
    size_t out_at, out_have;
    struct reason why; /* what broke it */
    char host[256];
    gnutls_typed_vdata_st expect[2];
    uint8_t in[TLS_IN_BYTES];
    uint8_t out[TLS_OUT_BYTES];
};

/* ---- GnuTLS's socket ---- */

static ssize_t tls_pull(gnutls_transport_ptr_t opaque, void *to, size_t n)
{
    struct tls *tls = opaque;

    if (tls->in_at == tls->in_have) {
        ssize_t got;
        do {
            got = recv(tls->fd, tls->in, sizeof(tls->in), MSG_DONTWAIT);
        } while (got < 0 && errno == EINTR);
        if (got <= 0) {
            tls->dry = got < 0 && errno == EAGAIN;
            gnutls_transport_set_errno(tls->session, got < 0 ? errno : 0);
            return got;
        }
        tls->in_at = 0;
        tls->in_have = (size_t)got;
    }
    size_t part = tls->in_have - tls->in_at < n ? tls->in_have - tls->in_at : n;
    memcpy(to, tls->in + tls->in_at, part);
    tls->in_at += part;
    return (ssize_t)part;
}

/* GnuTLS asks before it reads in a handshake; we wait ourselves. */
static int tls_pull_timeout(gnutls_transport_ptr_t opaque, unsigned ms)
{
    (void)opaque;
    (void)ms;
    return 1;
}

static ssize_t tls_push(gnutls_transport_ptr_t opaque, const void *from, size_t n)
{
    struct tls *tls = opaque;

    if (n > sizeof(tls->out) - tls->out_have) {
        gnutls_transport_set_errno(tls->session, ENOBUFS); /* answers to a flood of alerts */
        return -1;
    }
    memcpy(tls->out + tls->out_have, from, n);
    tls->out_have += n;
    return (ssize_t)n;
}

/* Send what is encrypted. Lock held. Return: 0, -EAGAIN, -errno. */
static int tls_flush(struct tls *tls)
{
    while (tls->out_at < tls->out_have) {
        ssize_t sent = send(tls->fd, tls->out + tls->out_at, tls->out_have - tls->out_at,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0) {
            return -errno;
        }
        tls->out_at += (size_t)sent;
    }
    tls->out_at = tls->out_have = 0;
    return 0;
}

static int tls_wait(const struct tls *tls, short events, uint64_t deadline_us)
{
    struct pollfd pfd = {.fd = tls->fd, .events = events};

    for (;;) {
        int n = poll(&pfd, 1, units_timeout_ms(deadline_us));
        if (n > 0) {
            return 0;
        }
        if (n == 0) {
            return -EAGAIN;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

static uint64_t tls_deadline(const struct tls *tls)
{
    return tls->timeout_ms ? units_now_us() + (uint64_t)tls->timeout_ms * 1000 : UINT64_MAX;
}

/* ---- what went wrong ---- */

static int tls_failed(struct tls *tls, int rc, struct reason *reason)
{
    gnutls_datum_t text = {NULL, 0};
    int err = rc == GNUTLS_E_PREMATURE_TERMINATION || rc == GNUTLS_E_PULL_ERROR ||
                      rc == GNUTLS_E_PUSH_ERROR
                  ? -ECONNRESET
                  : -EPROTO;

    if (rc == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR) {
        unsigned status = gnutls_session_get_verify_cert_status(tls->session);
        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
        reason_set(reason, 0, "the peer's certificate is refused: %.170s",
                   text.data ? (const char *)text.data : "it cannot be verified");
        gnutls_free(text.data);
        return -EACCES;
    }
    if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        const char *alert = gnutls_alert_get_name(gnutls_alert_get(tls->session));
        return reason_set(reason, -EACCES, "the peer refuses our TLS: %s",
                          alert ? alert : "it does not say why");
    }
    if (rc == GNUTLS_E_NO_CERTIFICATE_FOUND || rc == GNUTLS_E_CERTIFICATE_REQUIRED) {
        return reason_set(reason, -EACCES, "the peer shows no certificate");
    }
    return reason_set(reason, err, "TLS: %s", gnutls_strerror(rc));
}

static bool tls_again(int rc)
{
    return rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED;
}

/* ---- handshake ---- */

static int tls_handshake(struct tls *tls, uint64_t deadline_us, struct reason *reason)
{
    for (;;) {
        int rc = gnutls_handshake(tls->session);
        if (rc < 0 && gnutls_error_is_fatal(rc)) {
            gnutls_alert_send_appropriate(tls->session, rc);
        }
        int err = tls_flush(tls);
        while (err == -EAGAIN && !(err = tls_wait(tls, POLLOUT, deadline_us))) {
            err = tls_flush(tls);
        }
        if (rc < 0 && gnutls_error_is_fatal(rc)) {
            return tls_failed(tls, rc, reason);
        }
        if (!err && rc == GNUTLS_E_SUCCESS) {
            atomic_store(&tls->more, true); /* what came with the handshake's end */
            return 0;
        }
        if (!err && tls_again(rc) && tls->in_at == tls->in_have) {
            err = tls_wait(tls, POLLIN, deadline_us);
        }
        if (!err && units_now_us() >= deadline_us) {
            err = -EAGAIN; /* a peer that talks, and never comes to the end */
        }
        if (err) {
            return err == -EAGAIN
                       ? reason_set(reason, -ETIMEDOUT, "the TLS handshake took too long")
                       : reason_set(reason, err, "the TLS handshake failed: %s", strerror(-err));
        }
    }
}

/* Whose certificate we want: one of this host, or any client's that our authority signed. */
static void tls_expect(struct tls *tls, const char *host)
{
    static unsigned char server[] = GNUTLS_KP_TLS_WWW_SERVER;
    static unsigned char client[] = GNUTLS_KP_TLS_WWW_CLIENT;
    unsigned n = 0;

    if (host) {
        snprintf(tls->host, sizeof(tls->host), "%s", host);
        tls->expect[n++] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_DNS_HOSTNAME,
                                                   .data = (unsigned char *)tls->host};
    } else {
        gnutls_certificate_server_set_request(tls->session, GNUTLS_CERT_REQUIRE);
    }
    tls->expect[n++] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                               .data = host ? server : client};
    gnutls_session_set_verify_cert2(tls->session, tls->expect, n, 0);
}

/* Return: NULL with *err and @reason. */
static struct tls *tls_new(int fd, const char *host, int *err, struct reason *reason)
{
    enum tls_role role = host ? TLS_CLIENT : TLS_SERVER;
    struct tls *tls = malloc(sizeof(*tls));

    if (!tls) {
        *err = reason_set(reason, -ENOMEM, "there is no memory for TLS");
        return NULL;
    }
    memset(tls, 0, offsetof(struct tls, in));
    tls->fd = fd;
    *err = tls_credentials_load(&tls->credentials, role, reason);
    if (*err) {
        free(tls);
        return NULL;
    }
    pthread_mutex_init(&tls->lock, NULL);
    int rc = gnutls_init(&tls->session, GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS | GNUTLS_NO_SIGNAL |
                                            (host ? GNUTLS_CLIENT : GNUTLS_SERVER));
    if (rc >= 0) {
        rc = tls_credentials_set(&tls->credentials, tls->session);
    }
    if (rc < 0) {
        tls_end(tls);
        *err = reason_set(reason, -EINVAL, "TLS: %s", gnutls_strerror(rc));
        return NULL;
    }
    if (tls->credentials.certificate) {
        tls_expect(tls, host);
    }
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, tls_pull);
    gnutls_transport_set_pull_timeout_function(tls->session, tls_pull_timeout);
    gnutls_transport_set_push_function(tls->session, tls_push);
    gnutls_handshake_set_timeout(tls->session, 0); /* tls_handshake() watches the time */
    return tls;
}

/* An operator looks on the server for what is wrong; whoever knocks must not fill the log. */
static void tls_log_refusal(const char *why)
{
    static _Atomic uint64_t next_us;
    uint64_t now = units_now_us();

    if (now >= atomic_load(&next_us)) {
        atomic_store(&next_us, now + TLS_LOG_INTERVAL_US);
        log_warn("a connection was refused: %s", why);
    }
}

int tls_start(struct tls **out, int fd, const char *host, uint64_t deadline_us,
              struct reason *reason)
{
    uint64_t latest = units_now_us() + TLS_HANDSHAKE_US;
    struct reason why = {""};
    int err = 0;
    struct tls *tls = tls_new(fd, host, &err, &why);

    *out = NULL;
    if (tls && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
        err = reason_set(&why, -errno, "TLS: %s", strerror(errno));
    }
    if (tls && !err) {
        err = tls_handshake(tls, deadline_us < latest ? deadline_us : latest, &why);
    }
    if (err) {
        if (tls) {
            tls_end(tls);
        }
        if (!host) {
            tls_log_refusal(why.text);
        }
        return reason_set(reason, err, "%s", why.text);
    }
    *out = tls;
    return 0;
}

/* ---- bytes ---- */

/* Lock held. Return: bytes, 0 at the end, -EAGAIN if there is nothing, -errno. */
static ssize_t tls_recv_record(struct tls *tls, uint8_t *to, size_t n)
{
    for (;;) {
        tls->dry = false;
        ssize_t got = gnutls_record_recv(tls->session, to, n);
        if (got >= 0) {
            return got;
        }
        if (tls_again((int)got)) {
            if (tls->dry) {
                return -EAGAIN;
            }
        } else if (gnutls_error_is_fatal((int)got)) {
            return tls->why.text[0] ? -ECONNRESET : tls_failed(tls, (int)got, &tls->why);
        }
        /* else a record that was not data: look at the next one */
    }
}

ssize_t tls_recv(struct tls *tls, void *to, size_t n, bool wait)
{
    uint64_t deadline = wait ? tls_deadline(tls) : 0;
    uint8_t *p = to;
    size_t have = 0;

    for (;;) {
        ssize_t got;
        pthread_mutex_lock(&tls->lock);
        do {
            got = tls_recv_record(tls, p + have, n - have);
            have += got > 0 ? (size_t)got : 0;
        } while (got > 0 && have < n);
        atomic_store_explicit(&tls->more, have == n, memory_order_relaxed);
        if (tls->out_have) {
            tls_flush(tls); /* an answer to a key update; if the socket is full, it goes later */
        }
        pthread_mutex_unlock(&tls->lock);
        if (have || got != -EAGAIN || !wait) {
            return have ? (ssize_t)have : got;
        }
        int err = tls_wait(tls, POLLIN, deadline);
        if (err) {
            return err;
        }
    }
}

/* Make records of at most a batch. Lock held. Return: bytes, or -errno. */
static ssize_t tls_encrypt(struct tls *tls, const struct iovec *iov, size_t n)
{
    size_t taken = 0;

    gnutls_record_cork(tls->session);
    for (size_t i = 0; i < n && taken < TLS_BATCH_BYTES; i++) {
        size_t part = iov[i].iov_len;
        part = part < TLS_BATCH_BYTES - taken ? part : TLS_BATCH_BYTES - taken;
        ssize_t rc = part ? gnutls_record_send(tls->session, iov[i].iov_base, part) : 0;
        if (rc < 0) {
            return tls_failed(tls, (int)rc, &tls->why);
        }
        taken += part;
    }
    int rc = gnutls_record_uncork(tls->session, 0);
    return rc < 0 ? tls_failed(tls, rc, &tls->why) : (ssize_t)taken;
}

ssize_t tls_sendv(struct tls *tls, const struct iovec *iov, size_t n, bool wait)
{
    uint64_t deadline = wait ? tls_deadline(tls) : 0;
    ssize_t result;

    for (;;) {
        pthread_mutex_lock(&tls->lock);
        int err = tls_flush(tls);
        if (!err && !tls->taken) {
            result = tls_encrypt(tls, iov, n);
            tls->taken = result > 0 ? (size_t)result : 0;
            err = result < 0 ? (int)result : tls_flush(tls);
        }
        if (!err) {
            result = (ssize_t)tls->taken;
            tls->taken = 0;
        } else {
            result = err;
        }
        pthread_mutex_unlock(&tls->lock);
        if (result != -EAGAIN || !wait) {
            return result;
        }
        err = tls_wait(tls, POLLOUT, deadline);
        if (err) {
            return err;
        }
    }
}

bool tls_more(const struct tls *tls)
{
    return atomic_load_explicit(&tls->more, memory_order_relaxed);
}

void tls_timeout(struct tls *tls, int timeout_ms)
{
    tls->timeout_ms = timeout_ms;
}

const char *tls_error(const struct tls *tls)
{
    return tls->why.text[0] ? tls->why.text : NULL;
}

void tls_end(struct tls *tls)
{
    if (tls->session) {
        gnutls_bye(tls->session, GNUTLS_SHUT_WR);
        tls_flush(tls);
        gnutls_deinit(tls->session);
    }
    tls_credentials_free(&tls->credentials);
    pthread_mutex_destroy(&tls->lock);
    free(tls);
}
