// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/domain_xml.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/xpath.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOMAIN_QEMU_NS "http://libvirt.org/schemas/domain/qemu/1.0"
#define DOMAIN_OUR_NS "urn:split-migrate:domain:1"
#define DOMAIN_OBJECT "ram-pager,"

static const xmlChar *domain_x(const char *text)
{
    return (const xmlChar *)text;
}

static int domain_parse(const char *xml, xmlDocPtr *doc, struct reason *reason)
{
    *doc = xmlReadMemory(xml, (int)strlen(xml), "domain.xml", NULL,
                         XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
    xmlNodePtr root = *doc ? xmlDocGetRootElement(*doc) : NULL;
    if (!root || strcmp((const char *)root->name, "domain") != 0) {
        xmlFreeDoc(*doc);
        *doc = NULL;
        return reason_set(reason, -EINVAL, "the domain's XML cannot be read");
    }
    return 0;
}

static bool domain_is(const xmlNode *node, const char *name, const char *ns)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0 &&
           (ns ? node->ns && strcmp((const char *)node->ns->href, ns) == 0 : !node->ns);
}

static xmlNodePtr domain_child(const xmlNode *parent, const char *name, const char *ns)
{
    for (xmlNodePtr node = parent ? parent->children : NULL; node; node = node->next) {
        if (domain_is(node, name, ns)) {
            return node;
        }
    }
    return NULL;
}

/* Copy an attribute, or with @attribute NULL the text, of @node; "" if there is none. */
static void domain_text(xmlNodePtr node, const char *attribute, char *to, size_t size)
{
    xmlChar *text = NULL;

    if (node) {
        text = attribute ? xmlGetNoNsProp(node, domain_x(attribute)) : xmlNodeGetContent(node);
    }
    snprintf(to, size, "%s", text ? (const char *)text : "");
    xmlFree(text);
}

static bool domain_has(xmlNodePtr node, const char *attribute, const char *value)
{
    char text[64];

    domain_text(node, attribute, text, sizeof(text));
    return strcmp(text, value) == 0;
}

static bool domain_xpath(xmlDocPtr doc, const char *path)
{
    xmlXPathContextPtr context = xmlXPathNewContext(doc);
    xmlXPathObjectPtr found = context ? xmlXPathEvalExpression(domain_x(path), context) : NULL;
    bool is = found && found->nodesetval && found->nodesetval->nodeNr > 0;

    xmlXPathFreeObject(found);
    xmlXPathFreeContext(context);
    return is;
}

/* Remove a node, and the blank text before it, so that the XML does not get holes. */
static void domain_remove(xmlNodePtr node)
{
    xmlNodePtr before = node->prev;

    if (before && xmlIsBlankNode(before)) {
        xmlUnlinkNode(before);
        xmlFreeNode(before);
    }
    xmlUnlinkNode(node);
    xmlFreeNode(node);
}

static void domain_remove_children(xmlNodePtr parent, const char *name)
{
    xmlNodePtr node = domain_child(parent, name, NULL);

    while (node) {
        domain_remove(node);
        node = domain_child(parent, name, NULL);
    }
}

static bool domain_empty(const xmlNode *node)
{
    for (xmlNodePtr child = node->children; child; child = child->next) {
        if (child->type == XML_ELEMENT_NODE) {
            return false;
        }
    }
    return true;
}

/* ---- look ---- */

static void domain_devices(xmlDocPtr doc, struct domain_fit *fit)
{
    static const struct {
        const char *path;
        const char *what;
    } table[] = {
        {"/domain/devices/hostdev[@type='pci' or @type='mdev']", "a VFIO device (hostdev)"},
        {"/domain/devices/interface[@type='hostdev']", "a VFIO device (interface hostdev)"},
        {"/domain/devices/interface[@type='vhostuser']", "a vhost-user network interface"},
        {"/domain/devices/interface[@type='vdpa']", "a vDPA network interface"},
        {"/domain/devices/disk[@type='vhostuser']", "a vhost-user disk"},
        {"/domain/devices/disk[@type='vhostvdpa']", "a vDPA disk"},
        {"/domain/devices/filesystem/driver[@type='virtiofs']", "a virtiofs file system"},
        {"/domain/devices/video/driver[@name='vhostuser']", "a vhost-user video device"},
        {"/domain/devices/input[@type='evdev' and @bus='vhostuser']", "a vhost-user input device"},
        {"/domain/launchSecurity", "encrypted memory (launchSecurity)"},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && !fit->device[0]; i++) {
        if (domain_xpath(doc, table[i].path)) {
            snprintf(fit->device, sizeof(fit->device), "%s", table[i].what);
        }
    }
}

