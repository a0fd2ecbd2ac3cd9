// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_check.c - what is missing, item by item, before a domain can be split */
#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/libvirt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/version.h"
#include "split-migrate/domain_xml.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"
#include "split-migrate/virt.h"

#define CHECK_ATTACH_US 5000000u
#define CHECK_STEP_US 50000

const struct option_def verb_check_options[] = {
    {"policy", 0, "FILE", "look at the sub-hosts of this policy, too"},
    {"pager", 0, "ADDR", "the pager of the host the domain is on"},
    {"dest-pager", 0, "ADDR", "the pager of the main host"},
    {"json", 0, NULL, "print a JSON array of the items"},
    {NULL, 0, NULL, NULL},
};

struct check {
    struct output_table table;
    json_t *list;
    unsigned missing;
    const char *host; /* of the items that follow */
    char name[128];   /* the domain's */
    char uuid[UUID_TEXT_LEN];
    bool active;
    struct domain_fit fit;
};

/* One item; @mend: a command or a deed, for an item that is not as it must be. */
static void check_item(struct check *check, const char *item, bool ok, const char *detail,
                       const char *mend)
{
    unsigned row = output_table_row(&check->table);

    output_cell(&check->table, row, 0, "%s", check->host);
    output_cell(&check->table, row, 1, "%s", item);
    output_cell(&check->table, row, 2, "%s", ok ? "ok" : "missing");
    output_cell(&check->table, row, 3, "%s", detail);
    json_array_append_new(check->list,
                          json_pack("{s:s, s:s, s:b, s:s, s:s}", "host", check->host, "item", item,
                                    "ok", ok, "detail", detail, "mend", ok ? "" : mend));
    check->missing += !ok;
}

/* ---- what both hosts must have ---- */

static bool check_pager(struct check *check, struct pager *pager, const struct endpoint *endpoint)
{
    struct reason reason = {""};
    char text[ENDPOINT_TEXT_LEN];
    char detail[REASON_LEN];
    char free_text[32];
    json_t *status = NULL;

    int err = pager_open(pager, "pager", endpoint, &reason);
    if (!err) {
        err = pager_call(pager, "query-status", NULL, &status, HOSTS_CALL_MS, &reason);
    }
    if (err) {
        check_item(check, "pager", false, reason.text,
                   endpoint->is_unix ? "systemctl start uffd-pager on that host"
                                     : "give it --control in /etc/default/uffd-pager on that host, "
                                       "or name it by --pager or --dest-pager");
        pager_close(pager);
        return false;
    }
    const char *version = json_string_value(json_object_get(status, "version"));
    bool same = version && strcmp(version, SPLIT_MIGRATE_VERSION) == 0;
    snprintf(
        detail, sizeof(detail), "%.100s, version %.32s, %s available",
        endpoint_format(endpoint, text), version ? version : "not known",
        units_format_size(hosts_bytes(status, "memory_available"), free_text, sizeof(free_text)));
    check_item(check, "pager", same, detail,
               "install the uffd-pager of version " SPLIT_MIGRATE_VERSION " there");
    json_decref(status);
    if (endpoint->is_unix) {
        bool there = access("/dev/userfaultfd", R_OK | W_OK) == 0;
        check_item(check, "userfaultfd", there,
                   there ? "/dev/userfaultfd" : "/dev/userfaultfd cannot be opened",
                   "run a kernel with CONFIG_USERFAULTFD, 6.1 or later");
    }
    return true;
}

static void check_emulator(struct check *check, virConnectPtr connect)
{
    const struct domain_fit *fit = &check->fit;
    struct reason reason = {""};

    char *xml = virConnectGetDomainCapabilities(connect, fit->emulator, fit->arch, fit->machine,
                                                fit->virt_type, 0);
    if (!xml) {
        virt_reason(&reason, -ENOENT, fit->emulator);
    }
    check_item(check, "emulator", xml != NULL, xml ? fit->emulator : reason.text,
               "install the patched QEMU there, under the same path");
    free(xml);
}

/* Wait until the pager has a guest from its QEMU. */
static bool check_attached(struct pager *pager, const char *uuid, struct reason *reason)
{
    uint64_t deadline = units_now_us() + CHECK_ATTACH_US;

    for (;;) {
        int err;
        json_t *guest = pager_guest(pager, uuid, &err, reason);
        bool connected = json_is_true(json_object_get(guest, "connected"));
        json_decref(guest);
        if (connected) {
            return true;
        }
        if (err != 0 && err != -ENOENT) {
            return false;
        }
        if (units_now_us() > deadline) {
            reason_set(reason, -ENOENT, "the pager does not get it from QEMU");
            return false;
        }
        usleep(CHECK_STEP_US);
    }
}

/* ---- the source ---- */

