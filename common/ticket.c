// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/ticket.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <gnutls/crypto.h>

#define TICKET_PURPOSE "read only:"

int ticket_reading(const char *ticket, size_t length, char reading[TICKET_READING_LEN])
{
    uint8_t hash[(TICKET_READING_LEN - 1) / 2];
    gnutls_hash_hd_t state;

    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) < 0) {
        return -EIO;
    }
    int err = gnutls_hash(state, TICKET_PURPOSE, strlen(TICKET_PURPOSE));
    err = err ? err : gnutls_hash(state, ticket, length);
    gnutls_hash_deinit(state, hash);
    for (size_t i = 0; i < sizeof(hash); i++) {
        snprintf(reading + 2 * i, 3, "%02x", hash[i]);
    }
    return err ? -EIO : 0;
}

int ticket_export_reading(const char *export_name, char *reading, size_t size)
{
    const char *dot = strchr(export_name, '.');
    char ticket[TICKET_READING_LEN] = "";

    int err = dot ? ticket_reading(dot + 1, strlen(dot + 1), ticket) : 0;
    int n = snprintf(reading, size, "%.*s%s", dot ? (int)(dot + 1 - export_name) : (int)size, export_name, ticket);
    return err ? err : (size_t)n >= size ? -ENAMETOOLONG : 0;
}
