// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memguest.c - a program that touches memory, knows what must be in it, and says when it is not
 *
 * Runs as init of a tiny test guest (parameters on the kernel command line, commands and reports on
 * the console) or as a normal process (parameters as arguments, commands on stdin).  README.md lists
 * parameters, commands and lines printed.  memguest_work.c does the work; here are start, reports
 * and commands.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "memguest.h"

#define MAX_JOBS 16
#define PAGE_BYTES 4096
#define PAGEMAP_PRESENT (1ull << 63)

struct options option = {.size = 64 << 20, .seed = 1, .hot = 10, .write_percent = 30,
                         .cluster = 512, .threads = 1, .report_ms = 1000};

static uint64_t start_ns;
static struct job job_queue[MAX_JOBS];
static unsigned jobs_queued;
static uint64_t job_start_ns, job_start_errors;

void say(const char *fmt, ...)
{
    char line[320] = "memguest: ";
    size_t used = strlen(line);
    va_list args;

    va_start(args, fmt);
    int more = vsnprintf(line + used, sizeof(line) - used - 1, fmt, args);
    va_end(args);
    used += more < 0 ? 0 : (size_t)more;
    if (used > sizeof(line) - 2) {
        used = sizeof(line) - 2;
    }
    line[used++] = '\n';
    for (size_t at = 0; at < used;) {
        ssize_t n = write(STDOUT_FILENO, line + at, used - at);
        if (n < 0 && errno != EINTR) {
            return;
        }
        at += n > 0 ? (size_t)n : 0;
    }
}

/* ---- reports and commands -------------------------------------------------------------------- */

static uint64_t sum(size_t member)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < option.threads; i++) {
        total += atomic_load((_Atomic uint64_t *)(void *)((char *)&workers[i] + member));
    }
    return total;
}

#define SUM(member) ((unsigned long long)sum(offsetof(struct worker, member)))

static void report(void)
{
    static uint64_t then_ns, then_verified;
    uint64_t now = now_ns(), verified = SUM(verified), longest = 0, recent = 0;

    for (unsigned i = 0; i < option.threads; i++) {
        struct worker *w = &workers[i];
        uint64_t last = atomic_load(&w->last_ns);
        if (!atomic_load(&w->idle) && now > last) { /* a stall that has not ended counts as well */
            store_larger(&w->longest_recent_ns, now - last);
            store_larger(&w->longest_ns, now - last);
        }
        uint64_t value = atomic_exchange(&w->longest_recent_ns, 0);
        recent = value > recent ? value : recent;
        value = atomic_load(&w->longest_ns);
        longest = value > longest ? value : longest;
    }
    uint64_t span = now - (then_ns ? then_ns : start_ns);
    say("t=%.1f verified=%llu writes=%llu errors=%llu rate=%llu/s stall_max_ms=%llu "
        "stall_last_ms=%llu memerrs=%llu",
        (double)(now - start_ns) / 1e9, (unsigned long long)verified, SUM(writes), SUM(errors),
        (unsigned long long)((double)(verified - then_verified) * 1e9 / (double)(span ? span : 1)),
        (unsigned long long)longest / 1000000, (unsigned long long)recent / 1000000,
        SUM(memory_errors));
    then_ns = now;
    then_verified = verified;
}

/* Start the next job if none is under way. */
static void jobs_start(void)
{
    if (atomic_load(&job_workers_left) || !jobs_queued) {
        return;
    }
    job = job_queue[0];
    memmove(job_queue, job_queue + 1, --jobs_queued * sizeof(job));
    job_start_ns = now_ns();
    job_start_errors = SUM(errors);
    atomic_store(&job_pages, 0);
    atomic_store(&job_workers_left, option.threads);
    atomic_fetch_add(&job_serial, 1);
}

static void jobs_end(void)
{
    static unsigned reported;
    unsigned long long pages = atomic_load(&job_pages);
    unsigned long long ms = (atomic_load(&job_end_ns) - job_start_ns) / 1000000;

    if (atomic_load(&job_workers_left) || reported == atomic_load(&job_serial)) {
        return;
    }
    reported = atomic_load(&job_serial);
    if (job.kind == JOB_SWEEP) {
        say("sweep done pages=%llu errors=%llu ms=%llu", pages, SUM(errors) - job_start_errors, ms);
    } else if (job.kind == JOB_ZERO) {
        say("zero done pages=%llu ms=%llu", pages, ms);
    } else if (job.kind == JOB_DROP || job.kind == JOB_REFILL) {
        say("%s done pages=%llu errors=%llu ms=%llu", job.kind == JOB_DROP ? "drop" : "refill", pages,
            SUM(errors) - job_start_errors, ms);
    } else {
        say("spoil %s page=%u", pages ? "done" : "refused", job.page);
    }
}

