// SPDX-License-Identifier: GPL-2.0-or-later
/* Policy files: what is read, and that every mistake is named with its place and with what is
 * right. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/policy.h"

static const char *const predictors[] = {"smemv", "fifo", NULL};

#define GOOD_MAIN "[main]\nbudget = 1 GiB\n"
#define GOOD_SUBHOST "[subhost a]\nuri = subhost://a\n"

static int load(struct policy *policy, const char *text, size_t length, struct reason *reason)
{
    char path[] = "/tmp/test_policy.XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, length), (ssize_t)length);
    close(fd);
    policy_init(policy, predictors);
    int err = policy_load(policy, path, reason);
    if (!err) {
        err = policy_check(policy, reason);
    }
    unlink(path);
    return err;
}

static void good_everything(void **state)
{
    static const char text[] = "\xef\xbb\xbf# a comment\n"
                               "; another\n"
                               "  [main]   ; a comment\r\n"
                               "budget = 4 GiB\r\n"
                               "  low-watermark=80%\n"
                               "high-watermark = 3840 MiB ; in bytes\n"
                               "\n[subhost one]\n"
                               "uri = subhost://one.example:999\n"
                               "memory = 64G\n"
                               "weight = 3\n"
                               "[ subhost  two ]\n"
                               "uri: subhost:///run/two.sock = \n"
                               "[pages]\ngranule = 128 KiB\nprefetch = 0\nsubhost-timeout = 7\nsubhost-lost = pause\n"
                               "[redundancy]\nredundancy = backup\nbackup = /var/lib/x\n"
                               "[predictor]\npolicy = fifo\nprofile-seconds = 9\nperiod-ms = 500\n"
                               "[migration]\nbandwidth = 100\ndowntime = 50\nconnections = 4\n"
                               "timeout = 600";
    static struct policy policy;
    struct reason reason = {""};

    (void)state;
    int err = load(&policy, text, sizeof(text) - 1, &reason);
    assert_string_equal(reason.text, "");
    assert_int_equal(err, 0);
    assert_int_equal(policy.budget, 4 * GIB);
    assert_int_equal(policy_mark_bytes(&policy, &policy.low_watermark), 4 * GIB * 80 / 100);
    assert_int_equal(policy_mark_bytes(&policy, &policy.high_watermark), 3840 * MIB);
    assert_int_equal(policy.n_subhosts, 2);
    assert_string_equal(policy.subhost[0].name, "one");
    assert_string_equal(policy.subhost[0].control.host, "one.example");
    assert_int_equal(policy.subhost[0].control.port, 999);
    assert_int_equal(policy.subhost[0].memory, 64 * GIB);
    assert_int_equal(policy.subhost[0].weight, 3);
    assert_string_equal(policy.subhost[1].name, "two");
    assert_true(policy.subhost[1].control.is_unix);
    assert_int_equal(policy.subhost[1].memory, 0);
    assert_int_equal(policy.subhost[1].weight, 1);
    assert_int_equal(policy.granule, 128 * KIB);
    assert_int_equal(policy.prefetch, 0);
    assert_int_equal(policy.subhost_timeout_s, 7);
    assert_string_equal(policy.subhost_lost, "pause");
    assert_string_equal(policy.redundancy, "backup");
    assert_string_equal(policy.backup, "/var/lib/x");
    assert_string_equal(policy.predictor, "fifo");
    assert_int_equal(policy.profile_seconds, 9);
    assert_int_equal(policy.period_ms, 500);
    assert_int_equal(policy.bandwidth, 100 * MIB);
    assert_int_equal(policy.downtime_ms, 50);
    assert_int_equal(policy.connections, 4);
    assert_int_equal(policy.timeout_s, 600);
}

static void defaults(void **state)
{
    static const char text[] = GOOD_MAIN GOOD_SUBHOST;
    static struct policy policy;
    struct reason reason = {""};

    (void)state;
    assert_int_equal(load(&policy, text, sizeof(text) - 1, &reason), 0);
    assert_int_equal(policy.subhost[0].control.port, POLICY_SUBHOST_PORT);
    assert_string_equal(policy.predictor, "smemv");
    assert_int_equal(policy.bandwidth, 0);
    assert_int_equal(policy.timeout_s, 0);
    assert_true(policy.low_watermark.percent);
}

struct bad {
    const char *text;
    const char *place; /* ":LINE: ", or ": " for the whole file */
    const char *says;
};

