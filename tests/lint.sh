#!/usr/bin/env bash
# House rules that no compiler checks: who may include what, banned calls, unfinished places, scripts.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0

# forbid TEXT PATTERN FILE...: no line of these files may match.
forbid() {
	local text=$1 pattern=$2
	shift 2
	[ $# -gt 0 ] || return 0
	if grep -nHE -- "$pattern" "$@"; then
		echo "lint: $text" >&2
		bad=1
	fi
}
files() { find "$@" -name '*.[ch]' 2>/dev/null | sort; }
mapfile -t engine < <(files engine)
mapfile -t store < <(files store)
mapfile -t api < <(files api)
mapfile -t server < <(files server)
mapfile -t agents < <(files agents)
mapfile -t tests < <(files tests)
shipped=("${engine[@]}" "${store[@]}" "${api[@]}" "${server[@]}" "${agents[@]}")

# Arrows go one way.
forbid 'engine/ knows nobody' '#include "(store|api|server|agents)/' "${engine[@]}"
forbid 'store/ knows engine/ alone' '#include "(api|server|agents)/' "${store[@]}"
forbid 'api/ knows engine/ alone' '#include "(store|server|agents)/' "${api[@]}"
forbid 'agents/ know engine/ and api/' '#include "(store|server)/' "${agents[@]}"
forbid 'server/ does not know agents/' '#include "agents/' "${server[@]}"

# Each library has one home.
forbid 'engine/ is pure: no I/O, clock, threads' \
	'#include <(pthread|time|unistd|fcntl|signal|poll|threads|stdatomic|sys/[a-z_]+|sqlite3|jansson|curl/curl|microhttpd)\.h>' \
	"${engine[@]}"
forbid 'engine/ is pure: no files, no clock, no randomness' '\b(fopen|printf|fprintf|open|time|clock_gettime|rand|getrandom)\(' \
	"${engine[@]}"
forbid 'sqlite stays in store/' 'sqlite3_|sqlite3\.h' "${engine[@]}" "${api[@]}" "${server[@]}" "${agents[@]}"
forbid 'curl stays in api/' '#include <curl/|\bcurl_easy_' "${engine[@]}" "${store[@]}" "${server[@]}" "${agents[@]}"
forbid 'microhttpd stays in server/' '\bMHD_|microhttpd\.h' "${engine[@]}" "${store[@]}" "${api[@]}" "${agents[@]}"

forbid 'calls that have safer twins' '\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|atof|gets|alloca)\(' \
	"${shipped[@]}" "${tests[@]}"
forbid 'unfinished places' '\b(TODO|FIXME|XXX|HACK|for now|not implemented|stub)\b|#if 0' "${shipped[@]}" "${tests[@]}"

# A .c file's first include is its own header (or its folder-private half): proof that it stands alone.
for c in "${shipped[@]}"; do
	h=${c%.c}.h
	if [ "$c" = "$h" ] || [ ! -e "$h" ]; then continue; fi
	first=$(grep -m1 '^#include' "$c")
	if [ "$first" != "#include \"$h\"" ] && [ "$first" != "#include \"${c%.c}_impl.h\"" ]; then
		echo "$c: its own header does not come first" >&2
		bad=1
	fi
done

mapfile -t scripts < <(grep -rlE '^#!/usr/bin/env bash' deploy tests .ci)
shellcheck "${scripts[@]}" || bad=1
exit $bad