/*
 * Say where the pages from @from to @to are in the guest's memory, except those under test.
 * @file: they are of a file, and get a place by being read.
 */
static unsigned long long say_places(int pagemap, uintptr_t from, uintptr_t to, bool file)
{
    uint64_t first = 0, n = 0, entry, pages = 0;

    for (uintptr_t at = from; at <= to; at += PAGE_BYTES) {
        uint64_t place = 0;
        if (at < to && !work_tests(at)) {
            if (file) {
                (void)*(volatile const char *)at;
            }
            if (pread(pagemap, &entry, sizeof(entry), (off_t)(at / PAGE_BYTES * sizeof(entry))) ==
                    sizeof(entry) &&
                entry & PAGEMAP_PRESENT) {
                place = entry & ((1ull << 55) - 1);
            }
        }
        if (n && place != first + n) {
            say("place %#llx+%#llx", (unsigned long long)(first * PAGE_BYTES),
                (unsigned long long)(n * PAGE_BYTES));
            pages += n;
            n = 0;
        }
        if (place) {
            first = n ? first : place;
            n++;
        }
    }
    return pages;
}

/* Where what the program itself needs is: without it, it could not report the loss of a page. */
static void report_places(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    unsigned long long pages = 0;
    unsigned long from, to;
    char line[256], readable;

    while (maps && pagemap >= 0 && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx %c", &from, &to, &readable) == 3 && readable == 'r' &&
            !strstr(line, "[v")) {
            pages += say_places(pagemap, from, to, strchr(line, '/') != NULL);
        }
    }
    if (maps) {
        fclose(maps);
    }
    if (pagemap >= 0) {
        close(pagemap);
    }
    say("places done pages=%llu errors=0", pages);
}

static _Noreturn void finish(int how)
{
    int status = SUM(errors) + SUM(memory_errors) != 0;

    say("bye verified=%llu writes=%llu errors=%llu memerrs=%llu", SUM(verified), SUM(writes),
        SUM(errors), SUM(memory_errors));
    if (getpid() == 1) {
        sync();
        tcdrain(STDOUT_FILENO);
        reboot(how);
        for (;;) {
            pause(); /* init must not return: the kernel would panic */
        }
    }
    _exit(status);
}

static void run_command(const char *text)
{
    struct job next = {0};
    char word[16];

    if (sscanf(text, "%15s", word) != 1) {
        return;
    } else if (!strcmp(word, "stop") || !strcmp(word, "go")) {
        atomic_store(&stopped, word[0] == 's');
        for (unsigned i = 0; word[0] == 's' && i < option.threads; i++) {
            for (int tries = 0; tries < 1000 && !atomic_load(&workers[i].idle); tries++) {
                sleep_until(now_ns() + 1000000);
            }
        }
        say("%s", word[0] == 's' ? "stopped" : "going");
        return;
    } else if (!strcmp(word, "status")) {
        report();
        return;
    } else if (!strcmp(word, "places")) {
        report_places();
        return;
    } else if (!strcmp(word, "quit")) {
        finish(RB_POWER_OFF);
    } else if (!strcmp(word, "reboot")) {
        finish(RB_AUTOBOOT);
    } else if (!strcmp(word, "sweep")) {
        next.kind = JOB_SWEEP;
    } else if (!strcmp(word, "refill")) {
        next.kind = JOB_REFILL;
    } else if (sscanf(text, " drop %u", &next.pages) == 1) {
        next.kind = JOB_DROP;
    } else if (sscanf(text, " zero %u", &next.pages) == 1) {
        next.kind = JOB_ZERO;
    } else if (sscanf(text, " spoil %u %7s", &next.page, next.how) == 2 && next.page < n_pages) {
        next.kind = JOB_SPOIL;
    } else {
        say("what is '%s'?", text);
        return;
    }
    if (jobs_queued == MAX_JOBS) {
        say("too many jobs");
        return;
    }
    job_queue[jobs_queued++] = next;
}

