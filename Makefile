# What a person types. Each target installs by apt what it lacks (see scripts/setup).

PGTENURE := target/release/pgtenure

.PHONY: help demo demo-exercise test test-part-1 test-part-2 test-part-3 test-part-4 check build bench fuzz test-grammar differential stress model sim set-up set-up-tests set-up-wishes set-up-drivers set-up-nemesis test-majors test-drivers test-staleness nemesis soak saturate bench-failover bench-managers

help:
	@echo 'make demo           a three-node cluster on loopback behind one endpoint; Ctrl-C stops it'
	@echo 'make demo-exercise  the same, plays its story without a person and checks it'
	@echo 'make test           every test, against real PostgreSQL and etcd'
	@echo 'make check          formatting and lints'
	@echo 'make differential   the protocol scripts cut at every byte, against PostgreSQL'
	@echo 'make stress         SEEDS=300 seeds of sessions that share servers, answered as alone at PostgreSQL, or from one on (SEED=25)'
	@echo 'make model          explore the failover protocol: every order of events within bounds'
	@echo 'make sim            play SEEDS=10000 seeds of faults against the shipped decisions, or one (SEED=8412) with its story'
	@echo 'make test-drivers   twelve drivers, through the endpoint and not, with equal results, and in failovers'
	@echo 'make test-majors    every test against the majors of PostgreSQL that are not installed, MAJORS="16 17 18"'
	@echo 'make test-staleness 100,000 reads per promise, checked while nodes fail and change roles'
	@echo 'make nemesis        faults of hosts, networks, disks, clocks and operators against a checker (SCENARIO, SEED, RUNS)'
	@echo 'make soak           the same, every scenario over and over, for HOURS=8'
	@echo 'make saturate       MINUTES=60 without a free core and with disks that stall for a second: no failover may come of it'
	@echo 'make bench-failover how long clients cannot write, over ROUNDS=50 failovers of each kind'
	@echo 'make bench-managers CPU of one manager process with CLUSTERS=200 clusters, and 20 failovers'
	@echo 'make fuzz           feed the decoders and scanners with bad input, a minute each'
	@echo 'make bench          what the endpoint costs, next to PgBouncer and a plain relay'

demo: build
	@exec $(PGTENURE) demo $(ARGS)

demo-exercise: build
	@exec $(PGTENURE) demo --exercise $(ARGS)

build: set-up
	cargo build --release --locked

# The tests start the program itself, which is built with them: built before and alone, with fewer features of what it depends
# on, half of that would be built twice. Much of it is waiting, so three parts of them run at once, by their first letters and
# about as long as each other; within each part the clusters take turns. The simulator and the
# model, which wait for nothing, have what they leave: a part of low priority.
TEST = cargo test --workspace --locked
test: set-up-wishes
	$(TEST) --no-run
	@scripts/in-memory $(MAKE) --no-print-directory -j4 $(PARTS)

PARTS = test-part-1 test-part-2 test-part-3 test-part-4
test-part-1: PART = --lib --bins --test '[ac]*'
test-part-2: PART = --test '[d-mr]*'
test-part-3: PART = --test '[!a-mrs]*' --test 's[!i]*'
test-part-4: PART = --test 'b*' --test 'si*'
test-part-4: TEST := nice -n 10 $(TEST)
$(PARTS): SHELL = /bin/bash
$(PARTS):
	@set -o pipefail; $(TEST) $(PART) -- --test-threads=1 2>&1 | sed -u 's/^/$(@:test-part-%=%): /'

# The same against majors that the distribution does not have; see scripts/majors for where they come from.
MAJORS ?= 16 17 18
test-majors: set-up-tests
	@for major in $(MAJORS); do bin=$$(scripts/majors target/majors $$major) && PGTENURE_TEST_PG_BIN=$$bin \
	  $(MAKE) --no-print-directory test || exit 1; done

# What `make test` does at every ninth byte and some seeded places, at every byte.
DIFFERENTIAL = cargo test --locked -p proxy --test differential -- --test-threads=1
differential: set-up-tests
	$(call KEEP,differential,PGTENURE_DIFFERENTIAL=full $(DIFFERENTIAL) --nocapture)

# Several random sessions on fewer servers; the tests play 14 seeds. A seed says what they say, not who meets whom: repeat
# one that differed. What was said is printed, and both answers.
stress: SEEDS = 300
STRESS = PGTENURE_STRESS_SEEDS='$(SEEDS)' PGTENURE_STRESS_SEED='$(SEED)' $(DIFFERENTIAL) --nocapture sessions_that_share
stress: set-up-tests
	$(if $(SEED),$(STRESS),$(call KEEP,stress,$(STRESS)))

