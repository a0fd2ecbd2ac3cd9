// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "common/units.h"

static void sizes_are_parsed(void **state)
{
    static const struct {
        const char *text;
        uint64_t unit, bytes;
    } good[] = {
        {"0", 1, 0},          {"4096", 1, 4096},          {"512", MIB, 512 * MIB},
        {"1KiB", 1, 1024},    {"1k", 1, 1024},            {"1KB", 1, 1000},
        {"2 MiB", 1, 2 * MIB}, {"3G", 1, 3 * GIB},         {"1TiB", 1, 1024 * GIB},
        {" 7 mib ", 1, 7 * MIB}, {"18446744073709551615", 1, UINT64_MAX},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        uint64_t bytes = 1;
        assert_int_equal(units_parse_size(good[i].text, good[i].unit, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
}

static void bad_sizes_are_refused(void **state)
{
    static const char *const bad[] = {"", "x", "-1", "-1MiB", "+1", "1XiB", "1 MiB x", "MiB", "1.5G", "0x10", "1MiBMiBMiB"};
    static const char *const large[] = {"18446744073709551616", "18446744073709551615K", "99999999T"};
    uint64_t bytes = 42;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(units_parse_size(bad[i], 1, &bytes), -EINVAL);
    }
    for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++) {
        assert_int_equal(units_parse_size(large[i], 1, &bytes), -ERANGE);
    }
    assert_int_equal(bytes, 42);
}

static void sizes_are_formatted(void **state)
{
    char text[32];

    (void)state;
    assert_string_equal(units_format_size(0, text, sizeof(text)), "0 B");
    assert_string_equal(units_format_size(4096, text, sizeof(text)), "4 KiB");
    assert_string_equal(units_format_size(512 * MIB, text, sizeof(text)), "512 MiB");
    assert_string_equal(units_format_size(GIB + GIB / 2, text, sizeof(text)), "1.5 GiB");
}

static void uuids_go_round(void **state)
{
    static const char text[] = "01234567-89ab-cdef-0123-456789abcdef";
    static const char *const bad[] = {"", "01234567-89ab-cdef-0123-456789abcde", "0123456789abcdef0123456789abcdef",
                                      "01234567-89ab-cdef-0123-456789abcdefa", "g1234567-89ab-cdef-0123-456789abcdef"};
    uint8_t uuid[16];
    char out[UUID_TEXT_LEN];

    (void)state;
    assert_int_equal(units_parse_uuid(text, uuid), 0);
    assert_int_equal(uuid[0], 0x01);
    assert_int_equal(uuid[15], 0xef);
    assert_string_equal(units_format_uuid(uuid, out), text);
    assert_int_equal(units_parse_uuid("01234567-89AB-CDEF-0123-456789ABCDEF", uuid), 0);
    assert_string_equal(units_format_uuid(uuid, out), text);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(units_parse_uuid(bad[i], uuid), -EINVAL);
    }
}

static void timeouts_end_with_their_deadline(void **state)
{
    uint64_t now = units_now_us();

    (void)state;
    assert_int_equal(units_timeout_ms(UINT64_MAX), -1);
    assert_int_equal(units_timeout_ms(0), 0);
    assert_int_equal(units_timeout_ms(now), 0);
    assert_in_range(units_timeout_ms(now + 3600000000u), 1, 3600001);
    assert_int_equal(units_timeout_ms(UINT64_MAX - 1), INT_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_parsed),
        cmocka_unit_test(bad_sizes_are_refused),
        cmocka_unit_test(sizes_are_formatted),
        cmocka_unit_test(uuids_go_round),
        cmocka_unit_test(timeouts_end_with_their_deadline),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
