/* SPDX-License-Identifier: GPL-2.0-or-later */
/* tls_internal.h - what tls.c and tls_credentials.c share */
#ifndef COMMON_TLS_INTERNAL_H
#define COMMON_TLS_INTERNAL_H

#include <gnutls/gnutls.h>

#include "common/tls.h"

/* What a session proves its identity with; one of the three is set. */
struct tls_credentials {
    gnutls_certificate_credentials_t certificate;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
};

/** tls_credentials_load() - read the process's identity. Return: 0, or -errno with @reason. */
int tls_credentials_load(struct tls_credentials *credentials, enum tls_role role,
                         struct reason *reason);

/** tls_credentials_set() - give them, and what ciphers go with them, to a session. Return: 0 or GnuTLS's. */
int tls_credentials_set(const struct tls_credentials *credentials, gnutls_session_t session);

void tls_credentials_free(struct tls_credentials *credentials);

#endif
