/* SPDX-License-Identifier: GPL-2.0-or-later */
/* memguest.h - what memguest's console (memguest.c) and its workers (memguest_work.c) share */
#ifndef TESTS_GUEST_MEMGUEST_H
#define TESTS_GUEST_MEMGUEST_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MAX_THREADS 64

struct options {
    uint64_t size, seed, rate;
    double hot;
    unsigned write_percent, cluster, threads, report_ms, seconds, balloon;
};

enum job_kind { JOB_SWEEP, JOB_ZERO, JOB_DROP, JOB_REFILL, JOB_SPOIL };

struct job {
    enum job_kind kind;
    uint32_t pages; /* zero, drop: how many */
    uint32_t page;  /* spoil: which */
    char how[8];    /* spoil: see spoil_page() */
};

struct worker {
    pthread_t thread;
    unsigned id;
    uint32_t own_pages;
    uint64_t random;
    sigjmp_buf trap;
    unsigned job_serial; /* the job under way or done last, and where it stands */
    uint32_t job_position, job_done, zero_position;
    uint64_t due_ns; /* rate limit: when the next access may happen */
    _Atomic uint64_t verified, writes, errors, memory_errors;
    _Atomic uint64_t last_ns, longest_ns, longest_recent_ns;
    atomic_bool idle;
};

/* The workers' side of a job: the console fills in job and counts job_serial up. */
extern struct job job;
extern atomic_uint job_serial, job_workers_left;
extern _Atomic uint64_t job_end_ns, job_pages;
extern atomic_bool stopped;

extern struct options option;
extern struct worker workers[MAX_THREADS];
extern uint32_t n_pages;

uint64_t now_ns(void);
void sleep_until(uint64_t ns);
void store_larger(_Atomic uint64_t *at, uint64_t value);

/** say() - print a line; one write, so that lines of several threads stay whole */
__attribute__((format(printf, 1, 2))) void say(const char *fmt, ...);

/** work_fill() - map the memory and write all pages once. Return: false if it could not be had. */
bool work_fill(void);

/** work_tests() - whether @address is in the memory under test */
bool work_tests(uintptr_t address);

/** work_start() - start the workers. Return: false if threads could not be had. */
bool work_start(uint64_t start_ns);

#endif
