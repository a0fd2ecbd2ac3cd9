// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/ticket.h"
#include "common/units.h"
#include "subhost-server/statedir.h"

#define STRICT "/strict"

void store_init(struct store *store, uint64_t memory)
{
    memset(store, 0, sizeof(*store));
    pthread_mutex_init(&store->lock, NULL);
    quota_init(&store->quota, memory);
}

static bool word_is_valid(const char *word)
{
    size_t length = strspn(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");

    return length > 0 && length <= STORE_WORD_MAX && word[length] == '\0';
}

/* Take as long for a wrong ticket as for a right one. */
static bool ticket_matches(const char right[STORE_WORD_MAX + 1], const char *ticket, size_t length)
{
    unsigned char given[STORE_WORD_MAX + 1] = {0};
    unsigned difference = length > STORE_WORD_MAX;

    memcpy(given, ticket, length > STORE_WORD_MAX ? STORE_WORD_MAX : length);
    for (size_t i = 0; i < sizeof(given); i++) {
        difference |= given[i] ^ (unsigned char)right[i];
    }
    return difference == 0;
}

/* Judge a ticket. Return: 0, -EKEYEXPIRED for the one that a guarded region had before, -EACCES. */
static int ticket_check(const struct store_entry *entry, const char *ticket, size_t length)
{
    bool right = ticket_matches(entry->ticket, ticket, length);
    bool before = entry->expired[0] && ticket_matches(entry->expired, ticket, length);

    return right ? 0 : before ? -EKEYEXPIRED : -EACCES;
}

/* Caller holds the lock.  Return: the link that points to the entry, or to NULL. */
static struct store_entry **find(struct store *store, const char *name, size_t length)
{
    struct store_entry **link = &store->entries;

    if (length > STORE_WORD_MAX) {
        length = STORE_WORD_MAX + 1; /* no name is that long: finds nothing */
    }
    while (*link && (strnlen((*link)->name, STORE_WORD_MAX) != length ||
                     memcmp((*link)->name, name, length) != 0)) {
        link = &(*link)->next;
    }
    return link;
}

/* Caller holds the lock: find a control client's entry; NULL, and *err and @reason, if there is none. */
static struct store_entry **find_checked(struct store *store, const char *name, const char *ticket,
                                         int *err, struct reason *reason)
{
    const char *given = ticket ? ticket : "";
    struct store_entry **link = find(store, name, strlen(name));

    *err = 0;
    if (!word_is_valid(name) || !*link) {
        *err = reason_set(reason, -ENOENT, "there is no region '%.*s'", STORE_WORD_MAX, name);
        return NULL;
    }
    *err = ticket_check(*link, given, strlen(given));
    if (*err) {
        reason_set(reason, *err, *err == -EKEYEXPIRED ? "this ticket of region '%s' has expired"
                                                      : "this is not the ticket of region '%s'",
                   name);
        return NULL;
    }
    return link;
}

static struct store_entry *entry_new(const struct store_request *request, struct region *region)
{
    struct store_entry *entry = calloc(1, sizeof(*entry));

    if (entry) {
        entry->region = region;
        entry->owner = entry->creator = request->owner;
        entry->expires_us =
            request->ticket_seconds ? units_now_us() + request->ticket_seconds * 1000000 : 0;
        entry->slab = request->slab ? request->slab : STORE_SLAB_BYTES;
        memcpy(entry->name, request->name, strlen(request->name));
        if (request->ticket) {
            memcpy(entry->ticket, request->ticket, strlen(request->ticket));
        }
    }
    return entry;
}

static void remove_files(struct store *store, const char *name)
{
    if (store->state) {
        statedir_remove(store->state, name);
    }
}

static int new_region(struct store *store, const struct store_request *request,
                      struct region **region, struct reason *reason)
{
    if (!store->state) {
        return region_new(region, &store->quota, request->size, request->reserve, request->limit,
                          reason);
    }
    struct region_place place = {.dir = store->state->dir, .name = request->name};
    int err = region_new_at(region, &store->quota, request->size, request->reserve,
                            request->limit, &place, reason);
    if (err) {
        remove_files(store, request->name);
    }
    return err;
}

/* Caller holds the lock. */
static int create_locked(struct store *store, const struct store_request *request,
                         struct reason *reason)
{
    struct store_entry **link = find(store, request->name, strlen(request->name));
    struct region *region;

    if (*link) {
        return reason_set(reason, -EEXIST, "there is a region '%s' already", request->name);
    }
    if (store->n_regions == STORE_MAX_REGIONS) {
        return reason_set(reason, -ENOSPC, "there are %u regions already", store->n_regions);
    }
    int err = new_region(store, request, &region, reason);
    if (err) {
        return err;
    }
    *link = entry_new(request, region);
    if (!*link) {
        region_unref(region);
        remove_files(store, request->name);
        return reason_set(reason, -ENOMEM, "no memory for another region");
    }
    store->n_regions++;
    return 0;
}

int store_create(struct store *store, const struct store_request *request, struct reason *reason)
{
    if (!word_is_valid(request->name)) {
        return reason_set(reason, -EINVAL,
                          "a region's name must be 1 to %d letters, digits, '-' or '_'",
                          STORE_WORD_MAX);
    }
    if (request->ticket && !word_is_valid(request->ticket)) {
        return reason_set(reason, -EINVAL, "a ticket must be 1 to %d letters, digits, '-' or '_'",
                          STORE_WORD_MAX);
    }
    pthread_mutex_lock(&store->lock);
    int err = create_locked(store, request, reason);
    pthread_mutex_unlock(&store->lock);
    return err;
}

/* Caller holds the lock. Return: a reference, if the ticket is another one now. */
static struct region *ticket_change(struct store_entry *entry, const char *ticket)
{
    if (ticket_matches(entry->ticket, ticket, strlen(ticket))) {
        return NULL;
    }
    memcpy(entry->expired, entry->ticket, sizeof(entry->expired));
    memset(entry->ticket, 0, sizeof(entry->ticket));
    memcpy(entry->ticket, ticket, strlen(ticket));
    region_new_epoch(entry->region);
    return region_ref(entry->region);
}

/* What holds the lock of its own while it asks for ours must be told without ours. */
static void tell_expired(struct store *store, struct region *region)
{
    if (region && store->expire) {
        store->expire(store->opaque, region);
    }
    if (region) {
        region_unref(region);
    }
}

int store_keep(struct store *store, const char *name, const char *ticket, const char *new_ticket,
               struct reason *reason)
{
    struct region *expired = NULL;
    int err;

    if (new_ticket && (!word_is_valid(new_ticket) || !ticket)) {
        return reason_set(reason, -EINVAL,
                          "a new ticket must be 1 to %d letters, digits, '-' or '_', and follow "
                          "another one",
                          STORE_WORD_MAX);
    }
    pthread_mutex_lock(&store->lock);
    struct store_entry **link = find_checked(store, name, ticket, &err, reason);
    if (link && store->state && ((*link)->owner || new_ticket)) {
        const struct quota_claim *claim = region_claim((*link)->region);
        struct statedir_entry kept = {.name = name,
                                      .ticket = new_ticket ? new_ticket : (*link)->ticket,
                                      .size = region_size((*link)->region),
                                      .reserve = claim->reserve,
                                      .limit = claim->limit,
                                      .slab = (*link)->slab};
        err = statedir_keep(store->state, &kept, reason);
    }
    if (link && !err) {
        (*link)->owner = NULL;
        (*link)->expires_us = 0;
        if (new_ticket) {
            expired = ticket_change(*link, new_ticket);
        }
    }
    pthread_mutex_unlock(&store->lock);
    tell_expired(store, expired);
    return err;
}

int store_visit(struct store *store, const char *name, const char *ticket,
                void (*visit)(void *to, const struct store_entry *entry), void *to,
                struct reason *reason)
{
    int err;

    pthread_mutex_lock(&store->lock);
    struct store_entry **link = find_checked(store, name, ticket, &err, reason);
    if (link) {
        visit(to, *link);
    }
    pthread_mutex_unlock(&store->lock);
    return err;
}

static const char *const redundancies[] = {"none", "replica", "backup", NULL};

bool store_is_redundancy(const char *word)
{
    const char *const *known = redundancies;

    while (*known && strcmp(*known, word) != 0) {
        known++;
    }
    return *known != NULL;
}

int store_note(struct store *store, const char *name, const char *ticket, const char *redundancy,
               uint64_t at_risk, struct reason *reason)
{
    int err;

    pthread_mutex_lock(&store->lock);
    struct store_entry **link = find_checked(store, name, ticket, &err, reason);
    if (link) {
        snprintf((*link)->redundancy, sizeof((*link)->redundancy), "%s", redundancy);
        (*link)->at_risk = at_risk;
    }
    pthread_mutex_unlock(&store->lock);
    return err;
}

/* Without redundancy no pager counts: all that is here is nowhere else. */
uint64_t store_at_risk(const struct store_entry *entry)
{
    return strcmp(entry->redundancy, "none") == 0
               ? atomic_load(&region_claim(entry->region)->stored)
               : entry->at_risk;
}

static void take_reference(void *to, const struct store_entry *entry)
{
    *(struct region **)to = region_ref(entry->region);
}

int store_find(struct store *store, const char *name, const char *ticket, struct region **region,
               struct reason *reason)
{
    return store_visit(store, name, ticket, take_reference, region, reason);
}

/* Caller holds the lock: take an entry out of the list. */
static struct store_entry *take(struct store *store, struct store_entry **link)
{
    struct store_entry *entry = *link;

    *link = entry->next;
    store->n_regions--;
    return entry;
}

/* Caller holds the lock: a region that is to go does not come back with another server. */
static struct store_entry *doom(struct store *store, struct store_entry **link)
{
    struct store_entry *entry = take(store, link);

    if (store->state) {
        statedir_remove(store->state, entry->name);
    }
    return entry;
}

static void entry_free(struct store_entry *entry)
{
    region_unref(entry->region);
    explicit_bzero(entry, sizeof(*entry));
    free(entry);
}

/*
 * Nobody can find the region any more.  It is killed before its clients are cut
 * off, so that a client which is just being told of it can do nothing with it.
 */
static void dispose(struct store *store, struct store_entry *entry)
{
    if (store->revoke) {
        store->revoke(store->opaque, entry->region);
    }
    region_kill(entry->region);
    if (store->disconnect) {
        store->disconnect(store->opaque, entry->region);
    }
    log_info("region %s is deleted", entry->name);
    entry_free(entry);
}

int store_delete(struct store *store, const char *name, const char *ticket, const void *peer,
                 struct reason *reason)
{
    int err;

    pthread_mutex_lock(&store->lock);
    struct store_entry **link = find_checked(store, name, ticket, &err, reason);
    if (err == -EKEYEXPIRED && peer) {
        /* A move that failed in the middle of taking over: who made the region clears it away. */
        struct store_entry **made = find(store, name, strlen(name));
        link = (*made)->creator == peer ? made : NULL;
        err = link ? 0 : err;
    }
    struct store_entry *entry = link ? doom(store, link) : NULL;
    pthread_mutex_unlock(&store->lock);
    if (entry) {
        dispose(store, entry);
    }
    return err;
}

/* Delete all entries of @owner; all there are if @every, but for those that are to be found again. */
static void delete_many(struct store *store, const void *owner, bool every)
{
    struct store_entry *gone = NULL;

    pthread_mutex_lock(&store->lock);
    struct store_entry **link = &store->entries;
    while (*link) {
        if (every && store->state && !(*link)->owner) {
            entry_free(take(store, link));
        } else if (every || (*link)->owner == owner) {
            struct store_entry *entry = doom(store, link);
            entry->next = gone;
            gone = entry;
        } else {
            if ((*link)->creator == owner) {
                (*link)->creator = NULL;
            }
            link = &(*link)->next;
        }
    }
    pthread_mutex_unlock(&store->lock);
    while (gone) {
        struct store_entry *entry = gone;
        gone = entry->next;
        dispose(store, entry);
    }
}

void store_delete_owned(struct store *store, const void *owner)
{
    delete_many(store, owner, false);
}

void store_destroy(struct store *store)
{
    delete_many(store, NULL, true);
    quota_destroy(&store->quota);
    pthread_mutex_destroy(&store->lock);
}

static int adopt(void *to, const struct statedir_entry *kept, struct reason *reason)
{
    struct store *store = to;
    struct region_place place = {.dir = store->state->dir, .name = kept->name};
    struct store_request request = {.name = kept->name, .ticket = kept->ticket, .slab = kept->slab};
    struct reason why = {""};
    struct region *region;
    char stored[32];

    if (!word_is_valid(kept->name) || (*kept->ticket && !word_is_valid(kept->ticket))) {
        return reason_set(reason, -EINVAL, "--state-dir: '%.100s' is no region's name or ticket",
                          kept->name);
    }
    int err = region_adopt(&region, &store->quota, kept->size, kept->reserve, kept->limit, &place,
                           &why);
    if (err) {
        return reason_set(reason, err,
                          "region '%.80s' in %.80s cannot be taken up (give as much --memory as "
                          "before, or free all regions with --forget): %.200s",
                          kept->name, store->state->path, why.text);
    }
    struct store_entry *entry = entry_new(&request, region);
    if (!entry) {
        region_unref(region);
        return reason_set(reason, -ENOMEM, "no memory for another region");
    }
    entry->next = store->entries;
    store->entries = entry;
    store->n_regions++;
    log_info("region %s is taken up again: %s stored", kept->name,
             units_format_size(atomic_load(&region_claim(region)->stored), stored, sizeof(stored)));
    return 0;
}

int store_adopt(struct store *store, struct reason *reason)
{
    pthread_mutex_lock(&store->lock);
    int err = store->state ? statedir_each(store->state, adopt, store, reason) : 0;
    pthread_mutex_unlock(&store->lock);
    return err;
}

/* Is it the one that was made from the region's own, for sub-hosts that fetch pages? */
static bool ticket_only_reads(const struct store_entry *entry, const char *ticket, size_t length)
{
    char reading[STORE_WORD_MAX + 1] = {0};

    return entry->ticket[0] && ticket_reading(entry->ticket, strlen(entry->ticket), reading) == 0 &&
           ticket_matches(reading, ticket, length);
}

int store_open(struct store *store, const char *name, size_t length, struct store_opened *opened)
{
    size_t suffix = strlen(STRICT);

    *opened = (struct store_opened){0};
    opened->strict = length > suffix && memcmp(name + length - suffix, STRICT, suffix) == 0;
    if (opened->strict) {
        length -= suffix;
    }
    if (length == 0 || memchr(name, '\0', length)) {
        return -ENOENT;
    }
    const char *dot = memchr(name, '.', length);
    size_t name_length = dot ? (size_t)(dot - name) : length;
    const char *ticket = dot ? dot + 1 : "";
    size_t ticket_length = dot ? length - name_length - 1 : 0;
    if (name_length == 0 || name_length > STORE_WORD_MAX || (dot && ticket_length == 0)) {
        return -ENOENT;
    }
    pthread_mutex_lock(&store->lock);
    struct store_entry *entry = *find(store, name, name_length);
    int err = entry ? ticket_check(entry, ticket, ticket_length) : -ENOENT;
    if (err == -EACCES && ticket_only_reads(entry, ticket, ticket_length)) {
        opened->read_only = true;
        err = 0;
    }
    if (!err && entry->expires_us && units_now_us() >= entry->expires_us) {
        err = -EKEYEXPIRED;
    }
    if (!err) {
        opened->region = region_ref(entry->region);
        opened->epoch = region_epoch(entry->region);
    }
    pthread_mutex_unlock(&store->lock);
    return err == -EACCES ? -ENOENT : err; /* whether there is such a region is not told */
}

void store_each(struct store *store, void (*visit)(void *to, const struct store_entry *entry),
                void *to)
{
    pthread_mutex_lock(&store->lock);
    for (const struct store_entry *entry = store->entries; entry; entry = entry->next) {
        visit(to, entry);
    }
    pthread_mutex_unlock(&store->lock);
}

unsigned store_count(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    unsigned n = store->n_regions;
    pthread_mutex_unlock(&store->lock);
    return n;
}

bool store_is_kept(struct store *store, const struct region *region)
{
    bool kept = false;

    pthread_mutex_lock(&store->lock);
    for (const struct store_entry *entry = store->entries; entry; entry = entry->next) {
        kept |= entry->region == region && !entry->owner;
    }
    pthread_mutex_unlock(&store->lock);
    return kept;
}

unsigned store_count_kept(struct store *store)
{
    unsigned n = 0;

    pthread_mutex_lock(&store->lock);
    for (const struct store_entry *entry = store->entries; entry; entry = entry->next) {
        n += entry->owner == NULL;
    }
    pthread_mutex_unlock(&store->lock);
    return n;
}
