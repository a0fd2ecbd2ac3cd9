# SPDX-License-Identifier: GPL-2.0-or-later
#
# split-migrate: plain GNU make.  `make help` lists the targets.
#
#   V=1           show the commands        B=dir       build folder (default: build)
#   CC=clang      another compiler         SAN=asan    or tsan: sanitizer build in build-asan, build-tsan

.DEFAULT_GOAL := all

SAN ?=
B ?= build$(if $(SAN),-$(SAN))
CC = gcc
CSTD = -std=gnu11
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
CFLAGS ?= -O2 -g
HARDEN = -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
ifeq ($(SAN),asan)
SANFLAGS = -fsanitize=address,undefined -fno-omit-frame-pointer
HARDEN = -fPIE
else ifeq ($(SAN),tsan)
SANFLAGS = -fsanitize=thread -fno-omit-frame-pointer
HARDEN = -fPIE
endif
ifdef CI
WARN += -Werror
endif

# Without libvirt there is no libvirt driver, and the verbs that need it say so.
LIBVIRT_PKGS = libvirt libvirt-qemu libxml-2.0
HAVE_LIBVIRT ?= $(shell pkg-config --exists $(LIBVIRT_PKGS) 2>/dev/null && echo 1)
ifeq ($(HAVE_LIBVIRT),1)
LIBVIRT_CFLAGS := -DHAVE_LIBVIRT $(shell pkg-config --cflags $(LIBVIRT_PKGS))
LIBVIRT_LIBS := $(shell pkg-config --libs $(LIBVIRT_PKGS))
UNUSED = split-migrate/virt_none.c
else
UNUSED = $(addprefix split-migrate/,driver_libvirt.c virt.c virt_pace.c names_libvirt.c domain_xml.c \
    verb_enable.c verb_check.c)
endif

# Without libibverbs and librdmacm pages go by TCP only.
RDMA_PKGS = libibverbs librdmacm
HAVE_RDMA ?= $(shell pkg-config --exists $(RDMA_PKGS) 2>/dev/null && echo 1)
ifeq ($(HAVE_RDMA),1)
RDMA_CFLAGS := $(shell pkg-config --cflags $(RDMA_PKGS))
RDMA_LIBS := $(shell pkg-config --libs $(RDMA_PKGS))
UNUSED += common/nbd_rdma_none.c subhost-server/rdma_none.c
else
UNUSED += $(addprefix common/,nbd_rdma.c nbd_rdma_connect.c rdma_limits.c) \
          $(addprefix subhost-server/,rdma_server.c rdma_region.c rdma_connection.c)
endif

PROGRAMS = split-migrate uffd-pager subhost-server
LIBS_split-migrate = -linih $(LIBVIRT_LIBS) -lm
PKGS = jansson

ALL_CFLAGS = $(CSTD) $(WARN) $(CFLAGS) $(HARDEN) $(SANFLAGS) -D_GNU_SOURCE -I. -pthread -MMD -MP \
             $(LIBVIRT_CFLAGS) $(RDMA_CFLAGS)
ALL_LDFLAGS = $(LDFLAGS) $(SANFLAGS) -pthread -pie -Wl,-z,relro,-z,now,--as-needed
LDLIBS = -ljansson -lgnutls -lmicrohttpd -llz4 -lzstd $(RDMA_LIBS)

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))

# What is compiled differs with and without libvirt and RDMA: a change of mind makes these anew.
$(B)/libvirt-$(HAVE_LIBVIRT) $(B)/rdma-$(HAVE_RDMA):
	@mkdir -p $(@D)
	@rm -f $(@D)/$(firstword $(subst -, ,$(@F)))-*
	@touch $@
$(B)/split-migrate/driver.o: $(B)/libvirt-$(HAVE_LIBVIRT)

