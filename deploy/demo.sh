#!/usr/bin/env bash
# Shows pagewarden's main job on this machine: a server, agents of a mixed fleet, real refusals; then stays up until Ctrl-C.
# Environment: B (build folder), DATA (where it keeps its files, emptied first), PORT, SECONDS_UP (stop by itself).
set -euo pipefail
umask 077

build=${B:-build}
run=${DATA:-$build/run}
port=${PORT:-8470}
server=$build/pagewardend
agent=$build/pagewarden-agent
cli=$build/pagewarden
pids=()
status_pid=

bold='' dim='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

# --- Starting and stopping. Programs get sessions of their own: Ctrl-C is for this script, which stops them in order. ---
# Should this script be killed outright, the kernel ends them.

alone=(setsid setpriv --pdeathsig TERM --)

stop_all() {
	local code=$? pid i
	trap - EXIT INT TERM HUP
	[ -z "$status_pid" ] || kill "$status_pid" 2>/dev/null || true
	if [ ${#pids[@]} -gt 0 ]; then
		printf '\nstopping\n'
		for pid in "${pids[@]:1}"; do # agents first, all at once: they may still have to tell the server
			kill -TERM "$pid" 2>/dev/null || true
		done
		for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
			pid=${pids[i]}
			kill -TERM "$pid" 2>/dev/null || continue
			for _ in {1..100}; do
				kill -0 "$pid" 2>/dev/null || break
				sleep 0.1
			done
			kill -KILL "$pid" 2>/dev/null || true
			wait "$pid" 2>/dev/null || true
		done
	fi
	exit "$code"
}
trap stop_all EXIT
trap 'exit 0' INT TERM HUP

prepare_folder() {
	mkdir -p "$(dirname "$run")"
	exec 9>"$run.lock"
	flock -n 9 || die "another demo uses $run (set DATA to have one more)"
	if [ -e "$run" ] && [ ! -e "$run/.demo" ]; then
		rmdir "$run" 2>/dev/null || die "$run is not empty and not a demo's: not touching it"
	fi
	rm -rf "$run"
	mkdir -p "$run"
	: >"$run/.demo"
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_server() {
	if port_is_taken "$port"; then
		say "port $port is taken: using a free one"
		port=0
	fi
	: >"$run/server.out"
	"${alone[@]}" "$server" --data "$run/data" --listen "127.0.0.1:$port" >"$run/server.out" 2>"$run/server.log" 9>&- &
	pids+=($!)
	for _ in {1..300}; do
		url=$(sed -n 's/^listening on //p' "$run/server.out")
		if [ -n "$url" ] && curl -fs -o "$run/ready" "$url/readyz"; then return; fi
		kill -0 "${pids[0]}" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 20 "$run/server.log" >&2
	die 'the server did not start'
}

# start_agent NAME HOST FLAG...: waits until the host is registered; else prints nothing and returns 1.
start_agent() {
	local name=$1 host=$2 pid
	shift 2
	token agent "$name" "$host"
	mkdir -p "$run/$name"
	"${alone[@]}" "$agent" --server "$url" --token-file "$run/$name.token" --host "$host" --name "$name" --state "$run/$name" "$@" \
		>"$run/$name.log" 2>&1 9>&- &
	pid=$!
	for _ in {1..100}; do
		if [ "$(api GET "/v1/hosts/$host" | jq -r '.state // empty')" = up ]; then
			pids+=("$pid")
			return 0
		fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	kill "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
	return 1
}

# --- Talking to the server ---

# api METHOD PATH [BODY]: the answer's body, whatever its status. The token is read from a file: no `ps` shows it.
api() {
	local method=$1 path=$2
	if [ $# -gt 2 ]; then
		curl -s -m 90 -X "$method" -H @"${auth:-$run/auth}" -H 'Content-Type: application/json' -d "$3" "$url$path"
	else
		curl -s -m 90 -X "$method" -H @"$run/auth" "$url$path"
	fi
}

# token ROLE NAME [HOST]: makes a token and puts its secret into NAME.token.
token() {
	local body
	body=$(jq -nc --arg role "$1" --arg name "$2" --arg host "${3:-}" \
		'{role: $role, name: $name} + (if $host == "" then {} else {host: $host} end)')
	api POST /v1/tokens "$body" | jq -er .secret >"$run/$2.token"
}

# show COMMAND...: the command line interface's words and what they print. On a terminal it makes a table itself.
show() {
	say "${dim}\$ pagewarden $*$plain"
	if [ -t 1 ]; then
		"$cli" --url "$url" --token-file "$run/data/admin.token" "$@" || true
	else
		"$cli" --url "$url" --token-file "$run/data/admin.token" "$@" | align || true
	fi
}

# Lines of tab-separated cells, as columns.
align() {
	awk -F '\t' '
		{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } cells[NR] = NF }
		END { for (r = 1; r <= NR; r++) {
			line = "   "
			for (i = 1; i <= cells[r]; i++) line = line sprintf(i < cells[r] ? " %-" width[i] "s " : " %s", cell[r, i])
			print substr(line, 1, 180)
		} }'
}

# problem JSON: a refusal, in four lines at most.
problem() {
	jq -r '"    refused: \(.type | ltrimstr("/problems/")) (\(.title))\n    detail:  \(.detail)",
		(.conflicts[:3][]? | "    owner:   pfn \(.pfn) (+\(.count)) of pool \(.pool) is bound to gfn \(.gfn) of vm \(.vm)"),
		(.conflict_frames // empty | "    frames:  \(.) in conflict")' <<<"$1"
}

uuid() { cat /proc/sys/kernel/random/uuid; }

# new_vm NAME HOST ARCH PAGES: its id.
new_vm() {
	api POST /v1/vms "$(jq -nc --arg name "$1" --arg host "$2" --arg arch "$3" --argjson pages "$4" \
		'{name: $name, host: $host, arch: $arch, slots: [{slot: 0, base_gfn: 0, pages: $pages}]}')" | jq -er .id
}

# launch VM [PARAMS]: waits for the end; prints the finished operation.
launch() {
	local default='{}' op
	op=$(api POST "/v1/vms/$1/operations" "{\"kind\": \"launch\", \"params\": ${2:-$default}}" | jq -er .id)
	for _ in {1..6}; do
		api GET "/v1/operations/$op?wait=10" >"$run/operation"
		case $(jq -r .state "$run/operation") in
		succeeded | failed | cancelled) break ;;
		esac
	done
	cat "$run/operation"
}

pages_of() {
	api GET "/v1/vms/$1" | jq -r '.pages | "\(.secure_resident) secure and resident, \(.secure_out) paged out, \(.shared) shared, \(.normal) normal"'
}

claim() { # claim VM OP GFN COUNT POOL PFN: one transition item
	jq -nc --arg vm "$1" --arg op "$2" --argjson gfn "$3" --argjson count "$4" --arg pool "$5" --argjson pfn "$6" \
		'{vm: $vm, op: $op, gfn: $gfn, count: $count, frame: {pool: $pool, pfn: $pfn}}'
}

# report HOST ITEM [TOKEN-FILE]: sends one transition for the host, as its agent would.
report() {
	local host auth=$run/auth
	host=$(api GET "/v1/hosts/$1")
	if [ $# -gt 2 ]; then
		auth=$run/agent-auth
		printf 'Authorization: Bearer %s\n' "$(cat "$3")" >"$auth"
	fi
	auth=$auth api POST "/v1/hosts/$1/transitions" \
		"$(jq -nc --argjson host "$host" --argjson item "$2" '{boot_id: $host.boot_id, epoch: $host.epoch, items: [$item]}')"
}

# idle_vm NAME HOST ARCH: a VM that runs and has no frame yet; its id.
idle_vm() {
	local vm operation
	vm=$(new_vm "$1" "$2" "$3" 64)
	operation=$(launch "$vm" '{"resident": 0, "guest": {"idle": true}}')
	[ "$(jq -r .state <<<"$operation")" = succeeded ] || die "launch of $1: $(jq -r '.problem.detail // .state' <<<"$operation")"
	echo "$vm"
}

# vm_operation VM KIND: asks for it and waits until it has ended.
vm_operation() {
	local op
	op=$(api POST "/v1/vms/$1/operations" "{\"kind\": \"$2\"}" | jq -er .id)
	api GET "/v1/operations/$op?wait=10" >"$run/operation"
}

# --- The main job ---

register_hosts() {
	local arch
	host_a=$(uuid) host_b=$(uuid) host_c=$(uuid) arch_a=pef is_real=
	declare -gA host_of
	title '1. Hosts of a mixed fleet register, each with an agent'
	if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
		if start_agent host-a "$host_a" --backend kvm; then
			is_real=yes arch_a=kvm
			say 'host-a runs real VMs on /dev/kvm'
		else
			say "host-a: the kvm backend does not work here: $(tail -n 1 "$run/host-a.log")"
		fi
	else
		say 'no /dev/kvm that may be opened here: host-a is an emulated POWER host too'
	fi
	if [ -z "$is_real" ]; then
		start_agent host-a "$host_a" --backend emulated --arch pef --frames 65536 || die "host-a: see $run/host-a.log"
	fi
	token operator load
	start_agent host-b "$host_b" --backend emulated --arch pef --frames 65536 --load-token-file "$run/load.token" \
		--load 'vms=2,pages=512,rate=20,seed=7' || die "host-b: see $run/host-b.log"
	say 'host-b is an emulated POWER host (PEF: secure memory under an ultravisor), with a small load on it'
	for arch in snp tdx cca pkvm; do
		host_of[$arch]=$(uuid)
		start_agent "host-$arch" "${host_of[$arch]}" --backend emulated --arch "$arch" --frames 65536 \
			--load-token-file "$run/load.token" --load 'vms=1,pages=2048,rate=5,seed=7' || die "host-$arch: see $run/host-$arch.log"
	done
	say 'host-snp, host-tdx, host-cca and host-pkvm are emulated too: exact models of what their firmware and hypervisors do'
	show hosts
}

launch_vms() {
	title '2. VMs launch: an operation is an intent, the host'\''s agent carries it out'
	vm_a=$(new_vm demo-a "$host_a" "$arch_a" 1024)
	vm_b=$(new_vm demo-b "$host_b" pef 1024)
	vm_snp=$(new_vm demo-snp "${host_of[snp]}" snp 2048)
	local vm operation
	for vm in "$vm_a" "$vm_b" "$vm_snp"; do
		operation=$(launch "$vm")
		say "launch of $vm: $(jq -r '.state + (if .problem then ": " + .problem.detail else "" end)' <<<"$operation")"
	done
	show vms
}

convert_pages() {
	title '3. Pages convert: each is claimed in the ledger before hardware gets it'
	if [ -n "$is_real" ]; then
		say 'demo-a is a real guest: it asks for conversions itself'
	else
		local operation
		operation=$(api POST "/v1/vms/$vm_a/operations" '{"kind": "share", "params": {"gfn": 0, "count": 16}}')
		api GET "/v1/operations/$(jq -r .id <<<"$operation")?wait=10" >/dev/null
	fi
	for _ in 1 2 3; do
		say "demo-a: $(pages_of "$vm_a")"
		sleep 1
	done
	show history demo-a 0 --limit 3
}

resident_run() { # the first resident run of a VM, as JSON
	api GET "/v1/vms/$1/gfns?limit=1000" | jq -ec '[.items[] | select(.resident)][0]'
}

refuse_same_host() {
	title '4a. Refused: the same frame twice on one host'
	local pfn other answer
	other=$(idle_vm thief "$host_a" "$arch_a")
	for _ in {1..5}; do # demo-a is running: it may have shared the page, and given up the frame, since we looked
		pfn=$(resident_run "$vm_a" | jq .frame.pfn) || die 'demo-a has no resident page'
		answer=$(report "$host_a" "$(claim "$other" page_in 0 1 local "$pfn")")
		[ "$(jq .rejected <<<"$answer")" = 0 ] || break
	done
	say "demo-a has frame $pfn of host-a; another VM of host-a claims it for its gfn 0"
	problem "$(jq -c '.results[0].problem' <<<"$answer")"
	show who-owns host-a "$pfn"
}

refuse_shared_pool() {
	title '4b. Refused: one frame of a shared pool by two hosts'
	local body vm_c answer extra host
	body=$(jq -nc --arg boot "$(uuid)" '{name: "host-c", boot_id: $boot, backends: [{arch: "pef", kind: "emulated"}],
		pools: [{pool: "local", base_pfn: 0, frames: 65536, page_shift: 16}]}')
	host=$(api PUT "/v1/hosts/$host_c" "$body")
	body=$(jq -nc --arg b "$host_b" --arg c "$host_c" '{base_pfn: 0, frames: 4096, page_shift: 16, hosts: [$b, $c]}')
	api PUT /v1/pools/cxl-demo "$body" >/dev/null
	say 'the pool cxl-demo (CXL memory behind a switch, say) is attached to host-b and to host-c'
	say '(host-c is registered by the API and has no agent: after its lease of 15 s it counts as unreachable)'
	extra=$(idle_vm far-b "$host_b" pef)
	vm_c=$(new_vm far-c "$host_c" pef 64)
	api POST "/v1/vms/$vm_c/lifecycle" '{"event": "init_start"}' >/dev/null
	answer=$(report "$host_c" "$(claim "$vm_c" page_in 0 8 cxl-demo 104)")
	say "host-c claims frames 104 to 111: $(jq -r 'if .accepted == 1 then "accepted" else "refused" end' <<<"$answer")"
	say 'host-b claims frames 100 to 107'
	answer=$(report "$host_b" "$(claim "$extra" page_in 0 8 cxl-demo 100)")
	problem "$(jq -c '.results[0].problem' <<<"$answer")"
	show frames --pool cxl-demo
	vm_operation "$extra" terminate
	api POST "/v1/vms/$vm_c/lifecycle" \
		"$(jq -nc --argjson host "$host" '{event: "terminate", boot_id: $host.boot_id, epoch: $host.epoch}')" >/dev/null
}

refuse_hardware() {
	title '4c. Refused, though hardware would do it: RMPUPDATE over the page of another SNP guest'
	local host=${host_of[snp]} other pfn answer
	other=$(idle_vm thief-snp "$host" snp)
	pfn=$(resident_run "$vm_snp" | jq .frame.pfn) || die 'demo-snp has no resident page'
	say "demo-snp has frame $pfn, $(api GET "/v1/hosts/$host/frames?pfn=$pfn&count=1" | jq -r '.items[0].arch_state') in the RMP; host-snp's agent asks for it in the name of another VM"
	answer=$(report "$host" "$(claim "$other" snp.rmpupdate 0 1 local "$pfn")" "$run/host-snp.token")
	problem "$(jq -c '.results[0].problem' <<<"$answer")"
	vm_operation "$other" terminate
	show who-owns host-snp "$pfn"
}

refuse_real_guests() {
	title '4d. Refused, really: two KVM guests whose memory is the same host pages'
	if [ -z "$is_real" ]; then
		say 'skipped: this machine has no /dev/kvm that the agent can use'
		return
	fi
	local one two first second
	one=$(new_vm twin-1 "$host_a" kvm 256)
	two=$(new_vm twin-2 "$host_a" kvm 256)
	first=$(launch "$one" '{"share_backing": "demo"}')
	say "launch of twin-1: $(jq -r .state <<<"$first")"
	second=$(launch "$two" '{"share_backing": "demo"}')
	say "launch of twin-2: $(jq -r .state <<<"$second")"
	if [ "$(jq -r '.problem.type // empty' <<<"$second")" = /problems/frame-conflict ]; then
		problem "$(jq -c .problem <<<"$second")"
		say 'host-a found the frames by their PFNs in /proc/self/pagemap: the ledger refused them before a guest ran'
	else
		say "this launch should have been refused as a frame-conflict: $(jq -c '.problem // "no problem"' <<<"$second")"
	fi
}

what_next() {
	local token_file=$run/data/admin.token pfn
	pfn=$(resident_run "$vm_a" | jq .frame.pfn || echo 0)
	title 'What to try next (in another terminal, in this folder)'
	cat <<TXT
  export PAGEWARDEN_URL=$url PAGEWARDEN_TOKEN_FILE=$token_file
  $cli hosts
  $cli gfns demo-a
  $cli gfns demo-snp
  $cli who-owns host-a $pfn
  $cli history demo-a 0
  $cli events --follow
  $cli violations
  curl -s -H "Authorization: Bearer \$(cat $token_file)" $url/v1/summary | jq .
  curl -s -H "Authorization: Bearer \$(cat $token_file)" "$url/v1/vms/$vm_a/gfns?limit=5" | jq .
TXT
}

# --- Live status ---

status_line() {
	api GET /v1/summary | jq -r 'def counts: to_entries | map(select(.value > 0) | "\(.value) \(.key)") | join(", ");
		"violations: \(.violations_last_hour)  hosts: \(.hosts | counts)  vms: \(.vms.by_state | counts)  pages: \(.pages | counts)"'
}

watch_status() {
	local line pause=10 answered=$SECONDS
	[ ! -t 1 ] || pause=1
	title 'Live status (Ctrl-C stops everything)'
	while [ $((SECONDS - answered)) -lt 300 ]; do # whoever tries `kill -9` on the server has that long to start it again
		if line=$(status_line) && [ -n "$line" ]; then
			answered=$SECONDS
		else
			line="no answer; start it again: $server --data $run/data --listen ${url#*://}"
		fi
		if [ -t 1 ]; then
			printf '\r\e[K  %s' "${line:0:$(($(tput cols 2>/dev/null || echo 100) - 4))}"
		else
			printf '  %s\n' "$line"
		fi
		[ -z "${SECONDS_UP:-}" ] || [ "$SECONDS" -lt "$SECONDS_UP" ] || return 0
		sleep "$pause" &
		status_pid=$!
		wait "$status_pid"
	done
	die "the server does not answer any more: see $run/server.log"
}

for program in "$server" "$agent" "$cli"; do
	[ -x "$program" ] || die "$program is not there: make build"
done
prepare_folder
title 'pagewarden: whose page is this, in which state, and how did it get there'
start_server
printf 'Authorization: Bearer %s\n' "$(cat "$run/data/admin.token")" >"$run/auth"
say "pagewardend listens on $url; its data is in $run/data"
register_hosts
launch_vms
convert_pages
refuse_same_host
refuse_shared_pool
refuse_hardware
refuse_real_guests
what_next
watch_status
