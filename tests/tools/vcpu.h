/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vcpu.h - the smallest KVM guest: one vCPU that touches pages of our memory, and times each touch
 *
 * The program of the guest is a loop of a dozen instructions in 32-bit protected mode without
 * paging, so that a touch of guest-physical memory is all that can fault.  It reads the time-stamp
 * counter right before and right after, inside.  What is measured is what a vCPU waits: KVM's exit,
 * the fault that it takes on the vCPU's behalf, who answers it, and the way back.
 *
 * KVM has two ways to wait.  Where the vCPU has a local APIC in the kernel and takes interrupts, as
 * QEMU's do, a worker of the kernel takes the fault while the vCPU is halted ("asynchronous page
 * fault"; a Linux guest that knows of it may run something else meanwhile, and this one does not).
 * Otherwise the vCPU's own thread takes it, as any thread does that touches memory.
 */
#ifndef TESTS_TOOLS_VCPU_H
#define TESTS_TOOLS_VCPU_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define VCPU_PAGE 4096u
#define VCPU_MEMORY 0x40000000u    /* where it begins for the guest; program and table are at 0 */
#define VCPU_MOST_BYTES (1u << 31) /* so that it ends below the local APIC's page */

/* What the guest is given of a touch, and returns. */
struct vcpu_touch {
    uint64_t address;
    uint64_t ticks;
};

/* esi: the first struct vcpu_touch; ecx: how many.  An exit by I/O is the end. */
__asm__(".pushsection .rodata\n"
        ".code32\n"
        "vcpu_program:\n"
        "1: movl (%esi), %edi\n"
        "   lfence\n"
        "   rdtsc\n"
        "   movl %eax, %ebx\n"
        "   movl %edx, %ebp\n"
        "   lfence\n"
        "   movb 8(%edi), %al\n"
        "   lfence\n"
        "   rdtsc\n"
        "   subl %ebx, %eax\n"
        "   sbbl %ebp, %edx\n"
        "   movl %eax, 8(%esi)\n"
        "   movl %edx, 12(%esi)\n"
        "   addl $16, %esi\n"
        "   decl %ecx\n"
        "   jnz 1b\n"
        "   outb %al, $0x10\n"
        "2:\n"
        ".balign 4\n"
        "vcpu_program_bytes: .long 2b - vcpu_program\n"
        ".code64\n"
        ".popsection\n");
extern const uint8_t vcpu_program[];
extern const uint32_t vcpu_program_bytes;

static inline void vcpu_die(const char *what)
{
    fprintf(stderr, "vcpu: %s: %s\n", what, strerror(errno));
    exit(2);
}

static inline int vcpu_ioctl(int fd, unsigned long request, void *arg, const char *what)
{
    int result = ioctl(fd, request, arg);

    if (result < 0) {
        vcpu_die(what);
    }
    return result;
}

static inline void vcpu_slot(int vm, uint32_t slot, uint64_t at, void *memory, uint64_t size)
{
    struct kvm_userspace_memory_region region = {.slot = slot,
                                                 .guest_phys_addr = at,
                                                 .memory_size = size,
                                                 .userspace_addr = (uintptr_t)memory};

    vcpu_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
}

/* Flat segments, no paging; at the program's beginning. */
static inline void vcpu_registers(int vcpu, size_t n, bool interrupts)
{
    struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_regs regs = {.rsi = VCPU_PAGE, .rcx = n, .rflags = interrupts ? 0x202 : 0x2};
    struct kvm_sregs sregs;

    vcpu_ioctl(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    flat.type = 3;
    flat.selector = 16;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
    flat.type = 11;
    flat.selector = 8;
    sregs.cs = flat;
    sregs.cr0 = 0x11; /* PE, ET */
    vcpu_ioctl(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    vcpu_ioctl(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static inline uint64_t vcpu_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Run until the end. Return: ns of a tick, by how long it took. */
static inline double vcpu_run(int vcpu, const struct kvm_run *run)
{
    uint64_t began_ns = vcpu_now_ns(), began = __rdtsc();

    while (ioctl(vcpu, KVM_RUN, NULL) < 0) {
        if (errno != EINTR && errno != EAGAIN) {
            vcpu_die("KVM_RUN");
        }
    }
    uint64_t ticks = __rdtsc() - began;
    double took = (double)(vcpu_now_ns() - began_ns);
    if (run->exit_reason != KVM_EXIT_IO) {
        fprintf(stderr, "vcpu: the guest ended with exit %u\n", run->exit_reason);
        exit(2);
    }
    return took / (double)ticks;
}

/**
 * vcpu_touch() - have a guest of one vCPU touch memory of this process
 * @memory: mapped here; @size bytes, whole pages, at most 2 GiB
 * @offset: @n of them into @memory, in the order of the touches; each reads the byte 8 after it
 * @asynchronous: wait as QEMU's vCPUs do (see above)
 * @took_ns: what each touch took, [n]
 *
 * Ends the process, with a sentence, if there is no KVM or the guest cannot go on.
 */
static inline void vcpu_touch(void *memory, uint64_t size, const uint64_t *offset, size_t n,
                              bool asynchronous, uint64_t *took_ns)
{
    size_t table = (n * sizeof(struct vcpu_touch) / VCPU_PAGE + 2) * VCPU_PAGE;
    uint8_t *own = mmap(NULL, table, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct vcpu_touch *touch = (struct vcpu_touch *)(void *)(own + VCPU_PAGE);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (n == 0 || size > VCPU_MOST_BYTES || table > VCPU_MEMORY) {
        errno = EINVAL;
        vcpu_die("memory of 2 GiB and 64 million touches are the most");
    }
    if (own == MAP_FAILED || kvm < 0) {
        vcpu_die("/dev/kvm");
    }
    memcpy(own, vcpu_program, vcpu_program_bytes);
    for (size_t i = 0; i < n; i++) {
        touch[i].address = VCPU_MEMORY + offset[i];
    }
    int vm = vcpu_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    if (asynchronous) {
        vcpu_ioctl(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    }
    int vcpu = vcpu_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size =
        (size_t)vcpu_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) {
        vcpu_die("mmap of the vCPU");
    }
    vcpu_slot(vm, 0, 0, own, table);
    vcpu_slot(vm, 1, VCPU_MEMORY, memory, size);
    vcpu_registers(vcpu, n, asynchronous);
    double tick_ns = vcpu_run(vcpu, run);
    for (size_t i = 0; i < n; i++) {
        took_ns[i] = (uint64_t)((double)touch[i].ticks * tick_ns);
    }
    munmap(run, run_size);
    munmap(own, table);
    close(vcpu);
    close(vm);
    close(kvm);
}

#endif