# The tests play 500 seeds. One seed prints what happened; a seed that fails prints the end of it. As the decisions are shipped:
# released, ten thousand take minutes.
SEEDS ?= 10000
SEED ?=
sim: set-up
	SIM_SEEDS='$(SEEDS)' SIM_SEED='$(SEED)' cargo test --release --locked -p sim --test sim -- --nocapture every_seed

# What the tests explore within small bounds, further: hours and some GiB; it prints the states of each scope. SCOPE='catch up'
# explores those whose names have it. See failover/model/src/main.rs. What all scopes print is kept in integration/results.
MODEL = cargo run --release --locked -p model
model: set-up
	$(if $(SCOPE),$(MODEL) -- '$(SCOPE)',$(call KEEP,model,$(MODEL)))

# $(call KEEP,name,command): its output, when all went well, in a file of that name and today's date (and the time, where there is
# one of today), with the commit in line 1, and what was chosen: by make's command line or in the environment.
CHOSEN = env | grep -E '^(BENCH|CLUSTERS|DRIVERS|FUZZ|PGTENURE|SEED|STALENESS)[A-Z_]*=' | sort | sed 's/^/, /' | tr -d '\n'
KEEP = set -eu; mkdir -p target; part=$$(mktemp target/$(1).XXXXXX); trap "rm -f $$part $$part.rc" EXIT; : > $$part.rc; \
  date=$$(date +%F); time=$$(date +%H%M%S); \
  echo "make $@ on $$date, $$(git describe --always --dirty --exclude '*')$$($(CHOSEN))" > $$part; \
  { ($(2)) || echo $$? > $$part.rc; } | tee -a $$part; test ! -s $$part.rc; \
  kept=integration/results/$(1)-$$date; test ! -e $$kept.txt || kept=$$kept-$$time; cp $$part $$kept.txt; chmod 644 $$kept.txt

# Every driver's script against PostgreSQL and through the endpoint in both pooling modes and over TLS, and turns of every
# driver while the primary is replaced. Versions are pinned here, in
# integration/drivers/node/package.json and in integration/drivers/rust/Cargo.lock; JDBC's and Go's are the distribution's.
# DRIVERS=psql,pgx runs these only. PGTENURE_TEST_PG_BIN names another PostgreSQL, whose psql is played then; those
# of 16 to 18 have more to play.
DRIVERS ?=
MATRIX = PGTENURE_DRIVERS='$(DRIVERS)' cargo run --locked -p integration --example drivers
test-drivers: set-up-drivers
	cargo build --locked
	$(if $(DRIVERS),$(MATRIX),$(call KEEP,drivers,$(MATRIX)))

# Reads against their promises under faults, for some minutes; `make test` has a minute of it. STALENESS_READS,
# STALENESS_SECONDS and STALENESS_SEED change how many, how long at most, and what happens; STALENESS_CLUSTER=async the mode.
test-staleness: set-up-tests
	cargo build --locked
	cargo run --locked -p integration --example staleness

# A cluster on hosts of its own (network namespaces, hence as root) under the faults of integration/nemesis/scenarios, in
# which SCENARIO names one, several with commas, or all. A line per run is added to the file RESULTS.
SCENARIO ?= all
RUNS ?= 1
HOURS ?= 8
RESULTS ?= -
ROUNDS ?= 50
FAILOVERS ?= all
NEMESIS = cargo run --locked -q -p integration --example nemesis --
nemesis: set-up-nemesis
	cargo build --locked
	$(NEMESIS) run '$(SCENARIO)' '$(or $(SEED),1)' '$(RUNS)' '$(RESULTS)'

# One manager process with CLUSTERS clusters whose agents only pretend: its CPU, and a tenth of them failing over.
CLUSTERS ?= 200
bench-managers: set-up
	$(call KEEP,managers,MANAGED_CLUSTERS='$(CLUSTERS)' cargo test --release --locked -p failover --test manager -- --nocapture many_clusters)

soak: set-up-nemesis
	cargo build --locked
	$(NEMESIS) soak '$(HOURS)' '$(or $(SEED),1)' '$(RESULTS)'

# A cluster in which nothing dies, on a machine that is much too busy; every host's disk, etcd's too, stalls now and then.
MINUTES ?= 60
saturate: set-up-nemesis
	cargo build --locked
	$(NEMESIS) saturate '$(MINUTES)' '$(or $(SEED),1)' '$(RESULTS)'

# FAILOVERS names kinds, as in postmaster-killed,switchover. The program is the released one, the harness need not be.
bench-failover: set-up-nemesis build
	PGTENURE_BIN=$(CURDIR)/$(PGTENURE) $(NEMESIS) bench '$(ROUNDS)' '$(FAILOVERS)'

