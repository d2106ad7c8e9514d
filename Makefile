# Skerry. `make` builds, `make demo` shows it, `make check` tests it; `make help` lists the rest.
#
# One Makefile, no recursion; everything made goes below build/ (build/asan, build/tsan, ... for
# the variants). Sources are found by folder, so a new file needs no line here.

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
VERSION := 0.1.0
SAN ?=
VARIANT := $(if $(SAN),$(SAN),plain)$(if $(findstring clang,$(CC)),-clang)
B ?= build$(if $(filter-out plain,$(VARIANT)),/$(VARIANT))

LIBS_NODE := libuv raft liblz4 libprotobuf-c libmicrohttpd jansson yaml-0.1 libsodium openssl libcurl libarchive libssh
LIBS_RUNNER := libprotobuf-c jansson yaml-0.1 libsodium libseccomp libcap libnl-route-3.0 libnftables libarchive
LIBS_TEST := cmocka

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wformat=2 -Wstrict-prototypes \
            -Wmissing-prototypes -Wvla -Werror
HARDENING := -fstack-protector-strong -fPIE
ifeq ($(SAN),)
HARDENING += -D_FORTIFY_SOURCE=2
endif
SANFLAGS_address := -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=all
SANFLAGS_thread := -fsanitize=thread -fno-omit-frame-pointer
SANFLAGS := $(SANFLAGS_$(SAN))
OPT ?= -O2 -g
# Headers of libnl have a folder of their own.
CPPFLAGS_ALL = -iquote . -isystem /usr/include/libnl3 -I$(B)/gen -D_GNU_SOURCE -DSKERRY_VERSION='"$(VERSION)"' $(CPPFLAGS)
CFLAGS_ALL = -std=gnu11 $(OPT) $(WARNINGS) $(HARDENING) $(SANFLAGS) -pthread $(CFLAGS)
LDFLAGS_ALL = -pie -Wl,-z,relro,-z,now $(SANFLAGS) -pthread $(LDFLAGS)
RUNNER_LDFLAGS = -pie -Wl,-z,relro,-z,now $(RUNNER_SANFLAGS) -pthread $(LDFLAGS)
pkg = $(shell pkg-config $(1) $(2) 2>/dev/null)

# --- sources by folder ---------------------------------------------------------------------------
PROTOS := $(wildcard sandbox/*.proto raft/*.proto node/*/*.proto)
PROTO_C := $(PROTOS:%.proto=$(B)/gen/%.pb-c.c)
PROTO_H := $(PROTO_C:.c=.h)
BASE := $(wildcard base/*.c)
# base/ without the parts that need libuv or TLS: the runner has neither.
BASE_RUNNER := $(filter-out base/inbox.c base/map.c base/identity%.c base/secure_%.c,$(BASE))
SANDBOX_SHARED := $(wildcard sandbox/shared/*.c)
NODE_LIB := $(BASE) $(wildcard raft/*.c gateway/*.c scheduler/*.c gossip/*.c sandbox/*.c) \
            $(SANDBOX_SHARED) $(filter-out node/main.c,$(wildcard node/*.c node/*/*.c))
