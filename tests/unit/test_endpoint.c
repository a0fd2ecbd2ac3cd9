// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/endpoint.h"

static void addresses_go_round(void **state)
{
    static const char *const good[] = {"unix:/run/x.sock", "tcp:127.0.0.1:80", "tcp:[::1]:10809",
                                       "tcp::0", "tcp:host.example:65535", "tls:host:1", "tls:[::]:0"};
    struct endpoint endpoint;
    struct reason reason;
    char text[ENDPOINT_TEXT_LEN];

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(endpoint_parse(good[i], &endpoint, &reason), 0);
        assert_string_equal(endpoint_format(&endpoint, text), good[i]);
    }
}

static void bad_addresses_are_named(void **state)
{
    static const char *const bad[] = {"", "x", "unix:", "tcp:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:65536",
                                      "tcp:host:-1", "tcp:::1:80", "tls:host", "tls:::1:80", "tls", "http://x:1", "tcp:h: 1"};
    struct endpoint endpoint;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct reason reason = {""};
        assert_int_equal(endpoint_parse(bad[i], &endpoint, &reason), -EINVAL);
        assert_non_null(strstr(reason.text, bad[i]));
    }
}

static void only_loopback_is_local(void **state)
{
    static const struct {
        const char *text;
        bool local;
    } cases[] = {
        {"unix:/x", true},          {"tcp:127.0.0.1:1", true},     {"tcp:127.9.9.9:1", true},
        {"tcp:[::1]:1", true},      {"tcp:localhost:1", true},     {"tcp::1", false},
        {"tcp:0.0.0.0:1", false},   {"tcp:127.example.org:1", false}, {"tcp:[::]:1", false},
        {"tcp:192.0.2.1:1", false}, {"tcp:1270.0.0.1:1", false},
    };
    struct endpoint endpoint;
    struct reason reason;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(endpoint_parse(cases[i].text, &endpoint, &reason), 0);
        assert_int_equal(endpoint_is_local(&endpoint), cases[i].local);
        assert_int_equal(endpoint_is_exposed(&endpoint), !cases[i].local);
        endpoint.tls = true;
        assert_false(endpoint_is_exposed(&endpoint));
    }
}

static void sockets_listen_and_connect(void **state)
{
    struct endpoint listening[] = {{.host = "127.0.0.1"}, {.host = "::1"}, {.is_unix = true}};
    struct reason reason = {""};

    (void)state;
    snprintf(listening[2].host, sizeof(listening[2].host), "/tmp/test_endpoint.%d", (int)getpid());
    for (size_t i = 0; i < sizeof(listening) / sizeof(listening[0]); i++) {
        int listener = endpoint_listen(&listening[i], &reason);
        if (listener == -EADDRNOTAVAIL || listener == -EAFNOSUPPORT) {
            continue; /* a machine without IPv6 */
        }
        assert_true(listener >= 0);
        assert_true(listening[i].is_unix || listening[i].port != 0);
        int fd = endpoint_connect(&listening[i], 1000, &reason);
        assert_true(fd >= 0);
        int accepted = endpoint_accept(listener);
        assert_true(accepted >= 0);
        close(accepted);
        close(fd);
        close(listener);
        assert_true(endpoint_connect(&listening[i], 1000, &reason) < 0);
    }
    /* The file of a dead listener is replaced, that of a live one is not. */
    int listener = endpoint_listen(&listening[2], &reason);
    assert_true(listener >= 0);
    assert_int_equal(endpoint_listen(&listening[2], &reason), -EADDRINUSE);
    close(listener);
    unlink(listening[2].host);
}

static void a_socket_is_shared_with_a_group(void **state)
{
    struct endpoint endpoint = {.is_unix = true};
    struct reason reason = {""};
    struct stat st;
    gid_t group;

    (void)state;
    assert_int_equal(endpoint_group("nobody has such a group", &group, &reason), -EINVAL);
    assert_non_null(strstr(reason.text, "there is no group 'nobody has such a group'"));
    assert_int_equal(endpoint_group("12x", &group, &reason), -EINVAL);
    assert_int_equal(endpoint_group("daemon", &group, &reason), 0);
    char number[32];
    snprintf(number, sizeof(number), "%u", (unsigned)getgid());
    assert_int_equal(endpoint_group(number, &group, &reason), 0);
    assert_int_equal(group, getgid());
    snprintf(endpoint.host, sizeof(endpoint.host), "/tmp/test_endpoint_group.%d", (int)getpid());
    int listener = endpoint_listen(&endpoint, &reason);
    assert_true(listener >= 0);
    assert_int_equal(stat(endpoint.host, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(endpoint_share(&endpoint, group, &reason), 0);
    assert_int_equal(stat(endpoint.host, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    assert_int_equal(st.st_gid, group);
    close(listener);
    unlink(endpoint.host);
    assert_int_equal(endpoint_share(&endpoint, group, &reason), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_go_round),
        cmocka_unit_test(bad_addresses_are_named),
        cmocka_unit_test(only_loopback_is_local),
        cmocka_unit_test(sockets_listen_and_connect),
        cmocka_unit_test(a_socket_is_shared_with_a_group),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
