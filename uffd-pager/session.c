// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/session.h"

#include "uffd-pager/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/control.h"
#include "common/units.h"
#include "uffd-pager/rdma_choice.h"

#define SESSION_TICKET_BYTES 16
#define SESSION_CONTROL_TIMEOUT_MS 3000
#define SESSION_MAX_BLOCK ((uint64_t)1 << 46)

static int session_text(const json_t *object, const char *key, bool needed, char *to, size_t size,
                        struct reason *reason)
{
    const json_t *value = json_object_get(object, key);

    to[0] = '\0';
    if (!value && !needed) {
        return 0;
    }
    const char *text = json_string_value(value);
    if (!text || strlen(text) >= size || (needed && !*text)) {
        return reason_set(reason, -EINVAL, "'%s' must be a string of at most %zu characters", key,
                          size - 1);
    }
    memcpy(to, text, strlen(text) + 1);
    return 0;
}

static int session_number(const json_t *object, const char *key, uint64_t missing, uint64_t most,
                          uint64_t *to, struct reason *reason)
{
    const json_t *value = json_object_get(object, key);

    *to = missing;
    if (!value) {
        return 0;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > most) {
        return reason_set(reason, -EINVAL, "'%s' must be a whole number from 0 to %llu", key,
                          (unsigned long long)most);
    }
    *to = (uint64_t)json_integer_value(value);
    return 0;
}

static int session_parse_subhost(struct session_subhost *subhost, const json_t *object,
                                 struct reason *reason)
{
    char data[ENDPOINT_TEXT_LEN];
    char control[ENDPOINT_TEXT_LEN];

    int err = session_text(object, "name", true, subhost->name, sizeof(subhost->name), reason);
    if (!err) {
        err = session_text(object, "data", true, data, sizeof(data), reason);
    }
    if (!err) {
        err = endpoint_parse(data, &subhost->data, reason);
    }
    if (!err) {
        err = session_text(object, "control", true, control, sizeof(control), reason);
    }
    if (!err) {
        err = endpoint_parse(control, &subhost->control, reason);
    }
    if (!err) {
        err = session_text(object, "export", true, subhost->export_name,
                           sizeof(subhost->export_name), reason);
    }
    if (!err) {
        err = session_text(object, "ticket", false, subhost->ticket, sizeof(subhost->ticket),
                           reason);
    }
    if (!err) {
        uint64_t weight;
        err = session_number(object, "weight", 1, UINT32_MAX, &weight, reason);
        subhost->weight = (unsigned)weight;
    }
    if (!err) {
        err = rdma_choice_parse(object, &subhost->rdma, &subhost->has_rdma, &subhost->tcp_will_do,
                                reason);
    }
    return err;
}

static const char *const session_loss_names[] = {
    [ENGINE_LOSS_POISON] = "poison", [ENGINE_LOSS_WAIT] = "wait", [ENGINE_LOSS_PAUSE] = "pause"};

static int session_parse_loss(struct session *session, const json_t *object,
                              struct reason *reason)
{
    const json_t *value = json_object_get(object, "lost_action");

    session->lost_action = ENGINE_LOSS_POISON;
    if (!value) {
        return 0;
    }
    for (unsigned i = 0; i < sizeof(session_loss_names) / sizeof(session_loss_names[0]); i++) {
        if (json_is_string(value) && strcmp(json_string_value(value), session_loss_names[i]) == 0) {
            session->lost_action = (enum engine_loss)i;
            return 0;
        }
    }
    return reason_set(reason, -EINVAL, "'lost_action' must be \"wait\", \"pause\" or \"poison\"");
}

static int session_parse_redundancy(struct session *session, const json_t *object,
                                    struct reason *reason)
{
    char word[16] = "none";
    unsigned i = 0;
    int err = session_text(object, "backup", false, session->backup, sizeof(session->backup), reason);

    if (!err && json_object_get(object, "redundancy")) {
        err = session_text(object, "redundancy", true, word, sizeof(word), reason);
    }
    while (!err && *engine_redundancy_name(i) && strcmp(word, engine_redundancy_name(i)) != 0) {
        i++;
    }
    if (err || !*engine_redundancy_name(i)) {
        return err ? err
                   : reason_set(reason, -EINVAL,
                                "'redundancy' must be \"none\", \"replica\" or \"backup\"");
    }
    session->redundancy = (enum engine_redundancy)i;
    if (session->redundancy == ENGINE_REDUNDANCY_REPLICA &&
        json_array_size(json_object_get(object, "subhosts")) < 2) {
        return reason_set(reason, -EINVAL, "'redundancy' \"replica\" needs two sub-hosts");
    }
    if (session->redundancy == ENGINE_REDUNDANCY_BACKUP && session->backup[0] != '/') {
        return reason_set(reason, -EINVAL,
                          "'redundancy' \"backup\" needs 'backup', a folder's whole path");
    }
    return 0;
}

