// SPDX-License-Identifier: GPL-2.0-or-later
/* policy.c - the table of keys, their values, and what must hold of all of them together */
#include "common/policy_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/pack.h"

#define MAIN(field) offsetof(struct policy, field)
#define SUBHOST(field) offsetof(struct policy_subhost, field)

const struct policy_key policy_keys[] = {
    {"main", "budget", MAIN(budget), POLICY_MIN_BUDGET, INT64_MAX, POLICY_SIZE, false},
    {"main", "low-watermark", MAIN(low_watermark), 1, INT64_MAX, POLICY_MARK, false},
    {"main", "high-watermark", MAIN(high_watermark), 1, INT64_MAX, POLICY_MARK, false},
    {POLICY_SUBHOST, "uri", SUBHOST(control), 0, 0, POLICY_URI, false},
    {POLICY_SUBHOST, "fallback", SUBHOST(tcp_will_do), 0, 0, POLICY_FALLBACK, false},
    {POLICY_SUBHOST, "memory", SUBHOST(memory), CHUNK_BYTES, INT64_MAX, POLICY_SIZE, false},
    {POLICY_SUBHOST, "weight", SUBHOST(weight), 0, 1000, POLICY_NUMBER, false},
    {"pages", "granule", MAIN(granule), PAGE_BYTES, CHUNK_BYTES, POLICY_SIZE, true},
    {"pages", "prefetch", MAIN(prefetch), 0, 512, POLICY_NUMBER, false},
    {"pages", "slab", MAIN(slab), PAGEMAP_SLAB_MIN, PAGEMAP_SLAB_MAX, POLICY_SIZE, true},
    {"pages", "choices", MAIN(choices), 1, POLICY_MAX_CHOICES, POLICY_NUMBER, false},
    {"pages", "subhost-timeout", MAIN(subhost_timeout_s), 1, 86400, POLICY_NUMBER, false},
    {"pages", "subhost-lost", MAIN(subhost_lost), 0, 0, POLICY_LOSS, false},
    {"redundancy", "redundancy", MAIN(redundancy), 0, 0, POLICY_REDUNDANCY, false},
    {"redundancy", "backup", MAIN(backup), 0, 0, POLICY_DIRECTORY, false},
    {"predictor", "policy", MAIN(predictor), 0, 0, POLICY_PREDICTOR, false},
    {"predictor", "profile-seconds", MAIN(profile_seconds), 0, 3600, POLICY_NUMBER, false},
    {"predictor", "period-ms", MAIN(period_ms), 10, 3600000, POLICY_NUMBER, false},
    {"migration", "bandwidth", MAIN(bandwidth), 0, INT64_MAX, POLICY_SIZE, false},
    {"migration", "downtime", MAIN(downtime_ms), 1, 2000000, POLICY_NUMBER, false},
    {"migration", "connections", MAIN(connections), 1, 16, POLICY_NUMBER, false},
    {"migration", "compress", MAIN(compress), 0, 0, POLICY_COMPRESS, false},
    {"migration", "timeout", MAIN(timeout_s), 0, 604800, POLICY_NUMBER, false},
    {"migration", "ticket-seconds", MAIN(ticket_seconds), 1, 86400, POLICY_NUMBER, false},
    {"tls", "tls-certificates", MAIN(tls_certificates), 0, 0, POLICY_TEXT, false},
    {"tls", "tls-psk", MAIN(tls_psk), 0, 0, POLICY_TEXT, false},
    {"tls", "tls-username", MAIN(tls_username), 0, 0, POLICY_TEXT, false},
};

const size_t policy_n_keys = sizeof(policy_keys) / sizeof(policy_keys[0]);
_Static_assert(sizeof(policy_keys) / sizeof(policy_keys[0]) <= POLICY_MAX_KEYS,
               "struct policy has a line for each key");