/* The argument that makes the object, or NULL. */
static xmlNodePtr domain_object(const xmlNode *root)
{
    xmlNodePtr commandline = domain_child(root, "commandline", DOMAIN_QEMU_NS);

    for (xmlNodePtr arg = commandline ? commandline->children : NULL; arg; arg = arg->next) {
        char value[512];
        if (!domain_is(arg, "arg", DOMAIN_QEMU_NS)) {
            continue;
        }
        domain_text(arg, "value", value, sizeof(value));
        if (strncmp(value, DOMAIN_OBJECT, strlen(DOMAIN_OBJECT)) == 0) {
            return arg;
        }
    }
    return NULL;
}

static void domain_object_path(xmlNodePtr object, struct domain_fit *fit)
{
    char value[512];

    domain_text(object, "value", value, sizeof(value));
    char *path = strstr(value, ",path=");
    if (path) {
        path += strlen(",path=");
        path[strcspn(path, ",")] = '\0';
        snprintf(fit->path, sizeof(fit->path), "%.255s", path);
    }
}

static xmlNodePtr domain_ours(const xmlNode *root)
{
    return domain_child(domain_child(root, "metadata", NULL), "domain", DOMAIN_OUR_NS);
}

static void domain_look(xmlDocPtr doc, struct domain_fit *fit)
{
    xmlNodePtr root = xmlDocGetRootElement(doc);
    xmlNodePtr backing = domain_child(root, "memoryBacking", NULL);
    xmlNodePtr devices = domain_child(root, "devices", NULL);
    xmlNodePtr type = domain_child(domain_child(root, "os", NULL), "type", NULL);
    xmlNodePtr object = domain_object(root);
    xmlNodePtr allocation = domain_child(backing, "allocation", NULL);

    memset(fit, 0, sizeof(*fit));
    domain_text(root, "type", fit->virt_type, sizeof(fit->virt_type));
    domain_text(type, "arch", fit->arch, sizeof(fit->arch));
    domain_text(type, "machine", fit->machine, sizeof(fit->machine));
    domain_text(domain_child(devices, "emulator", NULL), NULL, fit->emulator,
                sizeof(fit->emulator));
    if (object) {
        domain_object_path(object, fit);
    }
    fit->shared_memfd = domain_has(domain_child(backing, "source", NULL), "type", "memfd") &&
                        domain_has(domain_child(backing, "access", NULL), "mode", "shared") &&
                        !domain_has(allocation, "mode", "immediate");
    fit->hugepages = domain_child(backing, "hugepages", NULL) != NULL;
    fit->locked = domain_child(backing, "locked", NULL) != NULL;
    fit->enabled = domain_ours(root) != NULL;
    domain_devices(doc, fit);
}

int domain_xml_inspect(const char *xml, struct domain_fit *fit, struct reason *reason)
{
    xmlDocPtr doc;
    int err = domain_parse(xml, &doc, reason);

    if (!err) {
        domain_look(doc, fit);
        xmlFreeDoc(doc);
    }
    return err;
}

/* What nobody can mend by `enable`. */
static int domain_refuse_kind(const struct domain_fit *fit, const char *name, struct reason *reason)
{
    if (fit->device[0]) {
        return reason_set(
            reason, -EOPNOTSUPP,
            "domain '%.60s' cannot be split: it has %s, which maps the guest's memory "
            "itself",
            name, fit->device);
    }
    if (fit->hugepages || fit->locked) {
        return reason_set(reason, -EOPNOTSUPP,
                          "domain '%.60s' cannot be split: its memory is %s; take <%s/> out of its "
                          "memoryBacking",
                          name, fit->hugepages ? "in hugepages" : "locked",
                          fit->hugepages ? "hugepages" : "locked");
    }
    return 0;
}

