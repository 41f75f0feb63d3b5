#!/usr/bin/env bash
# Installs the Debian packages that are missing. Usage: deps.sh [build] [test]
# Silent, and without network, when all are there. Asks nothing.
set -euo pipefail

build=(gcc libc6-dev make pkg-config binutils
	libmicrohttpd-dev libgnutls28-dev libjansson-dev 'libcurl4-gnutls-dev|libcurl4-openssl-dev' libsqlite3-dev
	libsodium-dev nettle-dev libinih-dev libsystemd-dev
	python3 python3-yaml curl jq sqlite3 procps)
test=(libcriterion-dev clang clang-14 clang-tidy-14 clang-format-14 libclang-rt-14-dev llvm-14 cppcheck gcovr shellcheck
	openssl wrk)

wanted=()
for list in "${@:-build}"; do
	case $list in
	build) wanted+=("${build[@]}") ;;
	test) wanted+=("${test[@]}") ;;
	*) echo "deps.sh: no list named $list (build, test)" >&2; exit 2 ;;
	esac
done

if ! command -v dpkg-query >/dev/null; then
	echo "deps.sh: no dpkg here; these must be there: ${wanted[*]}" >&2
	exit 0
fi

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for entry in "${wanted[@]}"; do
	IFS='|' read -ra choices <<<"$entry"
	for package in "${choices[@]}"; do
		is_installed "$package" && continue 2
	done
	missing+=("${choices[0]}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "deps.sh: missing, and neither root nor sudo: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	root=(sudo)
fi
apt() { # debconf's note that it has no apt-utils says nothing to anybody here
	"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0 "$@" 2> >(grep -v '^debconf: delaying' >&2)
}
is_known() { apt-cache show --no-all-versions "$@" >/dev/null 2>&1; }
install() { apt install -y --no-install-recommends "${missing[@]}" >/dev/null; }

echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
if ! is_known "${missing[@]}" || ! install; then
	echo "updating the package lists first"
	apt update
	install
fi
