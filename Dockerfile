# The image of the agent: one static binary. `make image` builds it without a registry.

# Go 1.26.8, by the digest of its multi-arch index. Any image with the same Go, a
# shell and Go's caches makes the same binary: only the output of `go build` is
# taken from it.
ARG GO_IMAGE=docker.io/library/golang:1.26.8-bookworm@sha256:a688600ca24f8a4d3ca77f95b0dd40704a9fc787c826660eb7ba0b641b8b175d

# The builder runs on the machine's own architecture and cross-compiles.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
ARG GOPROXY=https://proxy.golang.org,direct
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH=amd64
ARG VERSION=devel
ARG REVISION=unknown
# The flags of `make build`. GOAMD64 and the like stay at their base level.
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=${VERSION} -X main.revision=${REVISION}" \
    -o /out/memqos ./cmd/memqos

# scratch, and not a distroless base: the binary needs no libc, no time zones, no
# user table, and the CA of the API server comes with the service account. With
# nothing beneath it there is no digest to renew and no package to patch.
FROM scratch
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="memqos" \
      org.opencontainers.image.description="Kubernetes MemoryQoS from outside the kubelet" \
      org.opencontainers.image.source="https://github.com/memqos/memqos" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /LICENSE
COPY --from=build /out/memqos /memqos
# uid 0: the memory.* files belong to it, and are writable to their owner alone.
# No capability goes with it; see docs/security.md.
USER 0:0
ENTRYPOINT ["/memqos"]
CMD ["agent"]
