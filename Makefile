# The commands of the project; README.md says what each is for.
.PHONY: test sim check-model chaos soak demo image crds lint setup

# Tests that could not run say so in this file, by name and why.
NOT_RUN := $(CURDIR)/target/not-run

test: setup
	@mkdir -p target && rm -f $(NOT_RUN)
	CABLOY_NOT_RUN=$(NOT_RUN) cargo test --workspace --locked
	@if [ -s $(NOT_RUN) ]; then \
		echo "$$(wc -l < $(NOT_RUN)) tests did not run:"; cat $(NOT_RUN); \
	else echo "0 tests did not run"; fi

# The election in so many simulated worlds; one of them with all that happens: cargo run -p cabloy-sim -- --seed N.
# ENGINE=1: with the schedule engine on top of it.
SEEDS ?= 1000000
sim:
	@cargo run --locked -p cabloy-sim -- --seeds $(SEEDS) $(if $(ENGINE),--engine)

# Every state of three masters and up to three agents, within bounds; LARGER=1, 2, … widens them, and then each of the 16
# scenarios goes as far as it comes in so many SECONDS.
LARGER ?= 0
SECONDS ?= 120
check-model:
	@CHECK_LARGER=$(LARGER) CHECK_SECONDS=$(SECONDS) cargo test --locked -p cabloy-sim --test exhaustive -- --nocapture laws

# Real agents on real Redis, while pods, servers, links and clocks fail around them. What repeats a run: SEED=…; only some
# faults: CHAOS='--faults server-empty,partition'; all there is to say: CHAOS=--help.
MINUTES ?= 2
chaos: setup
	@cargo build --quiet --locked -p cabloy-agent -p cabloy-tests --bins
	@RUST_BACKTRACE=0 target/debug/cabloy-chaos --agent target/debug/cabloy-agent --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(CHAOS)

# A thousand schedules, while leaders are killed and masters come back empty; all there is to say: SOAK=--help.
soak: setup
	@cargo build --quiet --locked -p cabloy-agent -p cabloy-tests --bins
	@RUST_BACKTRACE=0 target/debug/cabloy-soak --agent target/debug/cabloy-agent --minutes $(MINUTES) $(SOAK)

# The whole product on a real node of its own, told as it happens; KEEP=1 leaves it running.
demo: setup
	@RUST_BACKTRACE=0 cargo run --locked -p cabloy-tests --bin cabloy-demo

# The images of agent and operator as tar files for `ctr images import`; prints their paths. Needs root and buildah, and no
# registry.
image: setup
	@cargo run --locked -p cabloy-tests --bin cabloy-test-images -- build

# The CRD from its types, and the chart's copy of it.
crds:
	cargo run -p cabloy-crds --features crd --bin crdgen > target/cabloyclusters.yaml
	cp target/cabloyclusters.yaml crds/cabloyclusters.yaml
	cp target/cabloyclusters.yaml charts/cabloy-operator/files/cabloyclusters.yaml

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

# What a bare Debian machine lacks; elsewhere, or without root, the tests that need it say so themselves.
setup:
	@for tool in cargo go node npm; do \
		command -v $$tool > /dev/null || { echo "$$tool is missing: install Rust 1.95, Go 1.26 and Node.js 20, or later ones"; exit 1; }; \
	done
	@if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then tests/setup-debian.sh; fi