int domain_xml_refuse(const struct domain_fit *fit, const char *name, struct reason *reason)
{
    int err = domain_refuse_kind(fit, name, reason);

    if (!err && (!fit->shared_memfd || !fit->path[0])) {
        err =
            reason_set(reason, -EOPNOTSUPP,
                       "domain '%.60s' does not run in a form that can be split: it has no %s; "
                       "run split-migrate enable %.60s, and shut it down and start it again",
                       name, fit->shared_memfd ? "ram-pager object" : "shared memfd backing", name);
    }
    return err;
}

/* ---- edit ---- */

static xmlNodePtr domain_add(xmlNodePtr parent, const char *name, const char *attribute,
                             const char *value)
{
    xmlNodePtr node = xmlNewChild(parent, NULL, domain_x(name), NULL);

    if (attribute) {
        xmlNewProp(node, domain_x(attribute), domain_x(value));
    }
    return node;
}

/* Keep what is going to be replaced. */
static void domain_save(xmlDocPtr doc, xmlNodePtr root, const struct domain_fit *before)
{
    xmlNodePtr metadata = domain_child(root, "metadata", NULL);
    xmlNodePtr backing = domain_child(root, "memoryBacking", NULL);

    if (!metadata) {
        metadata = domain_add(root, "metadata", NULL, NULL);
    }
    xmlNodePtr ours = xmlNewChild(metadata, NULL, domain_x("domain"), NULL);
    xmlNsPtr ns = xmlNewNs(ours, domain_x(DOMAIN_OUR_NS), domain_x("split"));
    xmlSetNs(ours, ns);
    if (before->emulator[0]) {
        xmlNewTextChild(ours, ns, domain_x("emulator"), domain_x(before->emulator));
    }
    if (backing) {
        xmlNodePtr saved = xmlNewChild(ours, ns, domain_x("saved"), NULL);
        xmlAddChild(saved, xmlDocCopyNode(backing, doc, 1));
    }
}

static void domain_set_backing(xmlNodePtr root)
{
    xmlNodePtr backing = domain_child(root, "memoryBacking", NULL);

    if (!backing) {
        backing = domain_add(root, "memoryBacking", NULL, NULL);
    }
    domain_remove_children(backing, "source");
    domain_remove_children(backing, "access");
    domain_remove_children(backing, "allocation");
    domain_add(backing, "source", "type", "memfd");
    domain_add(backing, "access", "mode", "shared");
    domain_add(backing, "allocation", "mode", "ondemand");
}

static void domain_set_emulator(xmlNodePtr root, const char *emulator)
{
    xmlNodePtr devices = domain_child(root, "devices", NULL);

    if (!devices) {
        devices = domain_add(root, "devices", NULL, NULL);
    }
    domain_remove_children(devices, "emulator");
    if (emulator[0]) {
        xmlNewTextChild(devices, NULL, domain_x("emulator"), domain_x(emulator));
    }
}

static void domain_remove_object(xmlNodePtr root)
{
    xmlNodePtr commandline = domain_child(root, "commandline", DOMAIN_QEMU_NS);
    xmlNodePtr object = domain_object(root);

    while (object) {
        xmlNodePtr before = object->prev;
        while (before && !domain_is(before, "arg", DOMAIN_QEMU_NS)) {
            before = before->prev;
        }
        if (before && domain_has(before, "value", "-object")) {
            domain_remove(before);
        }
        domain_remove(object);
        object = domain_object(root);
    }
    if (commandline && domain_empty(commandline)) {
        domain_remove(commandline);
    }
}

static void domain_set_object(xmlNodePtr root, const char *path)
{
    xmlNodePtr commandline = domain_child(root, "commandline", DOMAIN_QEMU_NS);
    xmlNsPtr ns = xmlSearchNsByHref(root->doc, root, domain_x(DOMAIN_QEMU_NS));
    char value[512];

    if (!ns) {
        ns = xmlNewNs(root, domain_x(DOMAIN_QEMU_NS), domain_x("qemu"));
    }
    if (!commandline) {
        commandline = xmlNewChild(root, ns, domain_x("commandline"), NULL);
    }
    snprintf(value, sizeof(value), DOMAIN_OBJECT "id=pager0,path=%.255s", path);
    const char *const words[] = {"-object", value};
    for (size_t i = 0; i < 2; i++) {
        xmlNodePtr arg = xmlNewChild(commandline, ns, domain_x("arg"), NULL);
        xmlNewProp(arg, domain_x("value"), domain_x(words[i]));
    }
}

