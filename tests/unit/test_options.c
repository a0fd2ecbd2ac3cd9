// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line: tables, parsing, names of guests, addresses that other hosts can use. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "split-migrate/hosts.h"
#include "split-migrate/options.h"
#include "split-migrate/target.h"
#include "split-migrate/verbs.h"

#define MAX_WORDS 16

static int parse(struct arguments *arguments, struct reason *reason, const char *line)
{
    static char copy[512];
    static char program[] = "split-migrate";
    char *argv[MAX_WORDS + 1] = {program};
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = strtok(copy, " "); word && argc < MAX_WORDS; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    return options_parse(arguments, verbs_table, argc, argv, reason);
}

static void tables(void **state)
{
    struct reason reason = {""};

    (void)state;
    if (options_self_test(verbs_table, &reason) < 0) {
        fail_msg("%s", reason.text);
    }
}

static int nothing(const struct arguments *arguments)
{
    (void)arguments;
    return 0;
}

static void tables_with_mistakes(void **state)
{
    static const struct option_def none[] = {{NULL, 0, NULL, NULL}};
    static const struct option_def twice[] = {
        {"a", 0, NULL, "x"}, {"a", 0, NULL, "x"}, {NULL, 0, NULL, NULL}};
    static const struct option_def letters[] = {
        {"a", 'x', NULL, "x"}, {"b", 'x', NULL, "x"}, {NULL, 0, NULL, NULL}};
    static const struct option_def upper[] = {{"A", 0, NULL, "x"}, {NULL, 0, NULL, NULL}};
    static const struct option_def dot[] = {{"a", 0, NULL, "x."}, {NULL, 0, NULL, NULL}};
    const struct verb end = {NULL, NULL, 0, 0, NULL, NULL, false, NULL};
    const struct verb bad[][3] = {
        {{"v", "", 0, 0, "s", twice, false, nothing}, end, end},
        {{"v", "", 0, 0, "s", letters, false, nothing}, end, end},
        {{"v", "", 0, 0, "s", upper, false, nothing}, end, end},
        {{"v", "", 0, 0, "s", dot, false, nothing}, end, end},
        {{"v", "", 0, 1, "s", none, false, nothing}, end, end},
        {{"v", "A", 2, 1, "s", none, false, nothing}, end, end},
        {{"v", "", 0, 0, "s", none, false, NULL}, end, end},
        {{"v", "", 0, 0, "s", none, false, nothing},
         {"v", "", 0, 0, "s", none, false, nothing},
         end},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct reason reason = {""};
        assert_int_equal(options_self_test(bad[i], &reason), -EINVAL);
        assert_true(reason.text[0] != '\0');
    }
}

static void good(void **state)
{
    struct arguments a;

    (void)state;
    assert_int_equal(parse(&a, NULL, "-q -d debug migrate --live A --downtime=5 B --timeout 9"), 0);
    assert_true(a.quiet);
    assert_int_equal(a.debug, LOG_LEVEL_DEBUG);
    assert_string_equal(a.verb->name, "migrate");
    assert_non_null(options_get(&a, "live"));
    assert_null(options_get(&a, "json"));
    assert_string_equal(options_get(&a, "downtime"), "5");
    assert_string_equal(options_get(&a, "timeout"), "9");
    assert_string_equal(a.word[0], "A");
    assert_string_equal(a.word[1], "B");
    assert_int_equal(parse(&a, NULL, "migrate -- --A --B"), 0);
    assert_string_equal(a.word[0], "--A");
    assert_int_equal(parse(&a, NULL, "status"), 0);
    assert_int_equal(a.n_words, 0);
    assert_int_equal(parse(&a, NULL, "-v"), 0);
    assert_true(a.version);
    assert_int_equal(parse(&a, NULL, "migrate --help"), 0);
    assert_true(a.help);
    assert_int_equal(parse(&a, NULL, "--help"), 0);
    assert_null(a.verb);
}

