#!/usr/bin/env bash
# Runs every fuzz target of the module for a time, one after the other.
set -euo pipefail
time=${1:?usage: fuzz.sh TIME, such as 10s}
grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' "$file"); do
		echo "fuzz $file $target for $time"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$(dirname "$file")"
	done
done