static void check_form(struct check *check, const char *which)
{
    const struct domain_fit *fit = &check->fit;
    char item[64];
    char mend[192];
    char detail[REASON_LEN];

    snprintf(mend, sizeof(mend), "split-migrate enable %.100s%s", check->name,
             strcmp(which, "running") == 0 ? ", and shut it down and start it" : "");
    snprintf(item, sizeof(item), "backing, %s", which);
    check_item(check, item, fit->shared_memfd,
               fit->shared_memfd ? "shared memfd" : "not a shared memfd", mend);
    snprintf(item, sizeof(item), "object, %s", which);
    snprintf(detail, sizeof(detail), "ram-pager at %.200s", fit->path);
    check_item(check, item, fit->path[0], fit->path[0] ? detail : "no ram-pager object", mend);
}

static void check_kind(struct check *check)
{
    const struct domain_fit *fit = &check->fit;

    check_item(check, "page size", !fit->hugepages && !fit->locked,
               fit->hugepages ? "hugepages" : (fit->locked ? "locked memory" : "4 KiB"),
               "virsh edit: take <hugepages/> and <locked/> out of memoryBacking");
    check_item(check, "devices", !fit->device[0],
               fit->device[0] ? fit->device : "none maps guest memory itself",
               "virsh edit: take it out, or use another kind of device");
}

/* Does the QEMU that runs know the object's type? */
static void check_introspect(struct check *check, virDomainPtr domain)
{
    static const char ask[] = "{\"execute\":\"qom-list-types\","
                              "\"arguments\":{\"implements\":\"ram-pager\"}}";
    struct reason reason = {""};
    char *answer = NULL;
    bool has = false;

    if (virDomainQemuMonitorCommand(domain, ask, &answer, 0) < 0) {
        virt_reason(&reason, -EIO, "QEMU");
    } else {
        has = strstr(answer, "\"ram-pager\"") != NULL;
        free(answer);
    }
    check_item(check, "patched QEMU", has,
               has ? "knows ram-pager" : (reason.text[0] ? reason.text : "knows no ram-pager"),
               "split-migrate enable --emulator=PATH, and shut it down and start it");
}

static int check_inspect(struct check *check, virDomainPtr domain, unsigned flags,
                         struct reason *reason)
{
    char *xml = virDomainGetXMLDesc(domain, flags);

    if (!xml) {
        return virt_reason(reason, -EIO, "libvirt");
    }
    int err = domain_xml_inspect(xml, &check->fit, reason);
    free(xml);
    return err;
}

/* Return: 0, or -errno if nothing more can be looked at. */
static int check_source(struct check *check, const struct target *target, struct reason *reason)
{
    virConnectPtr connect = NULL;
    virDomainPtr domain = NULL;
    struct pager pager = {0};
    int state = 0;

    check->host = "source";
    int err = virt_open(&connect, target->uri, "source libvirt", reason);
    if (!err) {
        err = virt_domain(connect, target->domain, &domain, reason);
    }
    if (!err && virDomainGetUUIDString(domain, check->uuid) < 0) {
        err = virt_reason(reason, -EIO, "source libvirt");
    }
    if (err) {
        virt_close(connect);
        return err;
    }
    snprintf(check->name, sizeof(check->name), "%s", virDomainGetName(domain));
    virDomainGetState(domain, &state, NULL, 0);
    check->active = virDomainIsActive(domain) == 1;
    check_item(check, "domain", true, virt_state(state), "");
    if (virDomainIsPersistent(domain) == 1) {
        err = check_inspect(check, domain, VIR_DOMAIN_XML_INACTIVE, reason);
        if (!err) {
            check_form(check, "defined");
        }
    }
    if (!err && check->active) {
        err = check_inspect(check, domain, 0, reason);
        if (!err) {
            check_form(check, "running");
        }
    }
    if (!err) {
        check_kind(check);
        check_emulator(check, connect);
    }
    if (!err && check->active) {
        check_introspect(check, domain);
    }
    if (!err && check_pager(check, &pager, &target->pager) && check->active) {
        bool attached = check_attached(&pager, check->uuid, reason);
        check_item(check, "hand-over", attached,
                   attached ? "the pager has the guest" : reason->text,
                   "split-migrate enable, with the pager's hand-off socket as --handoff");
    }
    pager_close(&pager);
    virDomainFree(domain);
    virt_close(connect);
    return err;
}

/* ---- the destination ---- */

/* A paused domain without devices shows that QEMU starts there and hands its memory over. */
static void check_probe(struct check *check, virConnectPtr connect, struct pager *pager)
{
    struct reason reason = {""};
    char uuid[UUID_TEXT_LEN];
    char name[64];
    uint8_t random[16];
    char *xml = NULL;

    units_random(random, sizeof(random));
    units_format_uuid(random, uuid);
    snprintf(name, sizeof(name), "split-migrate-check-%.8s", uuid);
    int err = domain_xml_probe(&check->fit, name, uuid, &xml, &reason);
    virDomainPtr domain = NULL;
    if (!err) {
        domain = virDomainCreateXML(connect, xml,
                                    VIR_DOMAIN_START_PAUSED | VIR_DOMAIN_START_AUTODESTROY);
        err = domain ? 0 : virt_reason(&reason, -EIO, "a trial domain does not start");
    }
    free(xml);
    bool attached = !err && check_attached(pager, uuid, &reason);
    check_item(check, "hand-over", attached,
               attached ? "QEMU starts, and the pager gets its memory" : reason.text,
               "install the patched QEMU there, and start uffd-pager with the same --handoff");
    if (domain) {
        virDomainDestroy(domain);
        virDomainFree(domain);
    }
}

