#!/usr/bin/env bash
# Makes what it takes to try TLS out: a small authority, a server and a client certificate (PEM, EC P-256, 1 year).
# Usage: tls.sh DIR [NAME-OR-ADDRESS...]      (default: localhost 127.0.0.1 ::1)
# Then:  pagewardend --tls-cert DIR/server.pem --tls-key DIR/server.key [--tls-client-ca DIR/ca.pem]
#        pagewarden --url https://NAME:8470 --ca DIR/ca.pem [--cert DIR/client.pem --key DIR/client.key] hosts
# For production use certificates of your own authority.
set -euo pipefail
umask 077

[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
dir=$1
shift
[ $# -gt 0 ] || set -- localhost 127.0.0.1 ::1

names=
for name in "$@"; do
	if [[ $name == *:* || $name =~ ^[0-9.]+$ ]]; then
		names+=,IP:$name
	else
		names+=,DNS:$name
	fi
done

mkdir -p "$dir"
cd "$dir"
[ ! -e ca.key ] || { echo "tls.sh: $dir has an authority already" >&2; exit 1; }

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# issue FILE SUBJECT EXTENSIONS: a key and a certificate that descends from the authority.
issue() {
	key "$1.key"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out "$1.pem" \
		-extfile <(printf '%b' "$3") 2>/dev/null
	rm "$1.csr"
}

key ca.key
openssl req -x509 -new -key ca.key -days 365 -subj '/CN=pagewarden trial CA' -out ca.pem \
	-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
usage='basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage='
issue server "/CN=$1" "${usage}serverAuth\nsubjectAltName=${names#,}\n"
issue client '/CN=pagewarden trial client' "${usage}clientAuth\n"
chmod 644 ./*.pem
rm -f ca.srl
echo "made ca.pem, server.pem, server.key, client.pem, client.key in $dir for $*"
