/* SPDX-License-Identifier: GPL-2.0-or-later */
/* names.h - what libvirt calls the guests that a pager knows by their UUIDs */
#ifndef SPLIT_MIGRATE_NAMES_H
#define SPLIT_MIGRATE_NAMES_H

#include <jansson.h>

/**
 * names_load() - the domains of a libvirt
 * @uri: "" for libvirt's default
 * Return: a new object {UUID: name}; empty without libvirt or if it does not answer.
 */
json_t *names_load(const char *uri);

/** names_find() - the name of @uuid, or @uuid */
const char *names_find(const json_t *names, const char *uuid);

#endif