static int session_parse_limits(struct session *session, const json_t *object,
                                struct reason *reason)
{
    uint64_t n;
    int err = session_number(object, "budget", 0, INT64_MAX, &session->budget, reason);

    if (!err && session->budget < 16 * MIB) {
        err = reason_set(reason, -EINVAL, "'budget' must be at least 16 MiB");
    }
    if (!err) {
        err = session_number(object, "high_watermark", session->budget - session->budget / 32,
                             session->budget, &session->high_watermark, reason);
    }
    if (!err) {
        err = session_number(object, "low_watermark", session->budget - session->budget / 16,
                             session->high_watermark, &session->low_watermark, reason);
    }
    if (!err) {
        err = session_number(object, "granule", 64 * KIB, CHUNK_BYTES, &session->granule, reason);
    }
    if (!err && (session->granule < PAGE_BYTES || session->granule & (session->granule - 1))) {
        err = reason_set(reason, -EINVAL, "'granule' must be a power of two from 4 KiB to 2 MiB");
    }
    if (!err) {
        err = session_number(object, "prefetch", 32, 512, &n, reason);
        session->prefetch = (unsigned)n;
    }
    if (!err) {
        err = session_number(object, "sample_period_ms", 2000, 3600000, &n, reason);
        session->sample_period_ms = (unsigned)n;
    }
    if (!err) {
        err = session_number(object, "lost_after_ms", 30000, 86400000, &n, reason);
        session->lost_after_ms = (unsigned)n;
    }
    if (!err) {
        err = session_number(object, "slab", PAGEMAP_SLAB_BYTES, PAGEMAP_SLAB_MAX, &session->slab,
                             reason);
    }
    if (!err && !pagemap_slab_size_ok(session->slab)) {
        err = reason_set(reason, -EINVAL, "'slab' must be a power of two from 2 MiB to 4 GiB");
    }
    if (!err) {
        err = session_number(object, "choices", 2, ENGINE_MAX_CHOICES, &n, reason);
        session->choices = n ? (unsigned)n : 1;
    }
    err = err ? err : session_parse_loss(session, object, reason);
    return err ? err : session_parse_redundancy(session, object, reason);
}

static int session_parse_blocks(struct session *session, const json_t *blocks,
                                struct reason *reason)
{
    size_t n = json_array_size(blocks);
    int err = 0;

    if (n > HANDOFF_MAX_BLOCKS) {
        return reason_set(reason, -EINVAL, "there are at most %u RAM blocks", HANDOFF_MAX_BLOCKS);
    }
    for (size_t i = 0; i < n && !err; i++) {
        struct session_block *block = &session->block[i];
        const json_t *object = json_array_get(blocks, i);
        err = session_text(object, "idstr", true, block->idstr, sizeof(block->idstr), reason);
        if (!err) {
            err = session_number(object, "size", 0, SESSION_MAX_BLOCK, &block->size, reason);
        }
        if (!err) {
            err = session_number(object, "inode", 0, INT64_MAX, &block->inode, reason);
        }
    }
    session->n_blocks = (uint32_t)n;
    return err;
}

int session_parse(struct session *session, const json_t *object, struct reason *reason)
{
    const json_t *subhosts = json_object_get(object, "subhosts");
    size_t n = json_array_size(subhosts);
    char migration[64];
    uint64_t number;

    memset(session, 0, sizeof(*session));
    int err = session_text(object, "migration", true, migration, sizeof(migration), reason);
    if (!err && units_parse_uuid(migration, session->migration) < 0) {
        err = reason_set(reason, -EINVAL, "'migration' must be a UUID");
    }
    if (!err) {
        err = session_parse_limits(session, object, reason);
    }
    if (!err) {
        err = session_text(object, "predictor", false, session->predictor,
                           sizeof(session->predictor), reason);
    }
    if (!err && (n < 1 || n > PAGEMAP_MAX_SUBHOSTS)) {
        err = reason_set(reason, -EINVAL, "'subhosts' must be an array of 1 to %u sub-hosts",
                         PAGEMAP_MAX_SUBHOSTS);
    }
    for (size_t i = 0; i < n && !err; i++) {
        err = session_parse_subhost(&session->subhost[i], json_array_get(subhosts, i), reason);
    }
    session->n_subhosts = (unsigned)n;
    if (!err) {
        err = session_number(object, "qemu_pid", 0, INT32_MAX, &number, reason);
        session->qemu_pid = (pid_t)number;
    }
    if (!err) {
        err = session_parse_blocks(session, json_object_get(object, "blocks"), reason);
    }
    if (!err) {
        err = session_number(object, "qemu_start", 0, INT64_MAX, &session->qemu_start, reason);
    }
    return err;
}