static const struct bad bad_files[] = {
    {"", ": ", "budget is missing"},
    {GOOD_SUBHOST, ": ", "budget is missing"},
    {GOOD_MAIN, ": ", "there is no sub-host"},
    {"budget = 1 GiB\n", ":1: ", "before the first [section]"},
    {"[mian]\n", ":1: ", "there are [main], [subhost NAME], [pages], [redundancy], [predictor], [migration]"},
    {"[main x]\n", ":1: ", "section [main x] is not known"},
    {"[main\n", ":1: ", "']' must end it"},
    {"[", ":1: ", "']' must end it"},
    {"[]\n", ":1: ", "section [] is not known"},
    {"[main]\nbudgett = 1 GiB\n", ":2: ", "there are budget, low-watermark, high-watermark"},
    {"[main]\nuri = subhost://a\n", ":2: ", "key 'uri' is not known in [main]"},
    {"[main]\nbudget 1 GiB\n", ":2: ", "must be 'key = value'"},
    {"[main]\nbudget =\n", ":2: ", "is not a size"},
    {"[main]\n\n\nbudget = 4 GiX\n", ":4: ", "budget '4 GiX' is not a size"},
    {"[main]\nbudget = -1 GiB\n", ":2: ", "is not a size"},
    {"[main]\nbudget = 1.5 GiB\n", ":2: ", "must be a whole number"},
    {"[main]\nbudget = 0\n", ":2: ", "must be at least 16 MiB"},
    {"[main]\nbudget = 99999999999999999999\n", ":2: ", "too large"},
    {"[main]\nbudget = 9999999999 GiB\n", ":2: ", "too large"},
    {"[main]\nbudget = 1 GiB\nbudget = 2 GiB\n", ":3: ", "set twice, first in line 2"},
    {GOOD_MAIN "[pages]\n[main]\nbudget = 1 GiB\n", ":5: ", "set twice, first in line 2"},
    {GOOD_MAIN "low-watermark = 101%\n", ":3: ", "1% to 100% of the budget"},
    {GOOD_MAIN "low-watermark = 0%\n", ":3: ", "1% to 100% of the budget"},
    {GOOD_MAIN "low-watermark = x%\n", ":3: ", "1% to 100% of the budget"},
    {GOOD_MAIN "low-watermark = 5 5%\n", ":3: ", "1% to 100% of the budget"},
    {GOOD_MAIN "low-watermark = 95%\nhigh-watermark = 90%\n" GOOD_SUBHOST,
     ":3: ", "must not be above high-watermark"},
    {GOOD_MAIN "high-watermark = 2 GiB\n" GOOD_SUBHOST, ":3: ", "above the budget (1 GiB)"},
    {GOOD_MAIN "[subhost]\n", ":3: ", "must have a name"},
    {GOOD_MAIN "[subhost a/b]\n", ":3: ", "must have a name of letters"},
    {GOOD_MAIN GOOD_SUBHOST "[subhost a]\n", ":5: ", "twice, first in line 3"},
    {GOOD_MAIN GOOD_SUBHOST "[subhost b]\nuri = subhost://a:10810\n",
     ":6: ", "is sub-host 'a' already, of line 3"},
    {GOOD_MAIN "[subhost a]\nweight = 1\n", ":3: ", "has no uri"},
    {GOOD_MAIN "[subhost a]\nuri = tcp:a:1\n", ":4: ", "subhost://HOST[:PORT] or subhost:///PATH"},
    {GOOD_MAIN "[subhost a]\nuri = subhost://\n", ":4: ", "must name a host"},
    {GOOD_MAIN "[subhost a]\nuri = subhost://a/b\n", ":4: ", "must name a host"},
    {GOOD_MAIN "[subhost a]\nuri = subhost://a:0\n", ":4: ", "port from 1 to 65535"},
    {GOOD_MAIN "[subhost a]\nuri = subhost://a:port\n", ":4: ", "port must be a number"},
    {GOOD_MAIN "[subhost a]\nuri = subhost://a:65536\n", ":4: ", "port must be a number"},
    {GOOD_MAIN GOOD_SUBHOST "memory = 1 KiB\n", ":5: ", "must be at least 2 MiB"},
    {GOOD_MAIN GOOD_SUBHOST "weight = 1001\n", ":5: ", "from 0 to 1000"},
    {GOOD_MAIN GOOD_SUBHOST "weight = -1\n", ":5: ", "from 0 to 1000"},
    {GOOD_MAIN GOOD_SUBHOST "weight = 0\n", ":3: ", "at least one must be above 0"},
    {GOOD_MAIN "[pages]\ngranule = 3 MiB\n", ":4: ", "a power of two from 4 KiB to 2 MiB"},
    {GOOD_MAIN "[pages]\ngranule = 96 KiB\n", ":4: ", "a power of two"},
    {GOOD_MAIN "[pages]\nsubhost-lost = die\n", ":4: ", "must be wait, pause or poison"},
    {GOOD_MAIN "[redundancy]\nredundancy = 2\n", ":4: ", "must be none, replica or backup"},
    {GOOD_MAIN "[redundancy]\nbackup = here\n", ":4: ", "whole path on the main host"},
    {GOOD_MAIN GOOD_SUBHOST "[redundancy]\nredundancy = replica\n", ":6: ", "at least two sub-hosts"},
    {GOOD_MAIN GOOD_SUBHOST "[redundancy]\nredundancy = backup\n", ":6: ", "needs a folder"},
    {GOOD_MAIN GOOD_SUBHOST "[redundancy]\nbackup = /b\n", ":6: ", "with redundancy = backup only"},
    {GOOD_MAIN "[pages]\nprefetch = 513\n", ":4: ", "from 0 to 512"},
    {GOOD_MAIN "[predictor]\npolicy = lru\n", ":4: ", "must be one of smemv, fifo"},
    {GOOD_MAIN "[predictor]\nprofile-seconds = 1h\n", ":4: ", "a whole number from 0 to 3600"},
    {GOOD_MAIN "[predictor]\nperiod-ms = 1\n", ":4: ", "from 10"},
    {GOOD_MAIN "[migration]\nconnections = 0\n", ":4: ", "from 1 to 16"},
    {GOOD_MAIN "[migration]\nticket-seconds = 0\n", ":4: ", "from 1 to 86400"},
    {GOOD_MAIN "[migration]\ndowntime = 0\n", ":4: ", "from 1"},
    {GOOD_MAIN "[migration]\ntimeout = soon\n", ":4: ", "whole number"},
    {GOOD_MAIN "[migration]\nbandwidth = 10 MB/s\n", ":4: ", "is not a size"},
};

