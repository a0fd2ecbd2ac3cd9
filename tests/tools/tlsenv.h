/* SPDX-License-Identifier: GPL-2.0-or-later */
/* tlsenv.h - the TLS identity of a test tool: TLS_CERTIFICATES, TLS_PSK, TLS_USERNAME */
#ifndef TESTS_TLSENV_H
#define TESTS_TLSENV_H

#include <stdlib.h>

#include "common/tls.h"

static inline int tls_from_environment(struct reason *reason)
{
    struct tls_config config = {.certificates = getenv("TLS_CERTIFICATES"),
                                .psk = getenv("TLS_PSK"),
                                .username = getenv("TLS_USERNAME")};

    return tls_configure(&config, reason);
}

#endif
