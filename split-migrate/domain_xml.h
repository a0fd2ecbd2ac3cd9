/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * domain_xml.h - what a domain's XML must have to be split, and putting it there
 *
 * Theory of operation
 * -------------------
 * The guest's RAM must be memfds that another process can map (memoryBacking), the ram-pager object
 * must hand them to the host's pager (qemu:commandline), and only the patched QEMU has it
 * (emulator). What was there before is kept in the domain's own metadata, under a namespace of
 * ours, so that disabling brings it back on whatever host the domain has got to.
 */
#ifndef SPLIT_MIGRATE_DOMAIN_XML_H
#define SPLIT_MIGRATE_DOMAIN_XML_H

#include <stdbool.h>

#include "common/log.h"

#define DOMAIN_XML_EMULATOR "/usr/lib/split-migrate/bin/qemu-system-x86_64"
#define DOMAIN_XML_HANDOFF "/run/split-migrate/handoff.sock"

struct domain_fit {
    char emulator[256];
    char arch[32];
    char machine[64];
    char virt_type[16];
    char path[256];    /* the ram-pager object's; "" if there is no object */
    char device[96];   /* a device that maps guest memory from another process; "" if none */
    bool shared_memfd; /* memoryBacking is as it must be */
    bool hugepages;
    bool locked;
    bool enabled; /* by domain_xml_enable() */
};

/** domain_xml_inspect() - look. Return: 0 or -EINVAL, @reason. */
int domain_xml_inspect(const char *xml, struct domain_fit *fit, struct reason *reason);

/**
 * domain_xml_refuse() - is it fit?
 * @name: of the domain, for the sentence and the command in it
 * Return: 0, or -EOPNOTSUPP with what is missing and how to mend it in @reason.
 */
int domain_xml_refuse(const struct domain_fit *fit, const char *name, struct reason *reason);

/**
 * domain_xml_enable()/domain_xml_disable() - the edited XML, to free()
 * @emulator, @path: of the patched QEMU, and of the pager's hand-off socket
 * Return: 0 with *@edited set, which is NULL if nothing had to be changed; or -errno, @reason.
 */
int domain_xml_enable(const char *xml, const char *emulator, const char *path, char **edited,
                      struct reason *reason);
int domain_xml_disable(const char *xml, char **edited, struct reason *reason);

/**
 * domain_xml_probe() - a domain without devices that has only what a split guest needs
 * @fit: of the guest it stands for; *@xml is to be freed
 */
int domain_xml_probe(const struct domain_fit *fit, const char *name, const char *uuid, char **xml,
                     struct reason *reason);

#endif
