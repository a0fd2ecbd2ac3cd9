/* SPDX-License-Identifier: GPL-2.0-or-later */
/* virt.h - connections to libvirt; only what is built with libvirt includes this */
#ifndef SPLIT_MIGRATE_VIRT_H
#define SPLIT_MIGRATE_VIRT_H

#include <libvirt/libvirt.h>

#include "common/log.h"
#include "split-migrate/driver.h"

/**
 * virt_open() - connect, with keepalive messages
 * @uri: "" for libvirt's default
 * @role: begins the sentence if it fails: "source libvirt"
 * Starts a thread that runs libvirt's event loop.  Return: 0 or -errno, @reason.
 */
int virt_open(virConnectPtr *connect, const char *uri, const char *role, struct reason *reason);

/** virt_close() - disconnect, which NULL survives */
void virt_close(virConnectPtr connect);

/** virt_events_stop() - end the event loop's thread; no callback runs afterwards */
void virt_events_stop(void);

/**
 * virt_reason() - this thread's last libvirt error as one sentence after "@role: "
 * Return: @err.
 */
int virt_reason(struct reason *reason, int err, const char *role);

/** virt_sentence() - the first line of @message after "@role: ". Return: @err. */
int virt_sentence(struct reason *reason, int err, const char *role, const char *message);

/** virt_domain() - a domain by id, name or UUID, as virsh finds it. Return: 0 or -errno, @reason.
 */
int virt_domain(virConnectPtr connect, const char *name, virDomainPtr *domain,
                struct reason *reason);

/**
 * virt_job() - a domain's job statistics
 * @domain: may be NULL
 * @flags: of virDomainGetJobStats
 * @progress: what is known is set, the phase is not
 * Return: true if there is such a job.
 */
bool virt_job(virDomainPtr domain, unsigned flags, struct driver_progress *progress);

/** virt_state() - libvirt's word for a domain's state: "running", "shut off", ... */
const char *virt_state(int state);

#endif
