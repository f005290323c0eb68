#!/usr/bin/env bash
# Runs every fuzz target of the project for FUZZTIME (default 15m), one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
for package in $($go list ./...); do
	for target in $($go test -tags testhooks -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "$package $target"
		$go test -tags testhooks -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-15m}" "$package"
	done
done
