// SPDX-License-Identifier: GPL-2.0-or-later
/* A domain's XML: what it lacks, putting it there, and taking it away without a trace. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifdef HAVE_LIBVIRT

#include "split-migrate/domain_xml.h"

#define PLAIN(inner, devices)                                                                      \
    "<domain type='kvm'>\n  <name>big</name>\n" inner                                              \
    "  <os>\n    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>\n  </os>\n"                  \
    "  <devices>\n    <emulator>/usr/bin/qemu-system-x86_64</emulator>\n" devices                  \
    "  </devices>\n</domain>\n"

static void enable_and_back(void **state)
{
    static const char *const forms[] = {
        PLAIN("", ""),
        PLAIN("  <metadata>\n    <x:y xmlns:x='urn:x'/>\n  </metadata>\n", ""),
        PLAIN("  <memoryBacking>\n    <source type='file'/>\n    <nosharepages/>\n"
              "  </memoryBacking>\n",
              ""),
    };

    (void)state;
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        struct domain_fit fit;
        struct reason reason = {""};
        char *once = NULL;
        char *twice = NULL;
        char *back = NULL;
        assert_int_equal(domain_xml_inspect(forms[i], &fit, &reason), 0);
        assert_false(fit.enabled);
        assert_int_equal(domain_xml_refuse(&fit, "big", &reason), -EOPNOTSUPP);
        assert_non_null(strstr(reason.text, "split-migrate enable big"));

        assert_int_equal(domain_xml_enable(forms[i], "/x/qemu", "/run/h.sock", &once, &reason), 0);
        assert_non_null(once);
        assert_int_equal(domain_xml_inspect(once, &fit, &reason), 0);
        assert_true(fit.enabled && fit.shared_memfd);
        assert_string_equal(fit.emulator, "/x/qemu");
        assert_string_equal(fit.path, "/run/h.sock");
        assert_string_equal(fit.machine, "pc-q35-10.0");
        assert_int_equal(domain_xml_refuse(&fit, "big", &reason), 0);

        assert_int_equal(domain_xml_enable(once, "/x/qemu", "/run/h.sock", &twice, &reason), 0);
        assert_null(twice);
        assert_int_equal(domain_xml_enable(once, "/y/qemu", "/run/i.sock", &twice, &reason), 0);
        assert_int_equal(domain_xml_inspect(twice, &fit, &reason), 0);
        assert_string_equal(fit.emulator, "/y/qemu");
        assert_string_equal(fit.path, "/run/i.sock");
        assert_null(strstr(twice, "/run/h.sock"));

        assert_int_equal(domain_xml_disable(twice, &back, &reason), 0);
        assert_int_equal(domain_xml_inspect(back, &fit, &reason), 0);
        assert_false(fit.enabled || fit.shared_memfd || fit.path[0]);
        assert_string_equal(fit.emulator, "/usr/bin/qemu-system-x86_64");
        assert_null(strstr(back, "split"));
        assert_null(strstr(back, "ram-pager"));
        assert_int_equal(strstr(back, "urn:x") != NULL, i == 1);
        assert_int_equal(strstr(back, "nosharepages") != NULL, i == 2);
        assert_int_equal(strstr(back, "memoryBacking") != NULL, i == 2);
        free(once);
        free(twice);
        assert_int_equal(domain_xml_disable(back, &once, &reason), 0);
        assert_null(once);
        free(back);
    }
}

static void other_arguments_stay(void **state)
{
    static const char xml[] =
        "<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>n</name>"
        "<devices/><q:commandline><q:arg value='-object'/><q:arg value='rng-builtin,id=r'/>"
        "</q:commandline></domain>";
    struct reason reason = {""};
    char *enabled = NULL;
    char *back = NULL;

    (void)state;
    assert_int_equal(domain_xml_enable(xml, "/x/qemu", "/h", &enabled, &reason), 0);
    assert_non_null(strstr(enabled, "rng-builtin"));
    assert_non_null(strstr(enabled, "ram-pager,id=pager0,path=/h"));
    assert_int_equal(domain_xml_disable(enabled, &back, &reason), 0);
    assert_non_null(strstr(back, "rng-builtin"));
    assert_null(strstr(back, "ram-pager"));
    free(enabled);
    free(back);
}

static void refused(void **state)
{
    static const struct {
        const char *xml;
        const char *says;
    } rows[] = {
        {PLAIN("  <memoryBacking><hugepages/></memoryBacking>\n", ""), "hugepages"},
        {PLAIN("  <memoryBacking><locked/></memoryBacking>\n", ""), "locked"},
        {PLAIN("", "<hostdev mode='subsystem' type='pci'/>"), "VFIO"},
        {PLAIN("", "<interface type='vhostuser'/>"), "vhost-user"},
        {PLAIN("", "<filesystem><driver type='virtiofs'/></filesystem>"), "virtiofs"},
        {"<network/>", "cannot be read"},
        {"<domain", "cannot be read"},
        {"", "cannot be read"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct reason reason = {""};
        char *edited = NULL;
        assert_true(domain_xml_enable(rows[i].xml, "/x", "/h", &edited, &reason) < 0);
        assert_null(edited);
        assert_non_null(strstr(reason.text, rows[i].says));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enable_and_back),
        cmocka_unit_test(other_arguments_stay),
        cmocka_unit_test(refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    return 77; /* built without libvirt */
}

#endif
