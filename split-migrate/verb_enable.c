// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_enable.c - make a domain fit for splitting, and back */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <stdio.h>
#include <stdlib.h>

#include "split-migrate/domain_xml.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"
#include "split-migrate/virt.h"

const struct option_def verb_enable_options[] = {
    {"emulator", 0, "PATH", "the patched QEMU (default " DOMAIN_XML_EMULATOR ")"},
    {"handoff", 0, "PATH", "where the pager takes guests over (default " DOMAIN_XML_HANDOFF ")"},
    {NULL, 0, NULL, NULL},
};

/* Define the domain anew. */
static int enable_define(virConnectPtr connect, const char *xml, struct reason *reason)
{
    virDomainPtr domain = virDomainDefineXML(connect, xml);

    if (!domain) {
        return virt_reason(reason, -EIO, "libvirt");
    }
    virDomainFree(domain);
    return 0;
}

static int enable_edit(const struct arguments *arguments, virConnectPtr connect,
                       virDomainPtr domain, bool enable, bool *changed, struct reason *reason)
{
    char *edited = NULL;

    if (virDomainIsPersistent(domain) != 1) {
        return reason_set(reason, -EINVAL,
                          "domain '%.100s' is transient: only one that is defined can be changed",
                          virDomainGetName(domain));
    }
    char *xml = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
    if (!xml) {
        return virt_reason(reason, -EIO, "libvirt");
    }
    int err;
    if (enable) {
        const char *emulator = options_get(arguments, "emulator");
        const char *handoff = options_get(arguments, "handoff");
        err = domain_xml_enable(xml, emulator ? emulator : DOMAIN_XML_EMULATOR,
                                handoff ? handoff : DOMAIN_XML_HANDOFF, &edited, reason);
    } else {
        err = domain_xml_disable(xml, &edited, reason);
    }
    free(xml);
    *changed = edited != NULL;
    if (!err && edited) {
        err = enable_define(connect, edited, reason);
    }
    free(edited);
    return err;
}

static int enable_run(const struct arguments *arguments, bool enable)
{
    virConnectPtr connect = NULL;
    virDomainPtr domain = NULL;
    struct reason reason = {""};
    bool changed = false;

    int err = virt_open(&connect, verbs_uri(arguments), "libvirt", &reason);
    if (!err) {
        err = virt_domain(connect, arguments->word[0], &domain, &reason);
    }
    if (!err) {
        err = enable_edit(arguments, connect, domain, enable, &changed, &reason);
    }
    if (err) {
        output_error("%s", reason.text);
    } else if (!arguments->quiet) {
        printf("Domain '%s' %s %s\n", virDomainGetName(domain), changed ? "is now" : "was already",
               enable ? "enabled for splitting" : "as without");
        if (changed && virDomainIsActive(domain) == 1) {
            printf("It takes effect when the domain is shut down and started again\n");
        }
    }
    if (domain) {
        virDomainFree(domain);
    }
    virt_close(connect);
    virt_events_stop();
    return err ? EXIT_UNCHANGED : EXIT_OK;
}

int verb_enable(const struct arguments *arguments)
{
    return enable_run(arguments, true);
}

int verb_disable(const struct arguments *arguments)
{
    return enable_run(arguments, false);
}