static void check_free_name(struct check *check, virConnectPtr connect)
{
    char mend[192];
    virDomainPtr there = virDomainLookupByUUIDString(connect, check->uuid);
    bool is_active = there && virDomainIsActive(there) == 1;

    snprintf(mend, sizeof(mend), "virsh destroy %.100s there, if it is not wanted", check->name);
    check_item(check, "free for it", !is_active,
               is_active ? "a domain of this UUID runs there" : "no domain of this UUID runs there",
               mend);
    if (there) {
        virDomainFree(there);
    }
}

static void check_destination(struct check *check, const struct target *target)
{
    virConnectPtr connect = NULL;
    struct pager pager = {0};
    struct reason reason = {""};

    check->host = "main";
    if (!check->fit.path[0]) {
        /* What `enable` would make of it. */
        snprintf(check->fit.emulator, sizeof(check->fit.emulator), DOMAIN_XML_EMULATOR);
    }
    bool virt = virt_open(&connect, target->uri, "libvirt", &reason) == 0;
    check_item(check, "libvirt", virt, virt ? target->uri : reason.text,
               "start libvirtd there, and see virsh -c URI list");
    if (virt) {
        check_free_name(check, connect);
        check_emulator(check, connect);
    }
    bool paged = check_pager(check, &pager, &target->pager);
    if (virt && paged && check->fit.emulator[0]) {
        check_probe(check, connect, &pager);
    }
    pager_close(&pager);
    virt_close(connect);
}

static void check_subhosts(struct check *check, const struct policy *policy)
{
    for (unsigned i = 0; i < policy->n_subhosts; i++) {
        struct subhost subhost = {0};
        struct reason reason = {""};
        char text[32];
        char detail[REASON_LEN];
        check->host = policy->subhost[i].name;
        bool there = subhost_open(&subhost, &policy->subhost[i], &reason) == 0;
        snprintf(detail, sizeof(detail), "%s free",
                 units_format_size(subhost.free, text, sizeof(text)));
        check_item(check, "sub-host", there, there ? detail : reason.text,
                   "start subhost-server on that host");
        if (there) {
            check_item(check, "memory", subhost.free > 0, detail,
                       "give subhost-server more --memory, or move a guest away");
        }
        subhost_close(&subhost);
    }
}

static void check_mend(const struct check *check)
{
    for (size_t i = 0; i < json_array_size(check->list); i++) {
        const json_t *item = json_array_get(check->list, i);
        const char *mend = json_string_value(json_object_get(item, "mend"));
        if (mend[0]) {
            printf("\n%s, %s: %s", json_string_value(json_object_get(item, "host")),
                   json_string_value(json_object_get(item, "item")), mend);
        }
    }
    if (check->missing) {
        putchar('\n');
    }
}

int verb_check(const struct arguments *arguments)
{
    static const char *const titles[] = {"Host", "Item", "State", "Detail", NULL};
    struct move *move = move_new();
    struct check check = {.list = json_array()};
    struct reason reason = {""};

    int status = verbs_targets(move, arguments);
    const char *file = options_get(arguments, "policy");
    if (status == EXIT_OK && strcmp(move->source.scheme, "libvirt") != 0) {
        output_error("check looks at libvirt's domains, and '%.100s' is none", arguments->word[0]);
        status = EXIT_USAGE;
    }
    if (status == EXIT_OK && file &&
        (policy_load(&move->policy, file, &reason) < 0 ||
         verbs_tls(&move->policy, arguments, &reason) < 0)) {
        output_error("%s", reason.text);
        status = EXIT_UNCHANGED;
    }
    if (status != EXIT_OK) {
        json_decref(check.list);
        move_free(move);
        return status;
    }
    output_table_begin(&check.table, titles);
    int err = check_source(&check, &move->source, &reason);
    if (!err && move->destination.scheme[0]) {
        check_destination(&check, &move->destination);
    }
    check_subhosts(&check, &move->policy);
    virt_events_stop();
    if (options_get(arguments, "json")) {
        free(check.table.cells);
        output_json(check.list);
    } else {
        output_table_end(&check.table, arguments->quiet);
        check_mend(&check);
        json_decref(check.list);
    }
    if (err) {
        output_error("%s", reason.text);
    }
    move_free(move);
    return err || check.missing ? EXIT_UNCHANGED : EXIT_OK;
}
