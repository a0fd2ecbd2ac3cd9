// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/control.h"
#include "common/units.h"

static atomic_int closed;
static int connected;
static struct endpoint address;

static json_t *verb_echo(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                         struct reason *reason)
{
    (void)opaque, (void)peer, (void)err, (void)reason;
    return json_deep_copy(args);
}

static json_t *verb_refuse(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                           struct reason *reason)
{
    (void)opaque, (void)peer, (void)args;
    *err = reason_set(reason, -ENOSPC, "there is no room");
    return NULL;
}

static json_t *verb_announce(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                             struct reason *reason)
{
    (void)opaque, (void)args, (void)err, (void)reason;
    control_event(peer, "HELLO", json_pack("{s:i}", "n", 7));
    return NULL;
}

static void on_close(void *opaque, struct control_peer *peer)
{
    (void)opaque, (void)peer;
    atomic_fetch_add(&closed, 1);
}

static const struct control_verb verbs[] = {
    {"echo", verb_echo}, {"refuse", verb_refuse}, {"announce", verb_announce}, {NULL, NULL}};

static int set_up(void **state)
{
    static struct control_server *server;
    struct control_config config = {.program = "test", .verbs = verbs, .on_close = on_close};
    struct reason reason;

    address = (struct endpoint){.host = "127.0.0.1"};
    int listener = endpoint_listen(&address, &reason);
    *state = NULL;
    if (listener < 0 || control_server_start(&server, listener, &config) < 0) {
        return -1;
    }
    *state = server;
    return 0;
}

static int tear_down(void **state)
{
    control_server_stop(*state);
    return 0;
}

static struct control_client *connect_client(void)
{
    struct control_client *client;
    struct reason reason = {""};

    assert_int_equal(control_connect(&client, &address, 5000, &reason), 0);
    connected++;
    return client;
}

/* A QMP server that greets again after the negotiation, and wants another one then. */
static void *forgetful_qmp(void *opaque)
{
    static const char *const said[] = {
        "{\"QMP\": {}}\n", "{\"return\": {}, \"id\": 1}\n{\"QMP\": {}}\n",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Expecting capabilities "
        "negotiation with 'qmp_capabilities'\"}, \"id\": 2}\n",
        "{\"return\": {}, \"id\": 3}\n", "{\"return\": {\"status\": \"running\"}, \"id\": 4}\n"};
    static const char *const asked[] = {"qmp_capabilities", "query-status", "qmp_capabilities",
                                        "query-status", ""};
    int fd = accept(*(int *)opaque, NULL, NULL);
    char line[256];
    intptr_t right = 1;

    for (size_t i = 0; i < 5; i++) {
        size_t length = 0;
        right &= write(fd, said[i], strlen(said[i])) == (ssize_t)strlen(said[i]);
        while (length + 1 < sizeof(line) && read(fd, line + length, 1) == 1 &&
               line[length] != '\n') {
            length++;
        }
        line[length] = 0;
        right &= strstr(line, asked[i]) != NULL;
    }
    close(fd);
    return (void *)right;
}

static void a_second_greeting_is_negotiated_again(void **state)
{
    struct endpoint there = {.host = "127.0.0.1"};
    struct control_client *client = NULL;
    struct reason reason = {""};
    json_t *result = NULL;
    pthread_t thread;
    void *right = NULL;

    (void)state;
    int listener = endpoint_listen(&there, &reason);
    assert_true(listener >= 0);
    assert_int_equal(pthread_create(&thread, NULL, forgetful_qmp, &listener), 0);
    assert_int_equal(control_connect(&client, &there, 5000, &reason), 0);
    assert_int_equal(control_call(client, "query-status", NULL, &result, 5000, &reason), 0);
    assert_string_equal(json_string_value(json_object_get(result, "status")), "running");
    json_decref(result);
    control_close(client);
    pthread_join(thread, &right);
    close(listener);
    assert_true(right);
}

static void verbs_answer(void **state)
{
    struct control_client *client = connect_client();
    struct reason reason = {""};
    json_t *result = NULL;

    (void)state;
    assert_int_equal(
        control_call(client, "echo", json_pack("{s:i}", "a", 5), &result, 5000, &reason), 0);
    assert_int_equal(json_integer_value(json_object_get(result, "a")), 5);
    json_decref(result);
    assert_int_equal(control_call(client, "refuse", NULL, NULL, 5000, &reason), -ENOSPC);
    assert_string_equal(reason.text, "there is no room");
    assert_int_equal(control_call(client, "nothing", NULL, NULL, 5000, &reason), -ENOSYS);
    control_close(client);
}

static void got_event(void *opaque, const char *name, const json_t *data)
{
    assert_string_equal(name, "HELLO");
    *(json_int_t *)opaque = json_integer_value(json_object_get(data, "n"));
}

static void events_come_between(void **state)
{
    struct control_client *client = connect_client();
    json_int_t n = 0;

    (void)state;
    control_on_event_set(client, got_event, &n);
    assert_int_equal(control_call(client, "announce", NULL, NULL, 5000, NULL), 0);
    assert_int_equal(n, 7);
    control_close(client);
}

static void close_is_noticed(void **state)
{
    struct control_client *client = connect_client();

    (void)state;
    assert_true(atomic_load(&closed) < connected);
    control_close(client);
    uint64_t end = units_now_us() + 5000000;
    while (atomic_load(&closed) < connected && units_now_us() < end) {
        usleep(1000);
    }
    assert_int_equal(atomic_load(&closed), connected);
}

/* What comes must end the connection or be answered; the server goes on. */
static void garbage_costs_one_connection(void **state)
{
    static const char *const lines[] = {
        "garbage\n", "[1,2]\n", "{\"execute\": 5}\n", "{\"execute\": \"echo\", \"arguments\": []}\n",
        "{\"execute\": \"echo\", \"execute\": \"echo\"}\n", "\n", "{\"a\":", "\xff\xfe\n"};
    struct reason reason;
    char buffer[512];

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        int fd = endpoint_connect(&address, 5000, &reason);
        assert_true(fd >= 0);
        assert_true(recv(fd, buffer, sizeof(buffer), 0) > 0); /* the greeting */
        assert_int_equal(send(fd, lines[i], strlen(lines[i]), MSG_NOSIGNAL), strlen(lines[i]));
        shutdown(fd, SHUT_WR);
        while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
        }
        close(fd);
    }
    verbs_answer(state);
}

static void a_line_without_end_is_refused(void **state)
{
    struct reason reason;
    size_t size = 1 << 20;
    char *chunk = malloc(size);
    int fd = endpoint_connect(&address, 5000, &reason);
    ssize_t n = 1;

    assert_true(fd >= 0);
    memset(chunk, ' ', size);
    for (size_t sent = 0; n > 0 && sent <= CONTROL_MAX_LINE + size; sent += (size_t)n) {
        n = send(fd, chunk, size, MSG_NOSIGNAL);
    }
    /* The server has closed, whether or not the error line could still be read. */
    while (recv(fd, chunk, size, 0) > 0) {
    }
    close(fd);
    free(chunk);
    verbs_answer(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verbs_answer),
        cmocka_unit_test(a_second_greeting_is_negotiated_again),
        cmocka_unit_test(events_come_between),
        cmocka_unit_test(close_is_noticed),
        cmocka_unit_test(garbage_costs_one_connection),
        cmocka_unit_test(a_line_without_end_is_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
