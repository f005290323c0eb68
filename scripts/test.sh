#!/usr/bin/env bash
# Runs all tests. On Debian it first installs the programs that some of them drive (as root or with sudo); elsewhere it
# says which are missing, and the tests that need those skip. Arguments go to "go test".
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
PATH=$PATH:/usr/sbin:/usr/local/sbin

# program:Debian package
wanted="mosquitto:mosquitto mosquitto_pub:mosquitto-clients initdb:postgresql openssl:openssl curl:curl promtool:prometheus
jq:jq strace:strace faketime:faketime systemd-analyze:systemd ss:iproute2 cc:gcc
softhsm2-util:softhsm2 pkcs11-tool:opensc swtpm:swtpm"

missing() { # the packages of the programs that are not there
	local entry program
	for entry in $wanted; do
		program=${entry%%:*}
		command -v "$program" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$program" >/dev/null || echo "${entry#*:}"
	done
}

install() {
	local sudo=() policy=/usr/sbin/policy-rc.d
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || return 0
		sudo=(sudo)
		[ -t 0 ] || sudo+=(-n)
	fi
	echo "installing: $*"
	# The tests start brokers and databases of their own: the packages' services stay off.
	local ours=
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee $policy >/dev/null && "${sudo[@]}" chmod 755 $policy && ours=yes
	fi
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
		'apt-get -q=2 update && apt-get -q=2 install --no-install-recommends --yes "$@" >/dev/null' apt "$@" || true
	[ -z "$ours" ] || "${sudo[@]}" rm -f $policy
}

packages=$(missing)
if [ -n "$packages" ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
	case " $packages " in *gcc*) packages="$packages libc6-dev" ;; esac
	# shellcheck disable=SC2086
	install $packages
	packages=$(missing)
fi
if [ -n "$packages" ]; then
	echo "not installed (Debian's package names): $(echo $packages)" >&2
	echo "the tests that need them are skipped; each says so" >&2
else
	export NATAL_PROGRAMS=required # nothing may be skipped for want of a program
fi

race=(-race)
if ! command -v "$($go env CC)" >/dev/null; then
	race=()
	echo "no C compiler: running without the race detector" >&2
fi

echo "building"
export NATAL_BIN=$PWD/bin/test
for program in est-server:./server broker-bridge:./broker-bridge estclient-example:./estclient-example; do
	CGO_ENABLED=0 $go build -trimpath -o "$NATAL_BIN/${program%%:*}" "${program#*:}"
	CGO_ENABLED=0 $go build -trimpath -tags testhooks -o "$NATAL_BIN/testhooks/${program%%:*}" "${program#*:}"
done
if command -v "$($go env CC)" >/dev/null; then
	CGO_ENABLED=1 $go build -trimpath -o "$NATAL_BIN/cgo/est-server" ./server # with PKCS#11
fi

exec $go test "${race[@]}" -tags testhooks -timeout 20m "$@" ./...
