/* SPDX-License-Identifier: GPL-2.0-or-later */
/* export.h - regions as NBD exports */
#ifndef SUBHOST_SERVER_EXPORT_H
#define SUBHOST_SERVER_EXPORT_H

#include <stdbool.h>

#include "common/nbd_server.h"
#include "subhost-server/store.h"

/** export_config() - set the callbacks of an NBD server that serves @store */
void export_config(struct nbd_server_config *config, struct store *store);

/** export_is_of() - nbd_server_disconnect()'s match: does @export serve region @arg? */
bool export_is_of(void *arg, const struct nbd_export *export);

#endif
