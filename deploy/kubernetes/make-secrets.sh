#!/bin/sh
# Makes an authority, certificates for coordinator and workers, and a token, and prints the Secrets g2rl-coordinator-tls,
# g2rl-worker-tls and g2rl-token:
#
#   deploy/kubernetes/make-secrets.sh secrets | kubectl apply --namespace NAMESPACE -f -
#
# The directory keeps all files; ca.key in it can make more certificates and belongs nowhere else. Called again it makes
# new certificates with the same authority and token. Needs OpenSSL 3.
set -eu
umask 077
dir=${1:?usage: make-secrets.sh DIRECTORY}
mkdir -p "$dir"
cd "$dir"

curve="-pkeyopt ec_paramgen_curve:P-256"
[ -e ca.key ] || openssl req -x509 -newkey ec $curve -nodes -days 3650 -subj /CN=g2rl-authority \
    -keyout ca.key -out ca.crt 2>/dev/null
[ -e token ] || openssl rand -hex 32 >token

# certificate NAME EXTENSION...
certificate() {
    name=$1
    shift
    openssl req -new -newkey ec $curve -nodes -subj "/CN=$name" "$@" -keyout "$name.key" -out "$name.csr" 2>/dev/null
    openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -days 365 -copy_extensions copy -out "$name.crt" 2>/dev/null
    rm "$name.csr"
}
certificate coordinator -addext subjectAltName=DNS:g2rl-coordinator,DNS:localhost,IP:127.0.0.1 \
    -addext extendedKeyUsage=serverAuth
certificate worker -addext extendedKeyUsage=clientAuth

# secret NAME TYPE KEY=FILE...
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\ntype: %s\ndata:\n' "$1" "$2"
    shift 2
    for entry in "$@"; do
        printf '  %s: %s\n' "${entry%%=*}" "$(base64 -w0 <"${entry#*=}")"
    done
}
secret g2rl-coordinator-tls kubernetes.io/tls tls.crt=coordinator.crt tls.key=coordinator.key ca.crt=ca.crt
secret g2rl-worker-tls kubernetes.io/tls tls.crt=worker.crt tls.key=worker.key ca.crt=ca.crt
secret g2rl-token Opaque token=token
