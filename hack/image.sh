#!/usr/bin/env bash
# Builds the image from the Dockerfile without a registry or a Docker daemon:
# buildah, and as builder image a base made of busybox, with the Go of this machine
# and its module cache mounted.
#
#   hack/image.sh OUT.tar [ARCH]     a docker-archive; `ctr -n k8s.io images import` takes it
#
# VERSION, REVISION and SOURCE_DATE_EPOCH come from git unless they are set. The
# same values and the same Go give the same archive, byte for byte. The
# binary's version of a tag is without its v, as in a release.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "$1")
arch=${2:-$(go env GOARCH)}
: "${VERSION:=$(git describe --tags --always --dirty 2>/dev/null || echo devel)}"
: "${REVISION:=$(git rev-parse HEAD 2>/dev/null || echo unknown)}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
: "${IMAGE:=ghcr.io/memqos/memqos:$VERSION}"
[[ $VERSION =~ ^v[0-9] ]] && VERSION=${VERSION#v} # the tag stays what git describe says

missing=()
for package in buildah busybox-static; do
	dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends "${missing[@]}"
fi

# A store of its own, and vfs: neither needs anything of the machine but a directory.
store=${XDG_CACHE_HOME:-$HOME/.cache}/memqos/buildah
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
buildah=(buildah --root "$store" --runroot "$run" --storage-driver vfs)

# A base for each architecture: buildah 1.28 looks for a local image of the target's
# architecture even where FROM says --platform (containers/buildah#4721). What is in
# it is this machine's.
base=localhost/memqos-go-$arch
if ! "${buildah[@]}" inspect --type image "$base" >/dev/null 2>&1; then
	c=$("${buildah[@]}" from scratch)
	root=$run/root
	install -D /bin/busybox "$root/bin/busybox"
	ln -s busybox "$root/bin/sh"
	install -D /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
	install -d -m 1777 "$root/tmp"
	"${buildah[@]}" copy --quiet "$c" "$root" / >/dev/null
	"${buildah[@]}" config --arch "$arch" --env PATH=/usr/local/go/bin:/bin --env GOTOOLCHAIN=local --env GOPATH=/go --env GOCACHE=/cache --env HOME=/tmp "$c"
	"${buildah[@]}" commit --quiet "$c" "$base" >/dev/null
	"${buildah[@]}" rm "$c" >/dev/null
fi

mkdir -p "$(dirname "$out")"
rm -f "$out"
"${buildah[@]}" build --quiet --isolation chroot --pull-never --no-cache --format oci \
	--build-arg GO_IMAGE="$base" --build-arg GOPROXY="$(go env GOPROXY)" \
	--build-arg TARGETOS=linux --build-arg TARGETARCH="$arch" --platform "linux/$arch" \
	--build-arg VERSION="$VERSION" --build-arg REVISION="$REVISION" \
	--timestamp "$SOURCE_DATE_EPOCH" --identity-label=false \
	--volume "$(go env GOROOT):/usr/local/go:ro" \
	--volume "$(go env GOMODCACHE):/go/pkg/mod" \
	--volume "$(go env GOCACHE):/cache" \
	--tag "$IMAGE" . >/dev/null
"${buildah[@]}" push --quiet "$IMAGE" "docker-archive:$out:$IMAGE"
"${buildah[@]}" rmi --force "$IMAGE" >/dev/null
echo "$IMAGE linux/$arch $(stat --format=%s "$out") bytes $out"