void policy_init(struct policy *policy, const char *const *predictors)
{
    memset(policy, 0, sizeof(*policy));
    policy->predictors = predictors;
    policy->low_watermark = (struct policy_mark){.value = 94, .percent = true};
    policy->high_watermark = (struct policy_mark){.value = 97, .percent = true};
    policy->granule = 64 * KIB;
    policy->prefetch = 32;
    policy->slab = PAGEMAP_SLAB_BYTES;
    policy->choices = 2;
    policy->subhost_timeout_s = 30;
    memcpy(policy->subhost_lost, "poison", sizeof("poison"));
    memcpy(policy->redundancy, "none", sizeof("none"));
    snprintf(policy->predictor, sizeof(policy->predictor), "%s", predictors[0]);
    policy->profile_seconds = 5;
    policy->period_ms = 200;
    policy->downtime_ms = 300;
    policy->connections = 2;
    memcpy(policy->compress, "none", sizeof("none"));
    policy->ticket_seconds = 600;
}

uint64_t policy_mark_bytes(const struct policy *policy, const struct policy_mark *mark)
{
    return mark->percent ? (uint64_t)((unsigned __int128)policy->budget * mark->value / 100)
                         : mark->value;
}

/* ---- values ---- */

static int policy_parse_number(const struct policy_key *key, const char *value, uint64_t *to,
                               struct reason *reason)
{
    char *end;

    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)*value) || *end || errno || n < key->least || n > key->most) {
        return reason_set(reason, -EINVAL,
                          "%s '%.64s' is out of range: it must be a whole number from %llu to %llu",
                          key->name, value, (unsigned long long)key->least,
                          (unsigned long long)key->most);
    }
    *to = n;
    return 0;
}

static int policy_parse_size(const struct policy_key *key, const char *value, uint64_t *to,
                             struct reason *reason)
{
    char least[32];
    char most[32];
    uint64_t bytes;

    int err = units_parse_size(value, MIB, &bytes);
    if (err == -ERANGE || (!err && bytes > INT64_MAX)) {
        return reason_set(reason, -EINVAL, "%s '%.64s' is too large for a size", key->name, value);
    }
    if (err) {
        return reason_set(reason, -EINVAL,
                          "%s '%.64s' is not a size: it must be a whole number with or without a "
                          "unit (KiB, MiB, GiB, TiB; MiB if there is none)",
                          key->name, value);
    }
    if (bytes < key->least) {
        return reason_set(reason, -EINVAL, "%s '%.64s' is too small: it must be at least %s",
                          key->name, value, units_format_size(key->least, least, sizeof(least)));
    }
    if (bytes > key->most || (key->power_of_two && bytes & (bytes - 1))) {
        return reason_set(reason, -EINVAL, "%s '%.64s' must be %s from %s to %s", key->name, value,
                          key->power_of_two ? "a power of two" : "a size",
                          units_format_size(key->least, least, sizeof(least)),
                          units_format_size(key->most, most, sizeof(most)));
    }
    *to = bytes;
    return 0;
}

static int policy_parse_mark(const struct policy_key *key, const char *value,
                             struct policy_mark *mark, struct reason *reason)
{
    size_t length = strlen(value);
    char *end;

    if (length == 0 || value[length - 1] != '%') {
        mark->percent = false;
        return policy_parse_size(key, value, &mark->value, reason);
    }
    unsigned long long percent = strtoull(value, &end, 10);
    while (isspace((unsigned char)*end)) {
        end++;
    }
    if (!isdigit((unsigned char)*value) || end != value + length - 1 || percent < 1 ||
        percent > 100) {
        return reason_set(reason, -EINVAL,
                          "%s '%.64s' must be 1%% to 100%% of the budget, or a size", key->name,
                          value);
    }
    mark->percent = true;
    mark->value = percent;
    return 0;
}

static int policy_parse_text(const struct policy_key *key, const char *value,
                             char to[POLICY_TEXT_LEN], struct reason *reason)
{
    size_t length = strlen(value);

    if (length == 0 || length >= POLICY_TEXT_LEN) {
        return reason_set(reason, -EINVAL, "%s must have 1 to %d characters", key->name,
                          POLICY_TEXT_LEN - 1);
    }
    memcpy(to, value, length + 1);
    return 0;
}

