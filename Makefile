# What a person types. Each target installs by apt what it lacks (see scripts/setup).

PGTENURE := target/release/pgtenure

.PHONY: help demo demo-exercise test check build bench set-up set-up-tests

help:
	@echo 'make demo           a three-node cluster on loopback behind one endpoint; Ctrl-C stops it'
	@echo 'make demo-exercise  the same, plays its story without a person and checks it'
	@echo 'make test           every test, against real PostgreSQL and etcd'
	@echo 'make check          formatting and lints'
	@echo 'make bench          what the endpoint costs, next to PgBouncer and a plain relay'

demo: build
	@exec $(PGTENURE) demo $(ARGS)

demo-exercise: build
	@exec $(PGTENURE) demo --exercise $(ARGS)

build: set-up
	cargo build --release --locked

# The tests start the program itself. Clusters take turns, as they measure times: --test-threads=1.
test: set-up-tests
	cargo build --locked
	cargo test --workspace --locked -- --test-threads=1

check: set-up-tests
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

set-up:
	@scripts/setup

set-up-tests:
	@scripts/setup --tests

# What a hop costs next to PgBouncer and a relay that parses nothing. Trust ratios only; see the head of
# proxy/benches/endpoint/main.rs for what can be chosen. Not part of the tests.
bench: set-up-tests
	@command -v /usr/sbin/pgbouncer >/dev/null || echo 'without PgBouncer: apt-get install pgbouncer'
	@cargo bench --locked -p proxy --bench endpoint
