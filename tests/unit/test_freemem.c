// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/units.h"
#include "subhost-server/freemem.h"
#include "subhost-server/quota.h"

/* A tree of its own with /proc and /sys. */
static char root[64];

static void put(const char *path, const char *text)
{
    char name[PATH_MAX];
    char *at = name + snprintf(name, sizeof(name), "%s", root) + 1;

    snprintf(name + strlen(root), sizeof(name) - strlen(root), "%s", path);
    for (; *at; at++) {
        if (*at == '/') {
            *at = '\0';
            mkdir(name, 0700);
            *at = '/';
        }
    }
    FILE *file = fopen(name, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/test-freemem-XXXXXX");
    assert_non_null(mkdtemp(root));
    put("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n");
    return 0;
}

static int remove_root(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

static void without_a_cgroup_it_is_the_hosts(void **state)
{
    (void)state;
    assert_int_equal(freemem_now(root), 4 * GIB);
    put("/proc/self/cgroup", "0::/nowhere\n");
    assert_int_equal(freemem_now(root), 4 * GIB);
    assert_int_equal(freemem_now("/nonexistent"), UINT64_MAX);
}

static void version_2_by_its_own_limit_and_those_above(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/system.slice/subhost-server.service\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "max\n");
    put("/sys/fs/cgroup/system.slice/memory.current", "1073741824\n");
    put("/sys/fs/cgroup/system.slice/subhost-server.service/memory.max", "2147483648\n");
    put("/sys/fs/cgroup/system.slice/subhost-server.service/memory.high", "1610612736\n");
    put("/sys/fs/cgroup/system.slice/subhost-server.service/memory.current", "1073741824\n");
    put("/sys/fs/cgroup/system.slice/subhost-server.service/memory.stat",
        "anon 1\ninactive_file 268435456\nactive_file 134217728\nfile 536870912\n");
    assert_int_equal(freemem_now(root), (512 + 256 + 128) * MIB);
    put("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
    assert_int_equal(freemem_now(root), 0);
}

static void version_1_beside_an_empty_version_2(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "9:name=systemd:/\n5:cpu,memory,pids:/lent\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/lent/memory.limit_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/lent/memory.usage_in_bytes", "536870912\n");
    put("/sys/fs/cgroup/memory/lent/memory.stat",
        "inactive_file 1\ntotal_inactive_file 1048576\ntotal_active_file 0\n");
    assert_int_equal(freemem_now(root), 513 * MIB);
}

static void a_ceiling_stops_growth(void **state)
{
    struct quota_claim claim, other;
    struct quota_status status;
    struct reason reason = {""};
    struct quota quota;

    (void)state;
    quota_init(&quota, 100);
    assert_int_equal(quota_claim_open(&quota, &claim, 40, 100, &reason), 0);
    assert_int_equal(quota_charge(&claim, 20), 0);
    quota_set_ceiling(&quota, 30);
    assert_int_equal(quota_room(&claim), 10);
    quota_status(&quota, &status);
    assert_int_equal(status.free, 10);
    assert_int_equal(quota_charge(&claim, 11), -ENOSPC);
    assert_int_equal(quota_charge(&claim, 10), 0);
    assert_int_equal(quota_claim_open(&quota, &other, 1, 1, &reason), -ENOSPC);
    quota_set_ceiling(&quota, 10); /* what is stored stays */
    assert_int_equal(quota_room(&claim), 0);
    assert_int_equal(quota_charge(&claim, 1), -ENOSPC);
    quota_uncharge(&claim, 25);
    assert_int_equal(quota_charge(&claim, 5), 0);
    quota_set_ceiling(&quota, UINT64_MAX);
    assert_int_equal(quota_charge(&claim, 90), 0);
    quota_claim_close(&claim);
    quota_destroy(&quota);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(without_a_cgroup_it_is_the_hosts, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_2_by_its_own_limit_and_those_above, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(version_1_beside_an_empty_version_2, make_root, remove_root),
        cmocka_unit_test(a_ceiling_stops_growth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