# A program is its folder: main.c holds only main(), the rest goes into a library that tests link too.
sources = $(filter-out $(1)/main.c $(UNUSED),$(wildcard $(1)/*.c))
objects = $(patsubst %.c,$(B)/%.o,$(1))

COMMON_LIB = $(B)/libcommon.a
PREDICTOR_LIB = $(B)/libpredictor.a
PROGRAM_LIBS = $(PROGRAMS:%=$(B)/lib%.a)
UNIT_TESTS = $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
TEST_TOOLS = $(patsubst tests/tools/%.c,$(B)/tests/tools/%,$(wildcard tests/tools/*.c))

all: $(PROGRAMS:%=$(B)/bin/%) $(B)/bin/predictor-replay  ## build the programs

$(B)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(COMMON_LIB): $(call objects,$(call sources,common))
$(COMMON_LIB) $(B)/libsubhost-server.a: $(B)/rdma-$(HAVE_RDMA)
$(PREDICTOR_LIB): $(call objects,$(filter-out predictor/replay.c,$(call sources,predictor)))
$(foreach p,$(PROGRAMS),$(eval $(B)/lib$(p).a: $(call objects,$(call sources,$(p)))))

%.a:
	$(call say,AR,$@)
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(AR) rcs $@ $(filter %.o,$^)

$(B)/bin/%: $(B)/%/main.o $(B)/lib%.a $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS) $(LIBS_$*)

$(B)/bin/predictor-replay: $(B)/predictor/replay.o $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS) -lm

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(PROGRAM_LIBS) $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $< $(PROGRAM_LIBS) $(PREDICTOR_LIB) $(COMMON_LIB) $(LDLIBS) $(LIBS_split-migrate) -lcmocka -lm

$(B)/tests/tools/%: $(B)/tests/tools/%.o $(PROGRAM_LIBS) $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS) -linih -lm

$(B)/bin/mover-floor: $(B)/bench/mover_floor.o
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^

$(B)/bin/fault-floor: $(B)/bench/fault_floor.o
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^

$(B)/bin/rdma-floor: $(B)/bench/rdma_floor.o $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/bin/sweep-cost: $(B)/bench/sweep_cost.o $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS) -lm

tools: all $(TEST_TOOLS) $(B)/bin/mover-floor $(B)/bin/fault-floor $(B)/bin/sweep-cost $(if $(filter 1,$(HAVE_RDMA)),$(B)/bin/rdma-floor)

# ---- set-up ----

DEPS_BUILD = gcc make libc6-dev pkg-config libjansson-dev libinih-dev libgnutls28-dev libmicrohttpd-dev liblz4-dev libzstd-dev libvirt-dev libxml2-dev \
             libibverbs-dev librdmacm-dev
DEPS_TEST = python3 python3-prometheus-client libcmocka-dev libnbd-bin nbdkit gnutls-bin qemu-utils fio cpio gzip procps ca-certificates \
            busybox-static xz-utils apt-utils dpkg-dev clang libclang-rt-14-dev clang-tidy cppcheck \
            shellcheck mandoc iproute2 kmod systemd mmdebstrap lintian ibverbs-providers perftest
DEPS_DEB = debhelper dpkg-dev
DEPS = $(DEPS_BUILD) $(DEPS_TEST) $(DEPS_DEB)

deps:  ## install the packages that are missing (as root; otherwise print the line)
	@tests/deps $(DEPS)

build-deps:
	@tests/deps $(DEPS_BUILD)

qemu:  ## build the patched QEMU (cached outside the checkout) and print its path
	@qemu-patches/build.sh

# ---- tests ----

RUN = BUILD=$(B) tests/run
INTEGRATION = $(wildcard tests/integration/test_*.py)
E2E = $(wildcard tests/e2e/test_*.py)
LAB = $(wildcard tests/lab/test_*.py)
LIBVIRT = $(wildcard tests/libvirt/test_*.py)
PACKAGE = $(wildcard tests/package/test_*.py)
FUZZERS = $(patsubst tests/fuzz/%.c,$(B)-fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60

check: deps  ## all tests; closes with `N passed, N failed, N skipped`
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@$(MAKE) --no-print-directory -j$$(nproc) $(UNIT_TESTS) fuzzers
	@$(MAKE) --no-print-directory -j$$(nproc) SAN=asan tools unit
	@$(MAKE) --no-print-directory -j$$(nproc) SAN=tsan tools unit
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && $(RUN) --jobs 1 \
	    tests/lint.sh $(UNIT_TESTS) $(INTEGRATION) tests/check_asan.sh tests/check_tsan.sh \
	    $(wildcard tests/fuzz/test_*.sh) $(PACKAGE) $(E2E) $(LIBVIRT) $(LAB)

unit: $(UNIT_TESTS)

check-unit: build-deps unit  ## unit tests only: seconds, no root
	@$(RUN) --jobs 2 $(UNIT_TESTS)

check-integration: deps  ## without QEMU: real daemons, a small process that plays the guest
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@$(RUN) $(if $(T),--filter $(T)) $(INTEGRATION)

check-e2e: deps  ## on the patched QEMU, under TCG (T=word: only tests with that word)
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && $(RUN) $(if $(T),--filter $(T)) $(E2E)

check-lab: deps  ## in a virtual machine with real KVM
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && $(RUN) $(if $(T),--filter $(T)) $(LAB)

check-libvirt: deps  ## two libvirtd and two sub-hosts in namespaces, on the patched QEMU under TCG
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && $(RUN) $(if $(T),--filter $(T)) $(LIBVIRT)

check-package: deps  ## the Debian packages, in a clean Debian with systemd of its own
	@$(RUN) $(PACKAGE)

check-asan: deps  ## unit and integration tests under ASan and UBSan
	@$(MAKE) --no-print-directory -j$$(nproc) SAN=asan tools unit
	@BUILD=$(B)-asan tests/run $(patsubst $(B)/%,$(B)-asan/%,$(UNIT_TESTS)) $(INTEGRATION)

check-tsan: deps  ## unit and integration tests under TSan
	@$(MAKE) --no-print-directory -j$$(nproc) SAN=tsan tools unit
	@BUILD=$(B)-tsan tests/run $(patsubst $(B)/%,$(B)-tsan/%,$(UNIT_TESTS)) $(INTEGRATION)

lint: deps  ## clang-tidy, cppcheck, shellcheck, house rules
	@bash tests/lint.sh

# A fuzz target is linked with all our code, built by clang with libFuzzer and ASan.
FUZZ_CFLAGS = $(RDMA_CFLAGS) $(CSTD) -O1 -g -D_GNU_SOURCE -I. -pthread -fsanitize=fuzzer-no-link,address,undefined \
              -fno-sanitize-recover=undefined -Wall -Wextra
FUZZ_SOURCES = $(foreach d,common predictor uffd-pager subhost-server,$(call sources,$(d)))
FUZZ_OBJECTS = $(patsubst %.c,$(B)-fuzz/%.o,$(filter-out predictor/replay.c,$(FUZZ_SOURCES)))

fuzzers: $(FUZZERS)

$(B)-fuzz/%.o: %.c
	$(call say,FUZZ,$<)
	@mkdir -p $(@D)
	$(Q)clang $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<

$(B)-fuzz/libfuzz.a: $(FUZZ_OBJECTS)

$(B)-fuzz/%: $(B)-fuzz/tests/fuzz/%.o $(B)-fuzz/libfuzz.a
	$(call say,LD,$@)
	$(Q)clang -fsanitize=fuzzer,address,undefined -pthread -o $@ $^ $(LDLIBS) -lm

fuzz: deps  ## each fuzz target for FUZZ_SECONDS (60)
	@$(MAKE) --no-print-directory -j$$(nproc) fuzzers
	@BUILD=$(B) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/run $(wildcard tests/fuzz/test_*.sh)

# ---- the main job, and how fast it is ----

demo: deps  ## split a live 2 GiB guest over a main host and two sub-hosts, and check every page
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && BUILD=$(B) /usr/bin/python3 tests/demo.py

bench-migrate: deps  ## total time beside stock QEMU's pre-copy and multifd, and the floor
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && BUILD=$(B) /usr/bin/python3 bench/migrate.py

bench-sparse: deps  ## a 64 GiB guest that uses 200 MiB beside a 1 GiB one
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && BUILD=$(B) /usr/bin/python3 bench/sparse.py

bench-mover: deps  ## the mover alone, to a main host and to sub-hosts, beside the floor
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@BUILD=$(B) /usr/bin/python3 bench/bench_mover.py

bench-placement:  ## where slabs go, simulated: 1,000 sub-hosts, 10,000 guests, 1, 2, 3 choices
	@BUILD=$(B) /usr/bin/python3 bench/placement.py

bench-predict: deps  ## paging policies on traces of real programs, beside Belady's optimum
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@BUILD=$(B) /usr/bin/python3 bench/predict.py

bench-fault: deps  ## page-in, page-out and bookkeeping beside their floors and swapping
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && BUILD=$(B) /usr/bin/python3 bench/fault.py

bench-rate: deps  ## a program's rate with half of its memory on a sub-host, beside all local and swap (root)
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@BUILD=$(B) /usr/bin/python3 bench/rate.py

bench-sampling: deps  ## what access sampling costs the guest while it is on, and after it
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@BUILD=$(B) /usr/bin/python3 bench/sampling.py

bench-rdma: deps  ## a remote fault by RDMA beside its floor and TCP, in the lab
	@$(MAKE) --no-print-directory -j$$(nproc) tools
	@QEMU=$$(qemu-patches/build.sh) && export QEMU && BUILD=$(B) /usr/bin/python3 bench/bench_rdma.py

# ---- the rest ----

PREFIX ?= /usr/local
install: all  ## programs, man pages, units and docs, under $(DESTDIR)$(PREFIX); and /etc/default
	@DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) packaging/install.sh install $(B)

uninstall:  ## what install has put there, but for /etc
	@DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) packaging/install.sh uninstall $(B)

deb: build-deps  ## Debian packages, with the patched QEMU as one of them, in $(B)-deb
	@tests/deps $(DEPS_DEB)
	@packaging/deb.sh $(B)-deb

clean:  ## remove the build folders (not the cache of QEMU)
	rm -rf $(B) $(B)-asan $(B)-tsan $(B)-fuzz $(B)-deb

help:  ## print the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)/  \1\t\2/p' Makefile | expand -t 22

.PHONY: all tools deps build-deps qemu check unit check-unit check-integration check-e2e check-lab \
        check-libvirt check-package check-asan check-tsan lint fuzz fuzzers demo bench-migrate bench-sparse bench-mover \
        bench-placement bench-predict bench-fault bench-rate bench-sampling bench-rdma install uninstall deb clean help
.SECONDARY:
-include $(shell find $(B) $(B)-fuzz -name '*.d' 2>/dev/null)