static json_t *session_to_json(const struct session *session)
{
    char migration[UUID_TEXT_LEN];
    json_t *subhosts = json_array();
    json_t *blocks = json_array();

    for (uint32_t i = 0; i < session->n_blocks; i++) {
        const struct session_block *block = &session->block[i];
        json_array_append_new(blocks, json_pack("{s:s, s:I, s:I}", "idstr", block->idstr, "size",
                                                (json_int_t)block->size, "inode",
                                                (json_int_t)block->inode));
    }
    for (unsigned i = 0; i < session->n_subhosts; i++) {
        const struct session_subhost *subhost = &session->subhost[i];
        char data[ENDPOINT_TEXT_LEN];
        char control[ENDPOINT_TEXT_LEN];
        json_array_append_new(
            subhosts, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "name", subhost->name, "data",
                                endpoint_format(&subhost->data, data), "control",
                                endpoint_format(&subhost->control, control), "export",
                                subhost->export_name, "ticket", subhost->ticket, "weight",
                                (json_int_t)subhost->weight));
        rdma_choice_add(json_array_get(subhosts, i), &subhost->rdma, subhost->has_rdma,
                        subhost->tcp_will_do);
    }
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:s, s:s, s:I, s:i, s:o, s:o, s:i, s:I}",
        "state", "split", "redundancy", engine_redundancy_name(session->redundancy), "backup",
        session->backup,
        "migration", units_format_uuid(session->migration, migration), "budget",
        (json_int_t)session->budget, "low_watermark", (json_int_t)session->low_watermark,
        "high_watermark", (json_int_t)session->high_watermark, "granule",
        (json_int_t)session->granule, "prefetch", (int)session->prefetch, "sample_period_ms",
        (int)session->sample_period_ms, "lost_after_ms", (int)session->lost_after_ms, "lost_action",
        session_loss_names[session->lost_action], "predictor",
        session->predictor, "slab", (json_int_t)session->slab, "choices", (int)session->choices,
        "subhosts", subhosts, "blocks", blocks, "qemu_pid", (int)session->qemu_pid, "qemu_start",
        (json_int_t)session->qemu_start);
}

int session_save(const struct session *session, const char *dir)
{
    char path[300];
    char temporary[300];

    snprintf(path, sizeof(path), "%s/session.json", dir);
    snprintf(temporary, sizeof(temporary), "%s/session.json.new", dir);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    json_t *object = session_to_json(session);
    int err = json_dumpfd(object, fd, JSON_INDENT(2)) < 0 ? -EIO : 0;
    json_decref(object);
    if (close(fd) < 0 && !err) {
        err = -errno;
    }
    if (!err && rename(temporary, path) < 0) {
        err = -errno;
    }
    if (err) {
        unlink(temporary);
    }
    return err;
}

int session_load(struct session *session, const char *dir, struct reason *reason)
{
    char path[300];
    json_error_t error;

    snprintf(path, sizeof(path), "%s/session.json", dir);
    if (access(path, F_OK) < 0) {
        return -errno;
    }
    json_t *object = json_load_file(path, 0, &error);
    if (!object) {
        return reason_set(reason, -EINVAL, "%s line %d: %.100s", path, error.line, error.text);
    }
    int err = session_parse(session, object, reason);
    json_decref(object);
    return err;
}

uint64_t session_process_start(pid_t pid)
{
    char path[64];
    char text[1024];

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    /* Field 22; the command's name, field 2, may hold blanks and brackets: start after its end. */
    char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++) {
        p = strchr(p + 1, ' ');
    }
    return p ? strtoull(p + 1, NULL, 10) : 0;
}

/* Run @verb on a sub-host; @args are stolen. */
static int session_call(const struct session_subhost *subhost, const char *verb, json_t *args,
                        json_t **result, struct reason *reason)
{
    struct control_client *client;
    struct reason why = {""};

    int err = control_connect(&client, &subhost->control, SESSION_CONTROL_TIMEOUT_MS, &why);
    if (err) {
        json_decref(args);
    } else {
        err = control_call(client, verb, args, result, SESSION_CONTROL_TIMEOUT_MS, &why);
        control_close(client);
    }
    return err ? reason_set(reason, err, "sub-host '%s': %.180s", subhost->name, why.text) : 0;
}

static int session_region(const struct session_subhost *subhost, const char *verb, const char *uuid,
                          struct reason *reason)
{
    json_t *args = json_pack("{s:s}", "name", uuid);

    if (subhost->ticket[0]) {
        json_object_set_new(args, "ticket", json_string(subhost->ticket));
    }
    return session_call(subhost, verb, args, NULL, reason);
}