/* Read what there is on stdin and run the whole lines of it.  Return: false at its end. */
static bool read_commands(void)
{
    static char line[128];
    static size_t used;
    char bytes[64];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof(bytes));

    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r') {
            line[used] = '\0';
            used = 0;
            run_command(line);
        } else if (used < sizeof(line) - 1) {
            line[used++] = bytes[i];
        }
    }
    return n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN));
}

static _Noreturn void serve(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    uint64_t due = now_ns() + option.report_ms * 1000000ull;

    for (;;) {
        jobs_end();
        jobs_start();
        uint64_t now = now_ns();
        if (option.report_ms && now >= due) {
            report();
            due += option.report_ms * 1000000ull;
            due = due > now ? due : now + option.report_ms * 1000000ull;
        }
        if (option.seconds && now - start_ns >= option.seconds * 1000000000ull) {
            finish(RB_POWER_OFF);
        }
        uint64_t wait_ms = option.report_ms ? (due - now) / 1000000 + 1 : 1000;
        bool busy = atomic_load(&job_workers_left) != 0;
        if (poll(&input, 1,
                 busy             ? 10
                 : wait_ms < 1000 ? (int)wait_ms
                                  : 1000) > 0 &&
            !read_commands()) {
            input.fd = -1;
        }
    }
}

/* ---- start ----------------------------------------------------------------------------------- */

static uint64_t parse_size(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);

    return *end == 'G'   ? value << 30
           : *end == 'M' ? value << 20
           : *end == 'K' ? value << 10
                         : value;
}

/* One "memguest.name=value"; without the prefix as an argument. Return: whether it is known. */
static bool parse_option(const char *text)
{
    char name[16] = "";
    int at = 0;

    if (sscanf(text, "%15[a-z]=%n", name, &at) != 1 || !at) {
        return false;
    }
    const char *value = text + at;
    unsigned number = (unsigned)strtoul(value, NULL, 0);
    const struct {
        const char *name;
        unsigned *at, most, least;
    } numbers[] = {
        {"write", &option.write_percent, 100, 0},     {"cluster", &option.cluster, 1u << 30, 1},
        {"threads", &option.threads, MAX_THREADS, 1}, {"report", &option.report_ms, 86400000, 0},
        {"seconds", &option.seconds, 1u << 30, 0},    {"balloon", &option.balloon, 1, 0},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].at = number > numbers[i].most    ? numbers[i].most
                             : number < numbers[i].least ? numbers[i].least
                                                         : number;
            return true;
        }
    }
    if (!strcmp(name, "size")) {
        option.size = parse_size(value);
    } else if (!strcmp(name, "seed")) {
        option.seed = strtoull(value, NULL, 0);
    } else if (!strcmp(name, "rate")) {
        option.rate = strtoull(value, NULL, 0);
    } else if (!strcmp(name, "hot")) {
        option.hot = strtod(value, NULL);
    } else {
        return false;
    }
    return true;
}

/* The modules of a balloon device, which build.sh has put there. */
static void load_balloon(void)
{
    static const char *const names[] = {
        "virtio_ring",           "virtio",     "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev", "virtio_pci", "virtio_balloon"};
    char path[64];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "/modules/%s.ko", names[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) {
            say("module %s cannot be loaded: %s", names[i], strerror(errno));
        }
        if (fd >= 0) {
            close(fd);
        }
    }
}

/* As init: mount what is needed, quiet the terminal's echo, take options from /proc/cmdline. */
static void become_init(void)
{
    char text[4096] = "";
    struct termios terminal;

    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    if (!tcgetattr(STDIN_FILENO, &terminal)) {
        terminal.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    text[n < 0 ? 0 : n] = '\0';
    char *rest = text;
    for (char *word; (word = strsep(&rest, " \n"));) {
        if (!strncmp(word, "memguest.", 9) && !parse_option(word + 9)) {
            say("unknown parameter '%s'", word);
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    if (option.balloon) {
        load_balloon();
    }
}

int main(int argc, char **argv)
{
    if (getpid() == 1) {
        become_init();
    }
    for (int i = 1; getpid() != 1 && i < argc; i++) {
        if (!parse_option(strncmp(argv[i], "memguest.", 9) ? argv[i] : argv[i] + 9)) {
            say("unknown parameter '%s'", argv[i]);
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    if (!work_fill()) {
        finish(RB_POWER_OFF);
    }
    start_ns = now_ns();
    if (!work_start(start_ns)) {
        say("cannot start a thread");
        finish(RB_POWER_OFF);
    }
    serve();
}
