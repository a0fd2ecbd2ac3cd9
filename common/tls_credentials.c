// SPDX-License-Identifier: GPL-2.0-or-later
/* tls_credentials.c - the files of the process's identity */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/tls_internal.h"

#define TLS_PATH 512
#define TLS_USERNAME 128
#define TLS_VERSIONS "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
/* Without other key exchanges: a server that shows a certificate instead of the key is refused. */
#define TLS_PSK TLS_VERSIONS ":-KX-ALL:+ECDHE-PSK:+DHE-PSK"

static struct {
    char certificates[TLS_PATH];
    char psk[TLS_PATH];
    char username[TLS_USERNAME];
} identity;

static int identity_set(char *to, size_t size, const char *what, const char *value,
                        struct reason *reason)
{
    to[0] = '\0';
    if (value && (!*value || strlen(value) >= size)) {
        return reason_set(reason, -EINVAL, "%s must have 1 to %zu characters", what, size - 1);
    }
    if (value) {
        memcpy(to, value, strlen(value) + 1);
    }
    return 0;
}

int tls_configure(const struct tls_config *config, struct reason *reason)
{
    if (config->certificates && config->psk) {
        return reason_set(reason, -EINVAL,
                          "tls-certificates and tls-psk exclude each other: a program has one "
                          "identity");
    }
    if (config->username && !config->psk) {
        return reason_set(reason, -EINVAL, "tls-username goes with tls-psk, whose key it chooses");
    }
    int err = identity_set(identity.certificates, sizeof(identity.certificates), "tls-certificates",
                           config->certificates, reason);
    if (!err) {
        err = identity_set(identity.psk, sizeof(identity.psk), "tls-psk", config->psk, reason);
    }
    if (!err) {
        err = identity_set(identity.username, sizeof(identity.username), "tls-username",
                           config->username, reason);
    }
    return err;
}

bool tls_configured(void)
{
    return identity.certificates[0] || identity.psk[0];
}

int tls_check(enum tls_role role, struct reason *reason)
{
    struct tls_credentials credentials;
    int err = tls_credentials_load(&credentials, role, reason);

    if (!err) {
        tls_credentials_free(&credentials);
    }
    return err;
}

/* ---- X.509 ---- */

static void x509_path(char path[TLS_PATH + 32], const char *place, const char *name)
{
    if (identity.certificates[0]) {
        snprintf(path, TLS_PATH + 32, "%s/%s", identity.certificates, name);
    } else {
        snprintf(path, TLS_PATH + 32, "/etc/pki/%s/%s", place, name);
    }
}

static int x509_trust(gnutls_certificate_credentials_t certificate, struct reason *reason)
{
    char path[TLS_PATH + 32];

    x509_path(path, "CA", "cacert.pem");
    if (access(path, R_OK) < 0) {
        return reason_set(reason, -errno, "TLS needs %.150s: %s", path, strerror(errno));
    }
    int n = gnutls_certificate_set_x509_trust_file(certificate, path, GNUTLS_X509_FMT_PEM);
    if (n <= 0) {
        return reason_set(reason, -EINVAL, "%.150s holds no certificate of an authority: %s", path,
                          n < 0 ? gnutls_strerror(n) : "it is empty");
    }
    return 0;
}

static int x509_own(gnutls_certificate_credentials_t certificate, enum tls_role role,
                    struct reason *reason)
{
    char certificate_path[TLS_PATH + 32];
    char key_path[TLS_PATH + 32];
    bool server = role == TLS_SERVER;

    x509_path(certificate_path, "libvirt", server ? "servercert.pem" : "clientcert.pem");
    x509_path(key_path, "libvirt/private", server ? "serverkey.pem" : "clientkey.pem");
    /* A client may have none: it is the server who says whether it wants one. */
    if (!server && access(certificate_path, F_OK) < 0) {
        return 0;
    }
    const char *missing = access(certificate_path, R_OK) < 0 ? certificate_path
                          : access(key_path, R_OK) < 0       ? key_path
                                                             : NULL;
    if (missing) {
        return reason_set(reason, -errno, "TLS needs %.150s: %s", missing, strerror(errno));
    }
    int rc = gnutls_certificate_set_x509_key_file(certificate, certificate_path, key_path,
                                                  GNUTLS_X509_FMT_PEM);
    if (rc < 0) {
        return reason_set(reason, -EINVAL, "%.100s and %.100s cannot be used: %.50s",
                          certificate_path, key_path, gnutls_strerror(rc));
    }
    return 0;
}