/* Names of libvirt, and where their pagers are. */
static void libvirt_targets(void **state)
{
    static const struct {
        const char *uri;
        const char *pager;
    } rows[] = {
        {"qemu:///system", TARGET_DEFAULT_PAGER},
        {"qemu+unix:///system?socket=/run/x.sock", TARGET_DEFAULT_PAGER},
        {"qemu+tcp://localhost/system", TARGET_DEFAULT_PAGER},
        {"qemu+tcp://host.example/system", "tcp:host.example:10811"},
        {"qemu+tcp://[2001:db8::7]/system", "tcp:[2001:db8::7]:10811"},
        {"qemu://127.0.0.1/system", "tcp:127.0.0.1:10811"},
        {"qemu+ssh://root@host.example/system", "tls:host.example:10811"},
        {"qemu+ssh://root@host.example:22/system?keyfile=/a@b", "tls:host.example:10811"},
        {"qemu+tls://[2001:db8::7]:16514/system", "tls:[2001:db8::7]:10811"},
        {"qemu://host", "tls:host:10811"},
    };
    struct target t;
    char text[ENDPOINT_TEXT_LEN];

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_int_equal(target_parse(&t, rows[i].uri, TARGET_DESTINATION, NULL), 0);
        assert_string_equal(t.scheme, "libvirt");
        assert_string_equal(t.uri, rows[i].uri);
        assert_string_equal(endpoint_format(&t.pager, text), rows[i].pager);
    }
    assert_int_equal(target_set_address(&t, "pager", "tcp:other:1", NULL), 0);
    target_set_uri(&t, rows[3].uri);
    assert_string_equal(endpoint_format(&t.pager, text), "tcp:other:1");
    assert_int_equal(target_set_address(&t, "listen", "tcp:other:0", NULL), 0);
    assert_string_equal(t.listen, "tcp:other:0");
    assert_int_equal(target_parse(&t, "guest1?pager=unix:/run/a.sock", TARGET_SOURCE, NULL), 0);
    assert_string_equal(t.domain, "guest1");
    target_set_uri(&t, rows[3].uri);
    assert_string_equal(endpoint_format(&t.pager, text), "unix:/run/a.sock");
    assert_int_equal(
        target_parse(&t, "7C1D3A52-6f0e-4d7f-9a53-0d6f5f1c2b11", TARGET_SOURCE, NULL), 0);
    assert_string_equal(t.scheme, "libvirt");
}

