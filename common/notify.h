/* SPDX-License-Identifier: GPL-2.0-or-later */
/* notify.h - tell the service manager how we are, as sd_notify(3) describes */
#ifndef COMMON_NOTIFY_H
#define COMMON_NOTIFY_H

/**
 * notify_service() - send one datagram to the socket that NOTIFY_SOCKET names
 * @state: lines such as "READY=1\nSTATUS=2 guests" or "STOPPING=1"
 *
 * Return: 0, also without NOTIFY_SOCKET: then nobody waits for it; -errno if it was not delivered.
 */
int notify_service(const char *state);

#endif