static void bad(void **state)
{
    static struct policy policy;

    (void)state;
    for (size_t i = 0; i < sizeof(bad_files) / sizeof(bad_files[0]); i++) {
        const struct bad *b = &bad_files[i];
        struct reason reason = {""};
        int err = load(&policy, b->text, strlen(b->text), &reason);
        const char *after = strchr(reason.text, ':');
        if (!err || !after || strncmp(after, b->place, strlen(b->place)) != 0 ||
            !strstr(reason.text, b->says)) {
            fail_msg("'%s' gave '%s', not '%s%s'", b->text, reason.text, b->place, b->says);
        }
    }
}

static void bad_first_counts(void **state)
{
    static const char text[] = "[main]\nno setting\n[nothing]\nbudget = x\n";
    static struct policy policy;
    struct reason reason = {""};

    (void)state;
    assert_true(load(&policy, text, sizeof(text) - 1, &reason) < 0);
    assert_non_null(strstr(reason.text, ":2: "));
}

static void bad_bytes(void **state)
{
    static struct policy policy;
    struct reason reason = {""};
    char text[400] = "[main]\n#";

    (void)state;
    memset(text + 8, 'x', sizeof(text) - 8);
    assert_true(load(&policy, text, sizeof(text), &reason) < 0);
    assert_non_null(strstr(reason.text, ":2: the line is too long"));
    assert_true(load(&policy, "[main]\nbud\0get = 1\n", 19, &reason) < 0);
    assert_non_null(strstr(reason.text, ":2: the line holds a NUL byte"));
}

