# pagewarden: `make run` and `make test` are the two commands that matter; `make help` lists the rest.
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
CLANG   ?= clang-14
PYTHON  ?= /usr/bin/python3
B       ?= build
SAN     ?=
OPT     ?= -O2 -g
PREFIX  ?= /usr/local
DESTDIR ?=
JOBS    ?= $(shell nproc)
FUZZ_SECONDS ?= 10
SOAK_SECONDS ?= 600
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(JOBS) --no-print-directory
endif

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wswitch-enum -Wmissing-prototypes -Wstrict-prototypes \
        -Wvla -Wformat=2 -Wpointer-arith -Wundef -Wwrite-strings -Wno-unused-parameter -Werror
HARDEN   := -fstack-protector-strong -fPIE $(if $(SAN),,-D_FORTIFY_SOURCE=2)
CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS   := -std=gnu17 $(OPT) $(WARN) -fno-common $(HARDEN) $(SAN) $(if $(SAN),-Wno-error)
LDFLAGS  := -pie -Wl,-z,relro,-z,now $(SAN)
LIBS     := -lsqlite3 -lsodium -ljansson -lcurl -lmicrohttpd -lgnutls -lnettle -linih -lsystemd -lpthread -lm

CRITERION := -lcriterion
ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
TSAN := -fsanitize=thread -fno-omit-frame-pointer

# What there is: libpagewarden.a has every module, each program one main, each test file one program.
dirs     := engine engine/arch store api server agents
mains    := server/pagewardend.c api/pagewarden.c agents/pagewarden-agent.c
src      := $(foreach d,$(dirs),$(wildcard $d/*.c))
objs     := $(patsubst %.c,$B/%.o,$(filter-out $(mains),$(src))) $B/api/openapi_json.o
lib      := $B/libpagewarden.a
bins     := $(foreach m,$(wildcard $(mains)),$B/$(basename $(notdir $m)))
lib_objs := $(patsubst %.c,$B/%.o,$(wildcard tests/lib/*.c))
program   = $(patsubst %.c,$B/%,$(wildcard $1))
units    := $(call program,$(filter-out tests/lib/%,$(wildcard tests/*/test_*.c tests/*/*/test_*.c)))
benches  := $(call program,tests/bench/*.c)
fuzzers  := $(call program,tests/fuzz/fuzz_*.c)
blackbox := $(wildcard tests/blackbox/test_*.py)
slow     := $(wildcard tests/blackbox/test_crash*.py tests/blackbox/test_slow*.py tests/blackbox/test_mutants.py)
all_c    := $(src) $(wildcard tests/*/*.c tests/*/*/*.c)
all_h    := $(wildcard $(addsuffix /*.h,$(dirs)) tests/*/*.h)

.PHONY: build help run test check unit units mutants lint clang-build objects asan tsan threaded-run fuzz fuzz-run coverage cov-run lint-text soak bench install uninstall deps limits clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

build: $(bins) ## the three programs, in build/ (what plain `make` does)

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

run: ## install what is missing, build, start a server and the agents of a mixed fleet, show the main job; until Ctrl-C
	@deploy/deps.sh build
	@$(MAKE) build
	@B=$B exec setpriv --pdeathsig TERM deploy/demo.sh

## Building (V=1 shows the commands)
Q := $(if $(V),,@)
say = @echo '  $1 $(patsubst $B/%,%,$@)'
$B/.flags: FORCE
	@for p in $(firstword $(CC)) $(PYTHON); do command -v $$p >/dev/null \
		|| { echo "there is no $$p here: \`deploy/deps.sh build\` installs what building needs" >&2; exit 1; }; done
	@mkdir -p $B
	@echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS)' | cmp -s - $@ || echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS)' > $@
$B/%.o: %.c $B/.flags
	@mkdir -p $(@D)
	$(call say,CC )
	$Q$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
$B/api/openapi_json.c: api/openapi.yaml api/openapi_c.py | $B/.flags
	@mkdir -p $(@D)
	$Q$(PYTHON) api/openapi_c.py <api/openapi.yaml >$@
