/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ticket.h - from a region's ticket, another that only reads
 *
 * A sub-host that fetches pages from another one by itself (region-pull) has to open the guest's region there,
 * and must not be able to change it.  What it is given is made from the ticket by a hash: both who made the
 * ticket and the sub-host that keeps the region can do so, nobody can go back, and it ends with the ticket.
 */
#ifndef COMMON_TICKET_H
#define COMMON_TICKET_H

#include <stddef.h>

#define TICKET_READING_LEN 65 /* with the NUL */

/** ticket_reading() - the ticket that only reads, for @ticket of @length bytes. Return: 0 or -EIO. */
int ticket_reading(const char *ticket, size_t length, char reading[TICKET_READING_LEN]);

/**
 * ticket_export_reading() - the name by which @export_name, REGION[.TICKET], opens for reading only
 * Without a ticket it is the same name.  Return: 0, -EIO, -ENAMETOOLONG.
 */
int ticket_export_reading(const char *export_name, char *reading, size_t size);

#endif
