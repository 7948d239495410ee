# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart and check: what the project needs of a stock Debian 12, and how it is built.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=$(nproc)

build_packages=(gcc libc6-dev cmake ninja-build pkg-config protobuf-c-compiler protobuf-compiler libprotobuf-c-dev libevent-dev libssl-dev
	libjansson-dev libconfuse-dev liblz4-dev libxxhash-dev libseccomp-dev libcmocka-dev libnbd-dev)
run_packages=(qemu-system-x86 qemu-utils busybox-static cpio iproute2 libnbd-bin)
check_packages=(clang clang-format clang-tidy libclang-rt-14-dev)

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs what is missing of "$@"; says nothing and asks nobody when nothing is.
install_packages() {
	local missing=() p
	for p in "$@"; do
		dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed' || missing+=("$p")
	done
	[ ${#missing[@]} -eq 0 ] && return 0
	echo "installing: ${missing[*]}"
	local log
	log=$(mktemp)
	as_root apt-get update -q >"$log" 2>&1 || true
	if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
		tail -n 5 "$log" >&2
		die "apt-get could not install: ${missing[*]}"
	fi
	rm -f "$log"
}

# build PRESET [TARGET]...: configures once, then builds; prints only what went wrong.
build() {
	local log preset=$1
	log=$(mktemp)
	shift
	if ! (cd "$top" && cmake --preset "$preset" && cmake --build --preset "$preset" -j "$jobs" ${1:+--target "$@"}) >"$log" 2>&1; then
		grep -E -A5 'error|Error|FAILED' "$log" | head -40 >&2 || true
		die "build $preset failed"
	fi
	rm -f "$log"
}
