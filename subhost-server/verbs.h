/* SPDX-License-Identifier: GPL-2.0-or-later */
/* verbs.h - what a controller may ask of the sub-host; docs/protocols.md is the specification */
#ifndef SUBHOST_SERVER_VERBS_H
#define SUBHOST_SERVER_VERBS_H

#include "common/control.h"
#include "subhost-server/server.h"

/** verbs_config() - set up a control server for @server, which must outlive it */
void verbs_config(struct control_config *config, struct server *server);

#endif