static void bad_path(void **state)
{
    static struct policy policy;
    struct reason reason = {""};

    (void)state;
    policy_init(&policy, predictors);
    assert_int_equal(policy_load(&policy, "/nonexistent/policy", &reason), -ENOENT);
    assert_non_null(strstr(reason.text, "'/nonexistent/policy' cannot be read: No such file"));
    assert_true(policy_load(&policy, "/", &reason) < 0);
    assert_non_null(strstr(reason.text, "cannot be read"));
}

static void too_many_subhosts(void **state)
{
    static struct policy policy;
    struct reason reason = {""};
    size_t size = 16384;
    char *text = calloc(1, size);

    (void)state;
    snprintf(text, size, "%s", GOOD_MAIN);
    for (unsigned i = 0; i < PAGEMAP_MAX_SUBHOSTS; i++) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "[subhost s%u]\nuri = subhost://h%u\n", i, i);
    }
    assert_int_equal(load(&policy, text, strlen(text), &reason), 0);
    size_t length = strlen(text);
    snprintf(text + length, size - length, "[subhost more]\n");
    assert_true(load(&policy, text, strlen(text), &reason) < 0);
    assert_non_null(strstr(reason.text, "at most 127"));
    free(text);
}

static void options(void **state)
{
    static const char text[] = GOOD_MAIN GOOD_SUBHOST;
    static struct policy policy;
    struct reason reason = {""};

    (void)state;
    assert_int_equal(load(&policy, text, sizeof(text) - 1, &reason), 0);
    assert_true(policy_has_option("budget"));
    assert_true(policy_has_option("downtime"));
    assert_false(policy_has_option("uri"));
    assert_false(policy_has_option("policy"));
    assert_int_equal(policy_set_option(&policy, "budget", "512 MiB", &reason), 0);
    assert_int_equal(policy.budget, 512 * MIB);
    assert_true(policy_set_option(&policy, "downtime", "x", &reason) < 0);
    assert_non_null(strstr(reason.text, "--downtime: downtime 'x'"));
    assert_true(policy_set_option(&policy, "nothing", "1", &reason) < 0);
}

static void uris(void **state)
{
    struct endpoint endpoint;

    (void)state;
    assert_int_equal(policy_parse_uri("subhost://[::1]", &endpoint, NULL), 0);
    assert_string_equal(endpoint.host, "::1");
    assert_int_equal(endpoint.port, POLICY_SUBHOST_PORT);
    assert_int_equal(policy_parse_uri("subhost://[::1]:7", &endpoint, NULL), 0);
    assert_int_equal(endpoint.port, 7);
    assert_int_equal(policy_parse_uri("subhost:///a/b.sock", &endpoint, NULL), 0);
    assert_string_equal(endpoint.host, "/a/b.sock");
    static const struct {
        const char *uri;
        bool tls;
    } rows[] = {
        {"subhost://far.example", true},      {"subhost://127.0.0.1", false},
        {"subhost+tcp://far.example", false}, {"subhost+tls://127.0.0.1", true},
        {"subhost+tls://[fd00::1]:5", true},  {"subhost:///run/a.sock", false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_int_equal(policy_parse_uri(rows[i].uri, &endpoint, NULL), 0);
        assert_int_equal(endpoint.tls, rows[i].tls);
    }
    assert_true(policy_parse_uri("subhost+ssh://a", &endpoint, NULL) < 0);
    assert_true(policy_parse_uri("subhost+tls:///run/a.sock", &endpoint, NULL) < 0);
    assert_true(policy_parse_uri("subhost:/a", &endpoint, NULL) < 0);
    assert_true(policy_parse_uri("subhost://u@h", &endpoint, NULL) < 0);
    assert_true(policy_parse_uri("subhost://a:1:2", &endpoint, NULL) < 0);
    assert_true(policy_parse_uri("", &endpoint, NULL) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_everything),
        cmocka_unit_test(defaults),
        cmocka_unit_test(bad),
        cmocka_unit_test(bad_first_counts),
        cmocka_unit_test(bad_bytes),
        cmocka_unit_test(bad_path),
        cmocka_unit_test(too_many_subhosts),
        cmocka_unit_test(options),
        cmocka_unit_test(uris),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
