// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pagetrace.c - QEMU plugin: the pages a program touches, as a trace for predictor-replay(1)
 *
 *     qemu-x86_64 -plugin ./pagetrace.so,out=FILE[,window=N][,events=N] PROGRAM ARGS...
 *
 * Every load and store of the program is seen, every piece of code it enters, and the buffers of the
 * common system calls, because the kernel touches those for it.
 *
 * What is written is not every access: a page that was written down as one of the last N (default 256)
 * is left out, unless this is its first write in that time.  A local memory of many times N pages would have
 * held it in any case, so the misses stay the same while the trace shrinks a thousandfold.  After so many
 * events the trace ends, though the program goes on.
 *
 * Addresses become page numbers by 2 MiB: each 2 MiB of the address space that is touched gets the next
 * chunk of the trace.  So neighbours stay neighbours, as they do in a guest with huge pages, and the trace has no gaps.
 *
 * Debian's qemu-user can load plugins but has no package with the header, hence the declarations (API version 1,
 * include/qemu/qemu-plugin.h of QEMU 7.2).
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*plugin_mem_cb)(unsigned cpu, uint32_t info, uint64_t address, void *opaque);
typedef void (*plugin_exec_cb)(unsigned cpu, void *opaque);
typedef void (*plugin_syscall_cb)(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                                  uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                                  uint64_t a8);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
                                                  void (*cb)(plugin_id, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, plugin_mem_cb cb,
                                             int flags, int rw, void *opaque);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, plugin_exec_cb cb,
                                                 int flags, void *opaque);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, plugin_syscall_cb cb);
extern void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(plugin_id, void *), void *opaque);
extern bool qemu_plugin_mem_is_store(uint32_t info);

#define EXPORT __attribute__((visibility("default")))
#define READ_WRITE 3
#define PAGE_SHIFT 12
#define CHUNK_PAGES 512u
#define TABLE (1u << 16) /* chunks, open hashing */

EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);
EXPORT int qemu_plugin_version = 1;

struct chunk {
    uint64_t key; /* address / 2 MiB + 1; 0: free */
    uint32_t index;
    uint32_t *seen, *written; /* [CHUNK_PAGES] the event after which the page was written down */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct chunk table[TABLE];
static uint32_t n_chunks, n_events = 1, window = 256, last_event = UINT32_MAX;
static int64_t last_page;
static FILE *out;
static __thread uint64_t recent, recent_written; /* the thread's last pages, + 1 */

static struct chunk *chunk_find(uint64_t key)
{
    uint64_t at = key * 0x9e3779b97f4a7c15ull >> 48;

    while (table[at].key != key) {
        if (!table[at].key) {
            table[at] = (struct chunk){.key = key, .index = n_chunks++};
            table[at].seen = calloc(2 * CHUNK_PAGES, sizeof(uint32_t));
            if (!table[at].seen || n_chunks == TABLE / 2) {
                fprintf(stderr, "pagetrace: too much memory is used\n");
                abort();
            }
            table[at].written = table[at].seen + CHUNK_PAGES;
            break;
        }
        at = (at + 1) % TABLE;
    }
    return &table[at];
}

static bool is_old(uint32_t event)
{
    return !event || n_events - event > window;
}

/* Little-endian base 128: the distance from the last page, its sign, written. */
static void event_write(int64_t page, bool store)
{
    int64_t delta = page - last_page;
    uint64_t word = (delta < 0 ? (uint64_t)(-delta) << 1 | 1 : (uint64_t)delta << 1) << 1 | store;

    for (; word >= 0x80; word >>= 7) {
        putc_unlocked((int)(word & 0x7f) | 0x80, out);
    }
    putc_unlocked((int)word, out);
    last_page = page;
    n_events++;
}

static void touch(uint64_t address, bool store)
{
    uint64_t page = address >> PAGE_SHIFT;

    if (page + 1 == (store ? recent_written : recent) || page + 1 == recent_written) {
        return;
    }
    pthread_mutex_lock(&lock);
    struct chunk *chunk = chunk_find(page / CHUNK_PAGES + 1);
    uint32_t *seen = &chunk->seen[page % CHUNK_PAGES];
    uint32_t *written = &chunk->written[page % CHUNK_PAGES];
    if (out && n_events <= last_event && (is_old(*seen) || (store && is_old(*written)))) {
        event_write((int64_t)chunk->index * CHUNK_PAGES + (int64_t)(page % CHUNK_PAGES), store);
        *seen = n_events;
        *written = store ? n_events : *written;
    }
    pthread_mutex_unlock(&lock);
    recent = page + 1;
    recent_written = store ? page + 1 : recent_written;
}

static void on_memory(unsigned cpu, uint32_t info, uint64_t address, void *opaque)
{
    (void)cpu;
    (void)opaque;
    touch(address, qemu_plugin_mem_is_store(info));
}

static void on_block(unsigned cpu, void *opaque)
{
    (void)cpu;
    touch((uint64_t)(uintptr_t)opaque, false);
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, 0,
                                         (void *)(uintptr_t)qemu_plugin_tb_vaddr(tb));
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_memory, 0, READ_WRITE,
                                         NULL);
    }
}

/* x86-64: read, write, pread64, pwrite64, sendto, recvfrom have buffer and length in second and third place. */
static void on_syscall(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    bool in = number == 0 || number == 17 || number == 45;

    (void)id, (void)cpu, (void)a1, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if ((in || number == 1 || number == 18 || number == 44) && a3 <= 1u << 16) {
        for (uint64_t at = a2; at < a2 + a3; at += 1u << PAGE_SHIFT) {
            touch(at, in);
        }
    }
}

static void on_end(plugin_id id, void *opaque)
{
    (void)id;
    (void)opaque;
    pthread_mutex_lock(&lock);
    fclose(out);
    out = NULL;
    fprintf(stderr, "pagetrace: %u events, %u chunks of 2 MiB\n", n_events - 1, n_chunks);
    pthread_mutex_unlock(&lock);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) {
            out = fopen(argv[i] + 4, "we");
        } else if (!strncmp(argv[i], "window=", 7)) {
            window = (uint32_t)strtoul(argv[i] + 7, NULL, 10);
        } else if (!strncmp(argv[i], "events=", 7)) {
            last_event = (uint32_t)strtoul(argv[i] + 7, NULL, 10);
        }
    }
    if (!out || fwrite("SMTRACE1", 8, 1, out) != 1) {
        fprintf(stderr, "pagetrace: out=FILE is missing, or cannot be written\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
    return 0;
}
