# SPDX-License-Identifier: GPL-2.0-or-later
#
# split-migrate: plain GNU make.  `make help` lists the targets.
#
#   V=1           show the commands        B=dir       build folder (default: build)
#   CC=clang      another compiler         SAN=asan    or tsan: sanitizer build in build-asan, build-tsan

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

PROGRAMS = split-migrate uffd-pager subhost-server
LIBS_split-migrate = -linih
PKGS = jansson

ALL_CFLAGS = $(CSTD) $(WARN) $(CFLAGS) $(HARDEN) $(SANFLAGS) -D_GNU_SOURCE -I. -pthread -MMD -MP
ALL_LDFLAGS = $(LDFLAGS) $(SANFLAGS) -pthread -pie -Wl,-z,relro,-z,now
LDLIBS = -ljansson

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))

# A program is its folder: main.c holds only main(), the rest goes into a library that tests link too.
sources = $(filter-out $(1)/main.c,$(wildcard $(1)/*.c))
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
$(PREDICTOR_LIB): $(call objects,$(filter-out predictor/replay.c,$(call sources,predictor)))
$(foreach p,$(PROGRAMS),$(eval $(B)/lib$(p).a: $(call objects,$(call sources,$(p)))))

%.a:
	$(call say,AR,$@)
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

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
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $< $(PROGRAM_LIBS) $(PREDICTOR_LIB) $(COMMON_LIB) $(LDLIBS) -linih -lcmocka -lm

$(B)/tests/tools/%: $(B)/tests/tools/%.o $(PROGRAM_LIBS) $(PREDICTOR_LIB) $(COMMON_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LDLIBS) -linih -lm

.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)
