#!/bin/sh
# krew.sh VERSION SHA256SUMS: the plugin's manifest for krew, filled in for a release.
# VERSION is the tag, such as v0.1.0.
set -eu
version=$1 sums=$2
manifest=$(sed "s/v0\.0\.0/$version/g" "$(dirname "$0")/../deploy/krew/memqos.yaml" | grep -v '^# ')
for arch in amd64 arm64; do
	archive=memqos_linux_$arch.tar.gz
	sum=$(awk -v f="$archive" '$2 == f || $2 == "*" f { print $1 }' "$sums")
	case $sum in
	*[!0-9a-f]* | '') echo "krew.sh: $sums has no digest of $archive" >&2; exit 1 ;;
	esac
	# The digest is in the line after the archive's.
	manifest=$(printf '%s\n' "$manifest" | sed "/$archive/{n;s/0\{64\}/$sum/;}")
done
printf '%s\n' "$manifest"
