// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <unistd.h>

#include "split-migrate/names.h"
#include "split-migrate/virt.h"

json_t *names_load(const char *uri)
{
    json_t *names = json_object();
    virConnectPtr connect = NULL;
    virDomainPtr *domains = NULL;

    /* The default of an ordinary user is a libvirt of their own, which would be started for this. */
    if (!uri[0] && geteuid() != 0) {
        return names;
    }
    int n = virt_open(&connect, uri, "libvirt", NULL)
                ? 0
                : virConnectListAllDomains(connect, &domains, 0);
    for (int i = 0; i < n; i++) {
        char uuid[VIR_UUID_STRING_BUFLEN] = "";
        virDomainGetUUIDString(domains[i], uuid);
        json_object_set_new(names, uuid, json_string(virDomainGetName(domains[i])));
        virDomainFree(domains[i]);
    }
    free(domains);
    virt_close(connect);
    return names;
}