static int policy_parse_predictor(struct policy *policy, const char *value, struct reason *reason)
{
    char known[128] = "";

    for (const char *const *name = policy->predictors; *name; name++) {
        if (strcmp(*name, value) == 0) {
            snprintf(policy->predictor, sizeof(policy->predictor), "%s", value);
            return 0;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", used ? ", " : "", *name);
    }
    return reason_set(reason, -EINVAL, "policy '%.64s' is not known: it must be one of %s", value,
                      known);
}

static int policy_parse_loss(char to[POLICY_WORD_LEN], const char *value, struct reason *reason)
{
    if (strcmp(value, "wait") != 0 && strcmp(value, "pause") != 0 && strcmp(value, "poison") != 0) {
        return reason_set(reason, -EINVAL, "subhost-lost '%.64s' must be wait, pause or poison",
                          value);
    }
    memcpy(to, value, strlen(value) + 1);
    return 0;
}

static int policy_parse_redundancy(char to[POLICY_WORD_LEN], const char *value,
                                   struct reason *reason)
{
    if (strcmp(value, "none") != 0 && strcmp(value, "replica") != 0 &&
        strcmp(value, "backup") != 0) {
        return reason_set(reason, -EINVAL, "redundancy '%.64s' must be none, replica or backup",
                          value);
    }
    memcpy(to, value, strlen(value) + 1);
    return 0;
}

static int policy_parse_compress(char to[POLICY_WORD_LEN], const char *value, struct reason *reason)
{
    if (strcmp(value, "adaptive") != 0 && pack_method_parse(value) == PACK_METHODS) {
        return reason_set(reason, -EINVAL, "compress '%.64s' must be none, lz4, zstd or adaptive",
                          value);
    }
    memcpy(to, value, strlen(value) + 1);
    return 0;
}

static int policy_parse_directory(const struct policy_key *key, const char *value,
                                  char to[POLICY_TEXT_LEN], struct reason *reason)
{
    if (value[0] != '/') {
        return reason_set(reason, -EINVAL,
                          "%s '%.64s' must be a folder's whole path on the main host, from /",
                          key->name, value);
    }
    return policy_parse_text(key, value, to, reason);
}

bool policy_uri_is_rdma(const char *uri)
{
    return strncmp(uri, "rdma", 4) == 0;
}

int policy_parse_uri(const char *uri, struct endpoint *endpoint, struct reason *reason)
{
    static const char *const schemes[] = {"://", "+tcp://", "+tls://"};
    enum { BY_HOST, TCP, TLS, NONE } transport = BY_HOST;
    bool subhost = strncmp(uri, "subhost", 7) == 0;
    const char *what = uri + (subhost ? 7 : policy_uri_is_rdma(uri) ? 4 : strlen(uri));
    char text[ENDPOINT_TEXT_LEN];

    while (transport < NONE && strncmp(what, schemes[transport], strlen(schemes[transport])) != 0) {
        transport++;
    }
    const char *rest = transport < NONE ? what + strlen(schemes[transport]) : uri;
    if (transport == NONE || (*rest == '/' && transport != BY_HOST)) {
        return reason_set(reason, -EINVAL,
                          "uri '%.80s' must be subhost://HOST[:PORT] or subhost:///PATH, or "
                          "subhost+tls:// or subhost+tcp://HOST[:PORT]; or with rdma for "
                          "subhost",
                          uri);
    }
    if (*rest == '/') {
        snprintf(text, sizeof(text), "unix:%s", rest);
        return endpoint_parse(text, endpoint, reason);
    }
    if (!*rest || *rest == ':' || strpbrk(rest, "/?#@")) {
        return reason_set(reason, -EINVAL,
                          "uri '%.100s' must name a host, and nothing but a port after it", uri);
    }
    const char *bracket = strchr(rest, ']');
    bool has_port = strchr(bracket ? bracket : rest, ':') != NULL;
    if (has_port) {
        snprintf(text, sizeof(text), "tcp:%s", rest);
    } else {
        snprintf(text, sizeof(text), "tcp:%s:%d", rest, POLICY_SUBHOST_PORT);
    }
    int err = endpoint_parse(text, endpoint, reason);
    if (!err) {
        endpoint->tls =
            transport == TLS || (transport == BY_HOST && !endpoint_is_local(endpoint));
    }
    if (!err && endpoint->port == 0) {
        err = reason_set(reason, -EINVAL, "uri '%.100s' must have a port from 1 to 65535", uri);
    }
    return err;
}

static int policy_set_uri(struct policy *policy, struct policy_subhost *subhost, const char *value,
                          struct reason *reason)
{
    struct endpoint endpoint;
    char ours[ENDPOINT_TEXT_LEN];
    char theirs[ENDPOINT_TEXT_LEN];

    int err = policy_parse_uri(value, &endpoint, reason);
    if (err) {
        return err;
    }
    endpoint_format(&endpoint, ours);
    for (unsigned i = 0; i < policy->n_subhosts; i++) {
        const struct policy_subhost *other = &policy->subhost[i];
        if (other->control.host[0] && strcmp(endpoint_format(&other->control, theirs), ours) == 0) {
            return reason_set(reason, -EINVAL,
                              "uri '%.100s' is sub-host '%s' already, of line %u: each sub-host "
                              "must be listed once",
                              value, other->name, other->line);
        }
    }
    subhost->control = endpoint;
    subhost->rdma = policy_uri_is_rdma(value);
    return 0;
}

static int policy_parse_fallback(bool *tcp_will_do, const char *value, struct reason *reason)
{
    *tcp_will_do = strcmp(value, "tcp") == 0;
    if (!*tcp_will_do && strcmp(value, "none") != 0) {
        return reason_set(reason, -EINVAL,
                          "fallback '%.64s' must be tcp or none: what to do if RDMA does not come up",
                          value);
    }
    return 0;
}

int policy_set(struct policy *policy, struct policy_subhost *subhost, const struct policy_key *key,
               const char *value, struct reason *reason)
{
    void *to = (char *)(subhost ? (void *)subhost : (void *)policy) + key->offset;

    switch (key->type) {
    case POLICY_SIZE:
        return policy_parse_size(key, value, to, reason);
    case POLICY_MARK:
        return policy_parse_mark(key, value, to, reason);
    case POLICY_NUMBER:
        return policy_parse_number(key, value, to, reason);
    case POLICY_TEXT:
        return policy_parse_text(key, value, to, reason);
    case POLICY_PREDICTOR:
        return policy_parse_predictor(policy, value, reason);
    case POLICY_LOSS:
        return policy_parse_loss(to, value, reason);
    case POLICY_REDUNDANCY:
        return policy_parse_redundancy(to, value, reason);
    case POLICY_DIRECTORY:
        return policy_parse_directory(key, value, to, reason);
    case POLICY_COMPRESS:
        return policy_parse_compress(to, value, reason);
    case POLICY_FALLBACK:
        return policy_parse_fallback(to, value, reason);
    case POLICY_URI:
        return subhost ? policy_set_uri(policy, subhost, value, reason) : -EINVAL;
    }
    return -EINVAL;
}

/* ---- options, and the whole ---- */

/* The predictor's key has no option: --policy names the file. */
static const struct policy_key *policy_option(const char *name)
{
    for (size_t i = 0; i < policy_n_keys; i++) {
        if (policy_keys[i].type != POLICY_PREDICTOR &&
            strcmp(policy_keys[i].section, POLICY_SUBHOST) != 0 &&
            strcmp(policy_keys[i].name, name) == 0) {
            return &policy_keys[i];
        }
    }
    return NULL;
}

bool policy_key(size_t i, const char **section, const char **name)
{
    if (i >= policy_n_keys) {
        return false;
    }
    *section = policy_keys[i].section;
    *name = policy_keys[i].name;
    return true;
}

bool policy_has_option(const char *name)
{
    return policy_option(name) != NULL;
}

int policy_set_option(struct policy *policy, const char *name, const char *value,
                      struct reason *reason)
{
    const struct policy_key *key = policy_option(name);
    struct reason why;

    if (!key) {
        return reason_set(reason, -EINVAL, "--%s: there is no such setting", name);
    }
    policy->key_line[key - policy_keys] = 0;
    int err = policy_set(policy, NULL, key, value, &why);
    return err ? reason_set(reason, err, "--%s: %s", name, why.text) : 0;
}

/* The place of a key that was set in the file, for the start of a sentence. */
static const char *policy_place(const struct policy *policy, const char *name, char *text,
                                size_t size)
{
    const struct policy_key *key = policy_option(name);
    unsigned line = key ? policy->key_line[key - policy_keys] : 0;

    if (line) {
        snprintf(text, size, "%.80s:%u: ", policy->file, line);
    } else if (policy->file[0]) {
        snprintf(text, size, "%.80s: ", policy->file);
    } else {
        text[0] = '\0';
    }
    return text;
}

static int policy_check_marks(const struct policy *policy, struct reason *reason)
{
    uint64_t low = policy_mark_bytes(policy, &policy->low_watermark);
    uint64_t high = policy_mark_bytes(policy, &policy->high_watermark);
    char place[128];
    char a[32];
    char b[32];

    if (high > policy->budget) {
        return reason_set(
            reason, -EINVAL, "%shigh-watermark (%s) must not be above the budget (%s)",
            policy_place(policy, "high-watermark", place, sizeof(place)),
            units_format_size(high, a, sizeof(a)), units_format_size(policy->budget, b, sizeof(b)));
    }
    if (low > high) {
        return reason_set(
            reason, -EINVAL, "%slow-watermark (%s) must not be above high-watermark (%s)",
            policy_place(policy, "low-watermark", place, sizeof(place)),
            units_format_size(low, a, sizeof(a)), units_format_size(high, b, sizeof(b)));
    }
    return 0;
}

static int policy_check_redundancy(const struct policy *policy, struct reason *reason)
{
    bool backup = strcmp(policy->redundancy, "backup") == 0;
    char place[128];

    if (strcmp(policy->redundancy, "replica") == 0 && policy->n_subhosts < 2) {
        return reason_set(reason, -EINVAL,
                          "%sredundancy = replica needs at least two sub-hosts, and there is one",
                          policy_place(policy, "redundancy", place, sizeof(place)));
    }
    if (backup && !policy->backup[0]) {
        return reason_set(reason, -EINVAL,
                          "%sredundancy = backup needs a folder: backup = DIR must be there, too",
                          policy_place(policy, "redundancy", place, sizeof(place)));
    }
    if (!backup && policy->backup[0]) {
        return reason_set(reason, -EINVAL,
                          "%sbackup is used with redundancy = backup only, and that is %s",
                          policy_place(policy, "backup", place, sizeof(place)),
                          policy->redundancy);
    }
    return 0;
}

int policy_check(const struct policy *policy, struct reason *reason)
{
    uint64_t weights = 0;
    char place[128];

    if (policy->budget == 0) {
        return reason_set(reason, -EINVAL,
                          "%sbudget is missing: section [main] must say how much memory the guest "
                          "may have on the main host",
                          policy_place(policy, "budget", place, sizeof(place)));
    }
    int err = policy_check_marks(policy, reason);
    if (err) {
        return err;
    }
    if (policy->n_subhosts == 0) {
        return reason_set(reason, -EINVAL,
                          "%sthere is no sub-host: at least one section [subhost NAME] with a uri "
                          "must be there",
                          policy_place(policy, "", place, sizeof(place)));
    }
    for (unsigned i = 0; i < policy->n_subhosts; i++) {
        const struct policy_subhost *subhost = &policy->subhost[i];
        if (!subhost->control.host[0]) {
            return reason_set(reason, -EINVAL,
                              "%.80s:%u: [subhost %s] has no uri: it must have "
                              "uri = subhost://HOST[:PORT]",
                              policy->file, subhost->line, subhost->name);
        }
        weights += subhost->weight;
    }
    if (weights == 0) {
        return reason_set(reason, -EINVAL,
                          "%.80s:%u: every sub-host's weight is 0: at least one must be above 0",
                          policy->file, policy->subhost[0].line);
    }
    return policy_check_redundancy(policy, reason);
}