$B/api/openapi_json.o: $B/api/openapi_json.c $B/.flags
	$Q$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(lib): $(objs)
	@rm -f $@
	$Qar rcs $@ $^
	@nm -A --defined-only -g $@ | awk '{ if ($$3 in at) { print "two of one name: " $$3 " in " at[$$3] " and " $$1; n++ } at[$$3] = $$1 } END { exit n > 0 }'
$B/pagewardend: $B/server/pagewardend.o $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$B/pagewarden: $B/api/pagewarden.o $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$B/pagewarden-agent: $B/agents/pagewarden-agent.o $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(units): $B/%: $B/%.o $(lib_objs) $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -o $@ $^ $(CRITERION) $(LIBS)
$(benches): $B/%: $B/%.o $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(fuzzers): $B/%: $B/%.o $(lib)
	$(call say,LD )
	$Q$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)
-include $(patsubst %.c,$B/%.d,$(all_c))

## Testing. tests/run.py runs programs and black-box files in parallel, shows failures only, and counts.
runner := $(PYTHON) tests/run.py --build $B --jobs $(JOBS)

check: build $(units) ## fast: unit tests and the quick black-box ones
	@$(runner) --timeout $(or $(TIMEOUT),120) $(units) $(filter-out $(slow),$(blackbox))

# Every step runs whatever the others said; a step that fails counts as one failed test in the last line.
test: ## everything: both compilers, unit, black-box, sanitizers, fuzzing, lint, coverage
	@deploy/deps.sh build test
	@failed=; for step in build clang-build lint asan tsan fuzz coverage; do \
		echo "== $$step"; $(MAKE) $$step || failed="$$failed $$step"; done; \
	echo "== tests"; $(MAKE) units && $(runner) --failed-steps "$$failed" $(units) $(blackbox)

units: $(units)
	@:
unit: $(units) ## the unit tests alone
	@$(runner) --timeout $(or $(TIMEOUT),120) $(units)
mutants: build $(units) ## every cell of every table changed, one at a time: which changes do tests notice? (MUTANTS='--only pef*')
	@$(PYTHON) tests/mutants.py --build $B --jobs $(JOBS) $(MUTANTS)

clang-build: ## everything compiled by clang as well, warnings are errors
	@$(MAKE) B=$B/clang CC=$(CLANG) objects
objects: $(objs) $(patsubst %.c,$B/%.o,$(filter-out tests/fuzz/%,$(all_c)))

asan: ## the same as check, under AddressSanitizer and UBSan
	@$(MAKE) B=$B/asan SAN='$(ASAN)' OPT='-O1 -g' TIMEOUT=300 check
tsan: ## the threaded parts, under ThreadSanitizer: their unit tests, and the server under load
	@$(MAKE) B=$B/tsan SAN='$(TSAN) -isystem tests/tsan' CRITERION= OPT='-O1 -g' TIMEOUT=300 threaded-run
threaded := $(filter $(addprefix $B/tests/,store/% api/% server/% agents/%),$(units)) \
	$(foreach t,invariants contract_operations contract_events crash_server slow_disk,tests/blackbox/test_$t.py)
threaded-run: build $(filter $B/%,$(threaded))
	@TSAN_OPTIONS="atexit_sleep_ms=50 suppressions=$(CURDIR)/tests/tsan.supp $$TSAN_OPTIONS" \
		$(runner) --timeout $(TIMEOUT) $(threaded)

soak: build ## the model of tests/model against everything for SOAK_SECONDS (600); SEED repeats a run
	@PAGEWARDEN_BUILD=$B SOAK_SECONDS=$(SOAK_SECONDS) SEED=$(SEED) $(PYTHON) tests/soak.py

fuzz: ## each parser's fuzzer for FUZZ_SECONDS (10)
	@$(MAKE) B=$B/fuzz CC=$(CLANG) SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' OPT='-O1 -g' fuzz-run
