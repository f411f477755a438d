# The commands of the project; README.md says what each is for.
.PHONY: test sim demo image crds lint setup

# Tests that could not run say so in this file, by name and why.
NOT_RUN := $(CURDIR)/target/not-run

test: setup
	@mkdir -p target && rm -f $(NOT_RUN)
	CABLOY_NOT_RUN=$(NOT_RUN) cargo test --workspace --locked
	@if [ -s $(NOT_RUN) ]; then \
		echo "$$(wc -l < $(NOT_RUN)) tests did not run:"; cat $(NOT_RUN); \
	else echo "0 tests did not run"; fi

# Many seeds of the simulator; `target/release/cabloy-sim --seed S` repeats one with a trace.
SEEDS ?= 1000000
sim:
	cargo run --quiet --release --locked -p cabloy-sim -- --seeds $(SEEDS)

# The whole product on a real node of its own, told as it happens; KEEP=1 leaves it running.
demo: setup
	@RUST_BACKTRACE=0 cargo run --quiet -p cabloy-tests --bin cabloy-demo

# The images of agent and operator as tar files for `ctr images import`; prints their paths. Needs root and buildah, and no
# registry.
image: setup
	@cargo run --quiet -p cabloy-tests --bin cabloy-test-images -- build

# The CRD from its types, and the chart's copy of it.
crds:
	cargo run --quiet -p cabloy-crds --features crd --bin crdgen > target/cabloyclusters.yaml
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
