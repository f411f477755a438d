# One build for both programs; targets: agent, operator. Each final image is the program and the few glibc files that it
# loads, nothing else. It runs with a read-only root and with any user id.

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The code of tests and simulator is not part of the context.
RUN mkdir -p tests/src sim/src && touch tests/src/lib.rs sim/src/lib.rs
# Cargo goes by times, and the cache may come from sources that are newer in time but not these: what differs in content is
# copied into it, with the present time, and the rest stays as built. Two runs of Cargo, since in one the agent would be
# built with the features of the operator's dependencies.
RUN --mount=type=cache,id=cabloy-cargo-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=cabloy-cargo-git,target=/usr/local/cargo/git \
    --mount=type=cache,id=cabloy-build,target=/build \
    find . -type f -exec sh -c 'for f; do cmp -s "$f" "/build/$f" || install -D "$f" "/build/$f"; done' sh {} + \
 && cd /build \
 && find . -path ./target -prune -o -type f -exec sh -c 'for f; do [ -e "/src/$f" ] || rm "$f"; done' sh {} + \
 && cargo build --release --locked -p cabloy-agent \
 && cargo build --release --locked -p cabloy-operator \
 && mkdir -p /rootfs/etc \
 && cp target/release/cabloy-agent target/release/cabloy-operator / \
 && ldd /cabloy-agent /cabloy-operator | grep -o '/[^ ]*\.so[^ ]*' | sort -u | xargs cp -L --parents -t /rootfs \
 && echo 'hosts: files dns' > /rootfs/etc/nsswitch.conf


FROM scratch AS agent
ARG VERSION=unknown
LABEL org.opencontainers.image.title="cabloy-agent" \
      org.opencontainers.image.description="Elects one leader among the pods of a CabloyJS app and runs its schedules and startup tasks" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /rootfs /
COPY --from=build /cabloy-agent /cabloy-agent
USER 65532:65532
ENTRYPOINT ["/cabloy-agent"]
CMD ["run"]


FROM scratch AS operator
ARG VERSION=unknown
LABEL org.opencontainers.image.title="cabloy-operator" \
      org.opencontainers.image.description="Runs CabloyJS apps on several Redis servers from one Kubernetes resource" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /rootfs /
COPY --from=build /cabloy-operator /cabloy-operator
USER 65532:65532
ENTRYPOINT ["/cabloy-operator"]
CMD ["run"]