static void bad_lines(void **state)
{
    static const struct {
        const char *line;
        const char *says;
    } rows[] = {
        {"", "no verb"},
        {"-q", "no verb"},
        {"move", "verb 'move' is not known"},
        {"-x status", "option '-x' is not known"},
        {"--quite status", "option '--quite' is not known"},
        {"-d 9 status", "debug level '9'"},
        {"-d", "must have a value: LEVEL"},
        {"--quiet=1 status", "takes no value"},
        {"status -q", "option '-q' is not known"},
        {"migrate A", "migrate must have DOMAIN DESTURI"},
        {"migrate A B C", "'C' is too much"},
        {"self-test x", "takes no arguments"},
        {"migrate A B --live --live", "given twice"},
        {"migrate A B --live=yes", "takes no value"},
        {"migrate A B --timeout", "must have a value: SECONDS"},
        {"abort A --json", "option '--json' is not known"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct arguments a;
        struct reason reason = {""};
        int err = parse(&a, &reason, rows[i].line);
        if (err != -EINVAL || !strstr(reason.text, rows[i].says)) {
            fail_msg("'%s' gave %d '%s', not '%s'", rows[i].line, err, reason.text, rows[i].says);
        }
    }
}

static void targets(void **state)
{
    struct target t;
    char text[ENDPOINT_TEXT_LEN];

    (void)state;
    assert_int_equal(target_parse(&t, "qmp:/run/a.sock", TARGET_SOURCE, NULL), 0);
    assert_string_equal(t.scheme, "qmp");
    assert_string_equal(t.monitor.host, "/run/a.sock");
    assert_string_equal(endpoint_format(&t.pager, text), TARGET_DEFAULT_PAGER);
    assert_int_equal(target_parse(&t,
                                  "qmp:/a%20b?pager=tcp:h:1&listen=tcp::2&data=tcp:[::1]:3&"
                                  "migrate=unix:/m",
                                  TARGET_DESTINATION, NULL),
                     0);
    assert_string_equal(t.monitor.host, "/a b");
    assert_string_equal(t.pager.host, "h");
    assert_string_equal(t.listen, "tcp::2");
    assert_string_equal(t.data, "tcp:[::1]:3");
    assert_string_equal(t.migrate, "unix:/m");
    assert_int_equal(target_parse(&t, "7C1D3A52-6f0e-4d7f-9a53-0d6f5f1c2b11", TARGET_LOOK, NULL),
                     0);
    assert_string_equal(t.uuid, "7c1d3a52-6f0e-4d7f-9a53-0d6f5f1c2b11");
}

static void bad_targets(void **state)
{
    static const struct {
        const char *text;
        const char *says;
    } rows[] = {
        {"", "names no guest"},
        {"qemu:///system", "names no guest"},
        {"qmp:", "absolute path"},
        {"qmp:a.sock", "absolute path"},
        {"qmp:/a%zz", "absolute path"},
        {"qmp:/a?pager", "must be PARAMETER=VALUE"},
        {"qmp:/a?pager=h", "parameter pager: address 'h'"},
        {"qmp:/a?pager=tcp::1", "must have a host and a port"},
        {"qmp:/a?pager=unix:/a&pager=unix:/b", "pager twice"},
        {"qmp:/a?paper=unix:/a", "parameter 'paper'"},
        {"qmp:/a?pager=%00", "two hexadecimal digits"},
        {"qmp:/a?listen=tcp::1", "belongs to the destination"},
    };
    struct target t;
    struct reason reason = {""};
    char long_text[700];

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int err = target_parse(&t, rows[i].text, TARGET_SOURCE, &reason);
        if (err != -EINVAL || !strstr(reason.text, rows[i].says)) {
            fail_msg("'%s' gave %d '%s'", rows[i].text, err, reason.text);
        }
    }
    memset(long_text, 'a', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    assert_int_equal(target_parse(&t, long_text, TARGET_SOURCE, &reason), -EINVAL);
    memcpy(long_text, "qmp:/", 5);
    long_text[200] = '\0';
    assert_int_equal(target_parse(&t, long_text, TARGET_SOURCE, &reason), -EINVAL);
}

static void streams(void **state)
{
    struct target a;
    struct target b;
    struct reason reason = {""};
    char text[ENDPOINT_TEXT_LEN];

    (void)state;
    target_parse(&a, "qmp:/a", TARGET_SOURCE, NULL);
    target_parse(&b, "qmp:/b", TARGET_DESTINATION, NULL);
    assert_int_equal(target_stream(&a, &b, text, &reason), 0);
    assert_string_equal(text, "unix:/b.migrate");
    target_parse(&b, "qmp:/b?pager=tcp:h:1", TARGET_DESTINATION, NULL);
    assert_int_equal(target_stream(&a, &b, text, &reason), -EINVAL);
    assert_non_null(strstr(reason.text, "add migrate=tcp:HOST:PORT"));
    target_parse(&b, "qmp:/b?pager=tcp:h:1&migrate=tcp:h:2", TARGET_DESTINATION, NULL);
    assert_int_equal(target_stream(&a, &b, text, &reason), 0);
    assert_string_equal(text, "tcp:h:2");
}

static void reach(void **state)
{
    struct endpoint near = {.is_unix = true, .host = "/c"};
    struct endpoint far = {.host = "far", .port = 1};
    char data[ENDPOINT_TEXT_LEN];

    (void)state;
    assert_int_equal(hosts_reach("tcp::5", &far, data), 0);
    assert_string_equal(data, "tcp:far:5");
    assert_int_equal(hosts_reach("tcp:0.0.0.0:5", &near, data), 0);
    assert_string_equal(data, "tcp:127.0.0.1:5");
    assert_int_equal(hosts_reach("tcp:[::]:5", &far, data), 0);
    assert_string_equal(data, "tcp:far:5");
    assert_int_equal(hosts_reach("unix:/d", &near, data), 0);
    assert_int_equal(hosts_reach("unix:/d", &far, data), -EINVAL);
    assert_int_equal(hosts_reach("tcp:127.0.0.1:5", &far, data), -EINVAL);
    assert_int_equal(hosts_reach("nonsense", &far, data), -EINVAL);

    json_t *list = json_pack("[s, s, s]", "tcp:127.0.0.1:5", "unix:/d", "tcp:10.0.0.1:6");
    assert_int_equal(hosts_choose_data(list, &near, data), 0);
    assert_string_equal(data, "unix:/d");
    assert_int_equal(hosts_choose_data(list, &far, data), 0);
    assert_string_equal(data, "tcp:10.0.0.1:6");
    json_decref(list);
    assert_int_equal(hosts_choose_data(NULL, &far, data), -EINVAL);
}

static void percent(void **state)
{
    (void)state;
    assert_int_equal(progress_percent(0, 0), 0);
    assert_int_equal(progress_percent(100, 100), 0);
    assert_int_equal(progress_percent(100, 50), 50);
    assert_int_equal(progress_percent(1000000, 1), 99);
    assert_int_equal(progress_percent(100, 0), 100);
    assert_int_equal(progress_percent(100, 200), 0);
    assert_int_equal(progress_percent(UINT64_MAX, UINT64_MAX / 2), 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables),  cmocka_unit_test(tables_with_mistakes),
        cmocka_unit_test(good),    cmocka_unit_test(bad_lines),
        cmocka_unit_test(libvirt_targets),
        cmocka_unit_test(targets), cmocka_unit_test(bad_targets),
        cmocka_unit_test(streams), cmocka_unit_test(reach),
        cmocka_unit_test(percent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