/* The migration's ticket, which its source knows too, ends here: the region gets one of our own. */
static int session_keep_region(struct session_subhost *subhost, const char *uuid,
                               struct reason *reason)
{
    uint8_t random[SESSION_TICKET_BYTES];
    char ticket[2 * SESSION_TICKET_BYTES + 1];

    if (!subhost->ticket[0]) {
        return session_region(subhost, "region-keep", uuid, reason);
    }
    units_random(random, sizeof(random));
    for (size_t i = 0; i < sizeof(random); i++) {
        snprintf(ticket + 2 * i, 3, "%02x", random[i]);
    }
    int err = session_call(subhost, "region-keep",
                           json_pack("{s:s, s:s, s:s}", "name", uuid, "ticket", subhost->ticket,
                                     "new_ticket", ticket),
                           NULL, reason);
    if (!err) {
        memcpy(subhost->ticket, ticket, sizeof(ticket));
        snprintf(subhost->export_name, sizeof(subhost->export_name), "%s.%s", uuid, ticket);
    }
    explicit_bzero(ticket, sizeof(ticket));
    return err;
}

struct session_keep {
    struct session_subhost *subhost;
    const char *uuid;
    pthread_t thread;
    bool started;
    int err;
    struct reason reason;
};

static void *session_keep_main(void *arg)
{
    struct session_keep *keep = arg;

    keep->err = session_keep_region(keep->subhost, keep->uuid, &keep->reason);
    return NULL;
}

/* All at once: the guest stands still meanwhile, and each takes a connection and its TLS handshake. */
int session_keep_regions(struct session *session, const char *uuid, struct reason *reason)
{
    struct session_keep keep[PAGEMAP_MAX_SUBHOSTS];
    int err = 0;

    for (unsigned i = 0; i < session->n_subhosts; i++) {
        keep[i] = (struct session_keep){.subhost = &session->subhost[i], .uuid = uuid};
        keep[i].started = pthread_create(&keep[i].thread, NULL, session_keep_main, &keep[i]) == 0;
        if (!keep[i].started) {
            session_keep_main(&keep[i]);
        }
    }
    for (unsigned i = 0; i < session->n_subhosts; i++) {
        if (keep[i].started) {
            pthread_join(keep[i].thread, NULL);
        }
        if (keep[i].err && !err) {
            err = keep[i].err;
            *reason = keep[i].reason;
        }
    }
    return err;
}

void session_delete_regions(const struct session *session, const char *uuid)
{
    for (unsigned i = 0; i < session->n_subhosts; i++) {
        struct reason reason = {""};
        int err = session_region(&session->subhost[i], "region-delete", uuid, &reason);
        if (err && err != -ENOENT) {
            log_warn("the region of guest %s could not be freed: %s", uuid, reason.text);
        }
    }
    if (session->redundancy == ENGINE_REDUNDANCY_BACKUP) {
        char path[512];
        int err = backup_path(session->backup, uuid, path, sizeof(path));
        if (err || (unlink(path) < 0 && errno != ENOENT)) {
            log_warn("the backup of guest %s in %s could not be removed: %s", uuid,
                     session->backup, strerror(err ? -err : errno));
        }
    }
}

static uint64_t session_bytes(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));

    return value > 0 ? (uint64_t)value : 0;
}

/* As subhost-server/quota.c counts: what was reserved is sure, beyond it the host's free memory. */
static void session_region_room(const json_t *region, uint64_t free_bytes, uint64_t *stored,
                                uint64_t *room)
{
    uint64_t limit = session_bytes(region, "limit");
    uint64_t reserve = session_bytes(region, "reserve");

    *stored = session_bytes(region, "stored");
    uint64_t below = limit > *stored ? limit - *stored : 0;
    *room = free_bytes + (reserve > *stored ? reserve - *stored : 0);
    *room = *room < below ? *room : below;
}

int session_room(const struct session *session, unsigned i, const char *uuid, uint64_t *stored,
                 uint64_t *room, struct reason *reason)
{
    const struct session_subhost *subhost = &session->subhost[i];
    json_t *status = NULL;
    json_t *regions = NULL;
    json_t *region;
    size_t k;

    *stored = *room = 0;
    int err = session_call(subhost, "query-status", NULL, &status, reason);
    if (!err) {
        err = session_call(subhost, "region-list", NULL, &regions, reason);
    }
    json_array_foreach(regions, k, region) {
        const char *name = json_string_value(json_object_get(region, "name"));
        if (name && strcmp(name, uuid) == 0) {
            session_region_room(region, session_bytes(status, "free"), stored, room);
        }
    }
    json_decref(regions);
    json_decref(status);
    return err;
}

void session_remove(const char *dir)
{
    static const char *const names[] = {"map",         "session.json", "session.json.new",
                                        "worker.sock", "attach.sock",  "worker.pid"};
    char path[300];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}