RUNNER_LIB := $(BASE_RUNNER) $(SANDBOX_SHARED) $(filter-out sandbox/runner/main.c,$(wildcard sandbox/runner/*.c))
AGENT_SRC := $(wildcard sandbox/agent/*.c) $(filter-out sandbox/shared/userns.c,$(SANDBOX_SHARED)) base/err.c base/memory.c base/clock.c base/buffer.c

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
# The runner has one thread, and clones in ways that the thread sanitizer does not follow: it and its
# tests are compiled without that one.
RO := $(B)/$(if $(filter thread,$(SAN)),single,obj)
RUNNER_SANFLAGS := $(if $(filter thread,$(SAN)),,$(SANFLAGS))
robj = $(patsubst %.c,$(RO)/%.o,$(1))
# The agent is static: its objects are compiled apart, without sanitizers.
aobj = $(patsubst %.c,$(B)/agent/%.o,$(1))
PROTO_OBJ := $(PROTO_C:$(B)/gen/%.c=$(B)/obj/gen/%.o)
SANDBOX_PROTO_C := $(patsubst sandbox/%.proto,$(B)/gen/sandbox/%.pb-c.c,$(wildcard sandbox/*.proto))
SANDBOX_PROTO_OBJ := $(patsubst sandbox/%.proto,$(RO)/gen/sandbox/%.pb-c.o,$(wildcard sandbox/*.proto))
AGENT_PROTO_OBJ := $(patsubst sandbox/%.proto,$(B)/agent/gen/sandbox/%.pb-c.o,$(wildcard sandbox/*.proto))

.DEFAULT_GOAL := all
# Objects of tests are kept, not made again by every call.
.SECONDARY:
.PHONY: all
all: $(B)/skerry

# What is compiled needs the packages first, also with -j.
DEPS := $(B)/deps.stamp
$(DEPS): deploy/deps
	@deploy/deps --quiet
	@mkdir -p $(dir $@) && touch $@

$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h: %.proto | $(DEPS)
	@mkdir -p $(dir $@)
	@protoc-c --c_out=$(B)/gen $<

$(B)/obj/%.o: %.c Makefile | $(PROTO_H) $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(CFLAGS_FILE) -MMD -MP -c -o $@ $<

# Generated code is not held to our warnings.
$(B)/obj/gen/%.o: $(B)/gen/%.c Makefile
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(filter-out $(WARNINGS),$(CFLAGS_ALL)) -MMD -MP -c -o $@ $<

$(B)/single/%.o: %.c Makefile | $(PROTO_H) $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(filter-out $(SANFLAGS),$(CFLAGS_ALL)) -MMD -MP -c -o $@ $<
$(B)/single/gen/%.o: $(B)/gen/%.c Makefile
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(filter-out $(WARNINGS) $(SANFLAGS),$(CFLAGS_ALL)) -MMD -MP -c -o $@ $<

AGENT_CFLAGS := -std=gnu11 -Os -g $(WARNINGS) -fstack-protector-strong -D_FORTIFY_SOURCE=2 \
                -ffunction-sections -fdata-sections -fno-pie
$(B)/agent/%.o: %.c Makefile | $(PROTO_H) $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(AGENT_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/agent/gen/%.o: $(B)/gen/%.c Makefile
	@mkdir -p $(dir $@)
	@$(CC) $(CPPFLAGS_ALL) $(filter-out $(WARNINGS),$(AGENT_CFLAGS)) -MMD -MP -c -o $@ $<

# agent -> carried by the runner -> carried by skerry.
$(B)/skerry-agent: $(call aobj,$(AGENT_SRC)) $(AGENT_PROTO_OBJ)
	@$(CC) -static -no-pie -Wl,--gc-sections -Wl,-z,relro,-z,now -o $@ $^ -l:libprotobuf-c.a
	@objcopy --strip-debug $@

define embed # symbol, file
	@mkdir -p $(dir $@)
	@printf '.section .rodata\n.balign 4096\n.global $(1)_begin\n$(1)_begin:\n.incbin "$(2)"\n.global $(1)_end\n$(1)_end:\n.section .note.GNU-stack,"",%%progbits\n' > $(@:.o=.S)
	@$(CC) -c -o $@ $(@:.o=.S)
endef
$(B)/obj/embedded_agent.o: $(B)/skerry-agent
	$(call embed,embedded_agent,$(B)/skerry-agent)
$(B)/obj/embedded_runner.o: $(B)/skerry-runner
	$(call embed,embedded_runner,$(B)/skerry-runner)

$(B)/librunner.a: $(call robj,$(RUNNER_LIB)) $(SANDBOX_PROTO_OBJ)
	@rm -f $@; ar rcs $@ $^
$(B)/libskerry.a: $(call obj,$(NODE_LIB)) $(PROTO_OBJ)
	@rm -f $@; ar rcs $@ $^

$(B)/skerry-runner: $(RO)/sandbox/runner/main.o $(B)/librunner.a $(B)/obj/embedded_agent.o
	@$(CC) $(RUNNER_LDFLAGS) -o $@ $^ $(call pkg,--libs,$(LIBS_RUNNER))
# These come when they are called (node/late.h); elsewhere, and with sanitizers, with the program.
LATE := $(if $(SAN),,$(if $(filter x86_64,$(shell uname -m)),curl archive ssh microhttpd ssl crypto))
$(B)/gen/late.S: deploy/late $(B)/obj/node/main.o $(B)/libskerry.a
	@CC="$(CC)" deploy/late $(LATE) -- $(filter-out deploy/late,$^) >$@.new && mv $@.new $@
$(B)/obj/late.o: $(B)/gen/late.S
	@$(CC) -c -o $@ $<
$(B)/skerry: $(B)/obj/node/main.o $(B)/libskerry.a $(B)/obj/embedded_runner.o $(if $(LATE),$(B)/obj/late.o)
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter-out $(B)/libskerry.a,$^) $(B)/libskerry.a \
	    $(filter-out $(addprefix -l,$(LATE)),$(call pkg,--libs,$(LIBS_NODE))) -lm
	@echo "built $@"

# --- tests ---------------------------------------------------------------------------------------
# tests/unit/test_X.c links libskerry; tests/unit/runner_test_X.c links librunner (its second main
# would clash, and the runner has libraries of its own). nng, a client of which asks ours in
# test_peer_strangers, has no .pc file.
UNIT := $(patsubst tests/unit/%.c,$(B)/tests/%,$(wildcard tests/unit/test_*.c))
UNIT_RUNNER := $(patsubst tests/unit/%.c,$(B)/tests/%,$(wildcard tests/unit/runner_test_*.c))
# These start runners, or use user ids, control groups and networks of the machine: one after the other.
UNIT_MACHINE := $(addprefix $(B)/tests/runner_test_,run hostile restart probe layers leaks groups io rootless net_egress net_names)
TEST_LIB := $(call obj,$(filter-out tests/lib/probe%.c tests/lib/fuzz_main.c,$(wildcard tests/lib/*.c)))
$(B)/tests/test_%: $(B)/obj/tests/unit/test_%.o $(TEST_LIB) $(B)/libskerry.a
	@mkdir -p $(dir $@)
	@$(CC) $(LDFLAGS_ALL) -o $@ $^ $(call pkg,--libs,$(LIBS_NODE) $(LIBS_TEST)) -lnng -lm
$(B)/tests/runner_test_%: $(RO)/tests/unit/runner_test_%.o $(B)/librunner.a $(B)/obj/embedded_agent.o
	@mkdir -p $(dir $@)
	@$(CC) $(RUNNER_LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(call pkg,--libs,$(LIBS_RUNNER) $(LIBS_TEST))
# What the node packs, the store must take: these have both sides.
$(B)/tests/runner_test_image $(B)/tests/runner_test_probe $(B)/tests/runner_test_rootless \
$(B)/tests/runner_test_io: \
	$(call robj,node/cli/pack.c node/cli/pack_walk.c)
$(B)/tests/runner_test_probe $(B)/tests/runner_test_rootless $(B)/tests/runner_test_io: \
	$(call robj,tests/lib/runner_import.c)

# A real runner and a plain client of it.
$(B)/tests/runner_test_run $(B)/tests/runner_test_hostile $(B)/tests/runner_test_restart \
$(B)/tests/runner_test_probe $(B)/tests/runner_test_layers $(B)/tests/runner_test_leaks \
$(B)/tests/runner_test_rootless $(B)/tests/runner_test_io: \
	$(call robj,tests/lib/runner_fixture.c)

# Programs to measure by hand.
$(B)/bench/%: $(B)/obj/tests/bench/%.o $(TEST_LIB) $(B)/libskerry.a
	@mkdir -p $(dir $@)
	@$(CC) $(LDFLAGS_ALL) -o $@ $^ $(call pkg,--libs,$(LIBS_NODE) $(LIBS_TEST)) -lm

# Programs that run inside a sandbox, static: one for each tests/sandbox/X.c, and the probe.
PROBES := $(patsubst tests/sandbox/%.c,$(B)/probe/%,$(wildcard tests/sandbox/*.c)) $(B)/probe/probe
PROBE_CFLAGS := -std=gnu11 -O2 -D_GNU_SOURCE -Wall -Wextra -Werror -static -pthread
$(B)/probe/%: tests/sandbox/%.c | $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) $(PROBE_CFLAGS) -o $@ $<
$(B)/probe/probe: $(wildcard tests/sandbox/probe/*.c) tests/sandbox/probe/probe.h
	@mkdir -p $(dir $@)
	@$(CC) $(PROBE_CFLAGS) -o $@ $(filter %.c,$^)
$(B)/tests/runner_test_probe $(B)/tests/runner_test_rootless: | $(PROBES)
$(B)/tests/runner_test_rootless: | $(B)/skerry-runner $(B)/skerry

.PHONY: unit check check-programs
unit: $(UNIT) $(UNIT_RUNNER) $(B)/skerry
	@B=$(B) tests/lib/run-unit $(UNIT_MACHINE) -- $(filter-out $(UNIT_MACHINE),$(UNIT_RUNNER)) $(UNIT)
# Programs are made by as many jobs as there are cores, unless make was told how many. Clusters mostly
# wait; what only computes, on clocks of its own, goes on beside them and takes no time from them.
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
check-programs: $(UNIT) $(UNIT_RUNNER) $(B)/skerry $(PROBES)
check:
	@$(MAKE) --no-print-directory $(JOBS) check-programs
	@$(MAKE) --no-print-directory unit
	@nice -n 19 sh -c '$(SIM_CHECK) && $(FUZZ_REPLAY)' >$(B)/beside.log 2>&1 & beside=$$!; \
	  B=$(B) tests/lib/run-cluster; clusters=$$?; \
	  wait $$beside; beside=$$?; cat $(B)/beside.log; [ $$clusters = 0 ] && [ $$beside = 0 ]

# With a kernel of its own package: control groups of version 2, whatever this machine has.
V2 = runner_test_probe runner_test_run runner_test_rootless runner_test_io
.PHONY: check-v2
check-v2: $(V2:%=$(B)/tests/%) $(PROBES)
	@deploy/deps --quiet --v2
	@B=$(B) tests/sandbox/v2 $(V2)

# With a browser of its own package, which nothing else needs.
.PHONY: check-browser
check-browser: all
	@deploy/deps --quiet --browser
	@FOLDER=browser B=$(B) tests/lib/run-cluster

# --- the simulator: a cluster on one seeded clock; a failure prints its seed ------------------------
SIM := $(call obj,$(wildcard tests/sim/*.c) tests/lib/registry_help.c)
SEEDS ?= 200
$(B)/sim: $(SIM) $(B)/libskerry.a
	@$(CC) $(LDFLAGS_ALL) -o $@ $^ $(call pkg,--libs,$(LIBS_NODE)) -lm
.PHONY: sim sim-check
sim:  $(B)/sim
	@$(B)/sim --seeds $(SEEDS) --table 1000
	@$(B)/sim --seeds $(SEEDS) --guard off
# The checks must bite: without the guard around libraft an entry is lost within so many seeds.
SIM_CHECK = $(B)/sim --seeds 200 --table 30 && $(B)/sim --seeds 50 --guard off
sim-check:  $(B)/sim
	@$(SIM_CHECK)

# --- fuzzers: clang's libFuzzer; regressions in tests/fuzz/NAME.corpus are replayed with gcc too ---
# fuzz_X.c links libskerry, runner_fuzz_X.c librunner, as with unit tests.
FUZZERS := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c tests/fuzz/runner_fuzz_*.c))
FUZZ_SECONDS ?= 600
FUZZ_CC ?= clang
FUZZ_CFLAGS := -std=gnu11 -O1 -g -fsanitize=fuzzer-no-link,address,undefined -pthread
FUZZ_LINK = @mkdir -p $(dir $@); clang -fsanitize=fuzzer,address,undefined -pthread -o $@ $^
fobj = $(patsubst %.c,$(B)/fuzz/obj/%.o,$(patsubst $(B)/%,%,$(1)))
$(B)/fuzz/obj/%.o: %.c Makefile | $(PROTO_H) $(DEPS)
	@mkdir -p $(dir $@)
	@$(FUZZ_CC) $(CPPFLAGS_ALL) $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/fuzz/obj/gen/%.o: $(B)/gen/%.c Makefile
	@mkdir -p $(dir $@)
	@$(FUZZ_CC) $(CPPFLAGS_ALL) $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/fuzz/fuzz_%: $(B)/fuzz/obj/tests/fuzz/fuzz_%.o $(call fobj,$(NODE_LIB) $(PROTO_C))
	$(FUZZ_LINK) $(call pkg,--libs,$(LIBS_NODE)) -lm
$(B)/fuzz-replay/%: $(B)/obj/tests/fuzz/%.o $(B)/obj/tests/lib/fuzz_main.o $(B)/libskerry.a
	@mkdir -p $(dir $@)
	@$(CC) $(LDFLAGS_ALL) -o $@ $^ $(call pkg,--libs,$(LIBS_NODE)) -lm
$(B)/fuzz/runner_fuzz_%: $(B)/fuzz/obj/tests/fuzz/runner_fuzz_%.o \
		$(call fobj,$(RUNNER_LIB) $(SANDBOX_PROTO_C)) $(B)/obj/embedded_agent.o
	$(FUZZ_LINK) $(call pkg,--libs,$(LIBS_RUNNER))
$(B)/fuzz-replay/runner_fuzz_%: $(B)/obj/tests/fuzz/runner_fuzz_%.o $(B)/obj/tests/lib/fuzz_main.o \
		$(B)/librunner.a $(B)/obj/embedded_agent.o
	@mkdir -p $(dir $@)
	@$(CC) $(LDFLAGS_ALL) -o $@ $^ $(call pkg,--libs,$(LIBS_RUNNER))
.PHONY: fuzz fuzz-replay
check-programs: $(B)/sim $(FUZZERS:%=$(B)/fuzz-replay/%)
fuzz: $(FUZZERS:%=$(B)/fuzz/%)
	@for f in $(FUZZERS); do mkdir -p $(B)/fuzz-corpus/$$f; \
	  $(B)/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) $(B)/fuzz-corpus/$$f tests/fuzz/$$f.corpus || exit 1; done
FUZZ_REPLAY = for f in $(FUZZERS); do $(B)/fuzz-replay/$$f tests/fuzz/$$f.corpus || exit 1; done
fuzz-replay: $(FUZZERS:%=$(B)/fuzz-replay/%)
	@$(FUZZ_REPLAY)

# --- the rest ------------------------------------------------------------------------------------
.PHONY: demo bench lint format deps clean help install
demo: all
	@B=$(B) deploy/demo/run $(if $(KEEP),--keep)
# Skerry beside its peers, which are installed for it; ONLY=warm-join for one, ROUNDS=1 for a quick look.
$(B)/bench/launch $(B)/bench/ask: $(B)/bench/%: tests/bench/%.c | $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) $(PROBE_CFLAGS) -o $@ $<
$(B)/bench/allocations.so: tests/bench/preload/allocations.c | $(DEPS)
	@mkdir -p $(dir $@)
	@$(CC) -O2 -Wall -Wextra -Werror -fPIC -shared -o $@ $<
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))
bench: all $(PROBES) $(BENCHES) $(B)/bench/allocations.so $(B)/sim
	@deploy/deps --quiet --bench
	@B=$(B) tests/bench/bench
.PHONY: bench-core bench-markdown
bench-core:
	@$(MAKE) --no-print-directory bench ONLY=warm-join,cold
bench-markdown:
	@B=$(B) tests/bench/bench --markdown
# A node of NODES is killed, KILLS times, beside HOGS processes that burn CPU.
.PHONY: bench-gossip
bench-gossip: $(B)/bench/gossip
	@$(B)/bench/gossip $(or $(KILLS),20) $(or $(NODES),5) $(or $(HOGS),0)
lint: deps-lint $(PROTO_H)
	@B=$(B) tests/lib/lint
format: deps-lint
	@git ls-files '*.c' '*.h' | xargs clang-format -i
install: all
	install -D -m 0755 $(B)/skerry $(DESTDIR)/usr/bin/skerry
	install -D -m 0644 deploy/systemd/skerry.service $(DESTDIR)/usr/lib/systemd/system/skerry.service
	install -D -m 0644 deploy/systemd/skerry-runner.service $(DESTDIR)/usr/lib/systemd/system/skerry-runner.service
deps:
	@deploy/deps --list
	@deploy/deps
.PHONY: deps-lint
deps-lint:
	@deploy/deps --quiet --lint
clean:
	rm -rf build
help:
	@echo 'make            build build/skerry'
	@echo 'make demo       start Skerry here, run the examples, explain each step (KEEP=1: leave it running)'
	@echo 'make check      build and run all tests; SAN=address or SAN=thread for the sanitizers'
	@echo 'make unit       the unit tests alone'
	@echo 'make check-v2   the sandbox on control groups of version 2 and Linux 6.1, in user-mode-linux'
	@echo 'make check-browser  pages, events and WebSockets in headless Chromium'
	@echo 'make sim        gossip and registry of simulated clusters, SEEDS=200, and a table up to 1,000 nodes'
	@echo 'make fuzz       all fuzzers, FUZZ_SECONDS=600 each (clang)'
	@echo 'make bench      beside nginx, haproxy, bwrap, crun, runc, podman, etcd and serf; ONLY=name for one comparison'
	@echo 'make bench-markdown  the last results into docs/benchmarks.md'
	@echo 'make lint       format, static analysis, and the rules of this house'
	@echo 'make format     clang-format in place'
	@echo 'make deps       list and install the Debian packages that are needed'
	@echo 'make install    into DESTDIR, with systemd units'

-include $(shell find $(B) -name '*.d' 2>/dev/null)
