.PHONY: image

# The images of agent and operator as tar files for `ctr images import`; prints their paths. Needs root and buildah, and no
# registry (tests/setup-debian.sh installs what else it takes).
image:
	@cargo run --quiet -p cabloy-tests --bin cabloy-test-images -- build
