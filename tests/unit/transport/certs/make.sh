#!/bin/sh
# Makes the certificates of test_transport_tls.py again; they are valid for a hundred years.
set -eu
cd "$(dirname "$0")"
ca() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.pem" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
}
node() { # name, authority, subject alternative name
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days 36500 \
        -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}
ca authority
ca foreign-authority
node node1 authority URI:pgraft://test/1
node node2 authority URI:pgraft://test/2
node node2-again authority URI:pgraft://test/2
node by-address authority IP:127.0.0.1
node by-name authority DNS:db.example,IP:203.0.113.1
node other-cluster authority URI:pgraft://other/2
node foreign foreign-authority URI:pgraft://test/2
rm ./*authority.key ./*.srl