set-up-nemesis:
	@scripts/setup --nemesis

INSTALLED := target/drivers
set-up-drivers:
	@scripts/setup --drivers
	@mkdir -p $(INSTALLED)/node
	@test -x $(INSTALLED)/venv/bin/pip || /usr/bin/python3 -m venv $(INSTALLED)/venv
	@$(INSTALLED)/venv/bin/pip install -q 'psycopg[binary]==3.3.9' psycopg2-binary==2.9.13 asyncpg==0.32.0
	@cp integration/drivers/node/*.mjs integration/drivers/node/package.json $(INSTALLED)/node/
	@cd $(INSTALLED)/node && npm install --silent --no-audit --no-fund
	cargo build --locked --manifest-path integration/drivers/rust/Cargo.toml --target-dir $(INSTALLED)/rust
	GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$(CURDIR)/$(INSTALLED)/gocache go build -o $(INSTALLED)/go integration/drivers/go/main.go
	for own in pgx pq turns; do GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$(CURDIR)/$(INSTALLED)/gocache \
	  go build -o $(INSTALLED)/$$own integration/drivers/go/$$own/main.go || exit 1; done
	cc -Wall -Wextra -I/usr/include/postgresql integration/drivers/c/pipeline.c -lpq -o $(INSTALLED)/pipeline
	cc -Wall -Wextra -I/usr/include/postgresql integration/drivers/c/turns.c -lpq -o $(INSTALLED)/pipeline_turns

check: set-up-tests
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

# Each fuzz target for so many seconds, with libFuzzer. The flags are those of cargo-fuzz, which is not needed; no
# sanitizer, as what is fuzzed is safe Rust. A failing input is left in proxy/fuzz/artifacts: copy it to the corpus, which
# the tests replay.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= startup frontend backend scram classify
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS = --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
fuzz: set-up
	@cp Cargo.lock proxy/fuzz/Cargo.lock
	cd proxy/fuzz && RUSTFLAGS='$(FUZZ_FLAGS)' cargo build --release --target $(HOST)
	@$(call KEEP,fuzz,for target in $(FUZZ_TARGETS); do $(FUZZ_ONE); done)

# All that it prints is in proxy/fuzz/work, the end of that is shown.
FUZZ_ONE = work=proxy/fuzz/work/$$target; mkdir -p $$work proxy/fuzz/artifacts/$$target; \
  echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
  proxy/fuzz/target/$(HOST)/release/$$target $$work proxy/fuzz/corpus/$$target \
    -artifact_prefix=proxy/fuzz/artifacts/$$target/ -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 \
    -rss_limit_mb=512 -malloc_limit_mb=64 -print_final_stats=1 > $$work.log 2>&1 || { tail -n 60 $$work.log; exit 1; }; \
  grep -E '^(Done|stat::)' $$work.log || exit 1

# The classifier against PostgreSQL's own grammar: the corpus, and mutations of it. Needs libclang, hence apart from the
# tests. GRAMMAR_FILES may name files of SQL, such as PostgreSQL's regression tests.
GRAMMAR_ROUNDS ?= 2000000
test-grammar: set-up
	@ls /usr/lib/llvm-*/lib 2>/dev/null | grep -qE '^libclang(-[0-9.]+)?\.so' || apt-get install -y --no-install-recommends libclang-dev
	cd integration/grammar && GRAMMAR_ROUNDS=$(GRAMMAR_ROUNDS) cargo run $(if $(GRAMMAR_FILES),-- $(abspath $(GRAMMAR_FILES)))

set-up:
	@scripts/setup

set-up-tests:
	@scripts/setup --tests

set-up-wishes: set-up-tests
	@scripts/setup --wishes

# What classifying a statement costs, and a hop next to PgBouncer and a relay that parses nothing. Trust ratios only; see the head of
# proxy/benches/endpoint/main.rs for what can be chosen. Not part of the tests.
bench: set-up-tests
	@command -v /usr/sbin/pgbouncer >/dev/null || echo 'without PgBouncer: apt-get install pgbouncer'
	@$(if $(BENCH_ONLY),$(BENCH),$(call KEEP,bench,BENCH_STRICT=0; $(BENCH)); $(STRICTLY))
# Kept first: the run that misses a target is the one that is wanted.
STRICTLY = test "$${BENCH_STRICT:-0}" = 0 || ! grep -wE 'MISS|not measured' $$kept.txt
BENCH = cargo bench --locked -p proxy --bench classify && cargo bench --locked -p proxy --bench endpoint