fuzz-run: $(fuzzers)
	@for f in $(fuzzers); do c=$$f.corpus; mkdir -p $$c; \
		echo "$${f##*/}: $(FUZZ_SECONDS) s"; \
		$$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -artifact_prefix=$$f- $$c \
			$$(ls -d tests/fuzz/corpus/$${f##*/} 2>/dev/null) >$$f.log 2>&1 \
			|| { tail -n 40 $$f.log; exit 1; }; done

coverage: ## line coverage of unit and black-box tests; engine and store must have 90 %
	@$(MAKE) B=$B/cov SAN='--coverage -fprofile-update=atomic' OPT='-O0 -g' cov-run
cov-run: build $(units)
	@find $B -name '*.gcda' -delete
	@$(runner) --timeout 300 $(units) $(filter-out $(slow),$(blackbox)) || echo "(failures count in the plain run; here lines do)"
	@gcovr --root . --object-directory $B $(foreach d,engine store api server agents,--filter $d/) \
		--exclude-throw-branches --json $B/coverage.json $B
	@gcovr --root . -a $B/coverage.json >$B/coverage.txt
	@for d in engine store api server agents; do \
		case $$d in engine | store) least=90 ;; *) least=0 ;; esac; \
		gcovr --root . -a $B/coverage.json --filter $$d/ --fail-under-line $$least >$B/$$d.txt && low= || low=", below $$least %"; \
		sed -n "s/^TOTAL *[0-9]* *[0-9]* *\(.*\)/$$d: \1$$low/p" $B/$$d.txt; test -z "$$low" || exit 1; done
	@echo "lines that no test ran: $B/coverage.txt"

tidied := $(patsubst %.c,$B/tidy/%.ok,$(filter-out tests/%,$(src)))
lint: lint-text $(tidied) $B/cppcheck.ok ## formatting, clang-tidy, cppcheck, house rules
lint-text:
	@clang-format-14 --dry-run -Werror $(all_c) $(all_h)
	@tests/lint.sh
$B/tidy/%.ok: %.c $B/%.o .clang-tidy
	@mkdir -p $(@D)
	@clang-tidy-14 --quiet --warnings-as-errors='*' $< -- $(CPPFLAGS) -std=gnu17 2>$@.log || { cat $@.log; exit 1; }
	@touch $@
$B/cppcheck.ok: $(src) $(all_h)
	@mkdir -p $(@D)
	@cppcheck --quiet -j$(JOBS) --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
		--suppress=missingIncludeSystem --suppress=varFuncNullUB --suppress=internalAstError --template=gcc -I. $(src)
	@touch $@

bench: build $(benches) ## the measured figures (tests/bench)
	@for b in $(benches); do echo "== $${b##*/}"; $$b || exit 1; done
	@for b in $(wildcard tests/bench/*.sh tests/bench/*.py); do echo "== $${b##*/}"; B=$B $$b || exit 1; done

## Installing
share := $(DESTDIR)$(PREFIX)/share
units_dir := $(DESTDIR)$(PREFIX)/lib/systemd/system
sysusers := $(DESTDIR)$(PREFIX)/lib/sysusers.d
install: build ## programs, units, completion, documents (DESTDIR, PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin $(units_dir) $(sysusers) $(share)/doc/pagewarden \
		$(share)/pagewarden $(share)/bash-completion/completions
	install -m 755 $(bins) $(DESTDIR)$(PREFIX)/bin
	install -m 755 deploy/tls.sh $(share)/pagewarden
	install -m 644 README.md docs/*.md deploy/pagewardend.ini api/openapi.yaml $(share)/doc/pagewarden
	for u in deploy/*.service; do sed 's|/usr/local|$(PREFIX)|' $$u | install -m 644 /dev/stdin $(units_dir)/$${u##*/}; done
	install -m 644 deploy/pagewarden.sysusers $(sysusers)/pagewarden.conf
	$B/pagewarden completion bash > $(share)/bash-completion/completions/pagewarden
	chmod 644 $(share)/bash-completion/completions/pagewarden
uninstall: ## what install put there
	rm -rf $(share)/doc/pagewarden $(share)/pagewarden
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(notdir $(bins))) $(addprefix $(units_dir)/,$(notdir $(wildcard deploy/*.service))) \
		$(sysusers)/pagewarden.conf $(share)/bash-completion/completions/pagewarden

limits: build ## docs/limits.md, from what pagewardend prints
	@{ sed '/^| limit/,$$d' docs/limits.md; $B/pagewardend --print-limits; } >$B/limits.md && mv $B/limits.md docs/limits.md
deps: ## install the Debian packages that are missing
	@deploy/deps.sh build test
clean: ## remove build/
	rm -rf $B