/* ---- PSK ---- */

/* The line of the wanted user, "name:hexadecimal key". Return: the key, or NULL. */
static char *psk_key(char *line)
{
    char *colon = strchr(line, ':');
    size_t wanted = strlen(identity.username);

    line[strcspn(line, "\r\n")] = '\0';
    if (*line == '#' || !colon || colon == line) {
        return NULL;
    }
    if (wanted &&
        ((size_t)(colon - line) != wanted || memcmp(line, identity.username, wanted) != 0)) {
        return NULL;
    }
    *colon = '\0';
    return colon + 1;
}

static int psk_client(struct tls_credentials *credentials, struct reason *reason)
{
    char line[1024];
    char *key = NULL;
    FILE *file = fopen(identity.psk, "re");

    if (!file) {
        return reason_set(reason, -errno, "TLS needs the keys in %.150s: %s", identity.psk,
                          strerror(errno));
    }
    while (!key && fgets(line, sizeof(line), file)) {
        key = psk_key(line);
    }
    fclose(file);
    if (!key) {
        return reason_set(reason, -EINVAL, "%.120s holds no key of user '%.60s'", identity.psk,
                          identity.username);
    }
    gnutls_datum_t datum = {.data = (unsigned char *)key, .size = (unsigned)strlen(key)};
    int rc = gnutls_psk_allocate_client_credentials(&credentials->psk_client);
    if (rc >= 0) {
        rc = gnutls_psk_set_client_credentials(credentials->psk_client, line, &datum,
                                               GNUTLS_PSK_KEY_HEX);
    }
    explicit_bzero(line, sizeof(line));
    return rc < 0 ? reason_set(reason, -EINVAL, "%.150s: the key cannot be used: %.60s",
                               identity.psk, gnutls_strerror(rc))
                  : 0;
}

static int psk_server(struct tls_credentials *credentials, struct reason *reason)
{
    if (access(identity.psk, R_OK) < 0) {
        return reason_set(reason, -errno, "TLS needs the keys in %.150s: %s", identity.psk,
                          strerror(errno));
    }
    int rc = gnutls_psk_allocate_server_credentials(&credentials->psk_server);
    if (rc >= 0) {
        rc = gnutls_psk_set_server_credentials_file(credentials->psk_server, identity.psk);
    }
    return rc < 0 ? reason_set(reason, -EINVAL, "%.150s cannot be used: %.60s", identity.psk,
                               gnutls_strerror(rc))
                  : 0;
}

/* ---- both ---- */

int tls_credentials_load(struct tls_credentials *credentials, enum tls_role role,
                         struct reason *reason)
{
    int err;

    memset(credentials, 0, sizeof(*credentials));
    if (identity.psk[0]) {
        err = role == TLS_SERVER ? psk_server(credentials, reason)
                                 : psk_client(credentials, reason);
    } else if (gnutls_certificate_allocate_credentials(&credentials->certificate) < 0) {
        err = reason_set(reason, -ENOMEM, "there is no memory for TLS");
    } else {
        err = x509_trust(credentials->certificate, reason);
        if (!err) {
            err = x509_own(credentials->certificate, role, reason);
        }
    }
    if (err) {
        tls_credentials_free(credentials);
    }
    return err;
}

int tls_credentials_set(const struct tls_credentials *credentials, gnutls_session_t session)
{
    int rc = gnutls_priority_set_direct(session, credentials->certificate ? TLS_VERSIONS : TLS_PSK,
                                        NULL);

    if (rc < 0) {
        return rc;
    }
    if (credentials->certificate) {
        return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->certificate);
    }
    return gnutls_credentials_set(session, GNUTLS_CRD_PSK,
                                  credentials->psk_server ? (void *)credentials->psk_server
                                                          : (void *)credentials->psk_client);
}

void tls_credentials_free(struct tls_credentials *credentials)
{
    if (credentials->certificate) {
        gnutls_certificate_free_credentials(credentials->certificate);
    }
    if (credentials->psk_server) {
        gnutls_psk_free_server_credentials(credentials->psk_server);
    }
    if (credentials->psk_client) {
        gnutls_psk_free_client_credentials(credentials->psk_client);
    }
    memset(credentials, 0, sizeof(*credentials));
}