static int domain_dump(xmlDocPtr doc, char **text, struct reason *reason)
{
    xmlChar *dump = NULL;
    int size = 0;

    xmlDocDumpFormatMemory(doc, &dump, &size, 1);
    *text = dump ? strdup((const char *)dump) : NULL;
    xmlFree(dump);
    return *text ? 0 : reason_set(reason, -ENOMEM, "out of memory");
}

int domain_xml_enable(const char *xml, const char *emulator, const char *path, char **edited,
                      struct reason *reason)
{
    struct domain_fit fit;
    char name[128];
    xmlDocPtr doc;

    *edited = NULL;
    int err = domain_parse(xml, &doc, reason);
    if (err) {
        return err;
    }
    xmlNodePtr root = xmlDocGetRootElement(doc);
    domain_look(doc, &fit);
    domain_text(domain_child(root, "name", NULL), NULL, name, sizeof(name));
    err = domain_refuse_kind(&fit, name, reason);
    if (!err && (!fit.enabled || !fit.shared_memfd || strcmp(fit.emulator, emulator) != 0 ||
                 strcmp(fit.path, path) != 0)) {
        if (!fit.enabled) {
            domain_save(doc, root, &fit);
        }
        domain_set_backing(root);
        domain_set_emulator(root, emulator);
        domain_remove_object(root);
        domain_set_object(root, path);
        err = domain_dump(doc, edited, reason);
    }
    xmlFreeDoc(doc);
    return err;
}

int domain_xml_disable(const char *xml, char **edited, struct reason *reason)
{
    char emulator[256];
    xmlDocPtr doc;

    *edited = NULL;
    int err = domain_parse(xml, &doc, reason);
    if (err) {
        return err;
    }
    xmlNodePtr root = xmlDocGetRootElement(doc);
    xmlNodePtr ours = domain_ours(root);
    if (ours) {
        xmlNodePtr metadata = ours->parent;
        xmlNodePtr saved =
            domain_child(domain_child(ours, "saved", DOMAIN_OUR_NS), "memoryBacking", NULL);
        domain_text(domain_child(ours, "emulator", DOMAIN_OUR_NS), NULL, emulator,
                    sizeof(emulator));
        domain_set_emulator(root, emulator);
        domain_remove_children(root, "memoryBacking");
        if (saved) {
            xmlAddChild(root, xmlDocCopyNode(saved, doc, 1));
        }
        domain_remove_object(root);
        domain_remove(ours);
        if (domain_empty(metadata)) {
            domain_remove(metadata);
        }
        err = domain_dump(doc, edited, reason);
    }
    xmlFreeDoc(doc);
    return err;
}

int domain_xml_probe(const struct domain_fit *fit, const char *name, const char *uuid, char **xml,
                     struct reason *reason)
{
    xmlDocPtr doc = xmlNewDoc(domain_x("1.0"));
    xmlNodePtr root = xmlNewNode(NULL, domain_x("domain"));

    xmlDocSetRootElement(doc, root);
    xmlNewProp(root, domain_x("type"), domain_x(fit->virt_type));
    xmlNewTextChild(root, NULL, domain_x("name"), domain_x(name));
    xmlNewTextChild(root, NULL, domain_x("uuid"), domain_x(uuid));
    xmlNodePtr memory = xmlNewTextChild(root, NULL, domain_x("memory"), domain_x("16"));
    xmlNewProp(memory, domain_x("unit"), domain_x("MiB"));
    xmlNodePtr os = domain_add(root, "os", NULL, NULL);
    xmlNodePtr type = xmlNewTextChild(os, NULL, domain_x("type"), domain_x("hvm"));
    xmlNewProp(type, domain_x("arch"), domain_x(fit->arch));
    xmlNewProp(type, domain_x("machine"), domain_x(fit->machine));
    domain_set_backing(root);
    domain_set_emulator(root, fit->emulator);
    xmlNodePtr devices = domain_child(root, "devices", NULL);
    xmlNodePtr usb = domain_add(devices, "controller", "type", "usb");
    xmlNewProp(usb, domain_x("model"), domain_x("none"));
    domain_add(devices, "memballoon", "model", "none");
    domain_set_object(root, fit->path[0] ? fit->path : DOMAIN_XML_HANDOFF);
    int err = domain_dump(doc, xml, reason);
    xmlFreeDoc(doc);
    return err;
}
