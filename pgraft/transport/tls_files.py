"""The certificate, the key and the authorities of this node: read, judged, made into TLS contexts.

What is wrong with them is found here, before a peer finds it: a key that others can read, a passphrase
that nobody is there to type, a certificate of another authority, of another node, or out of date.
Imported only when pgraft.ssl_enabled is on.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import time
from typing import Any, NamedTuple
from urllib.parse import quote

_NAMES_SHOWN_MAX = 8
_FLIGHTS_MAX = 4
"""Turns of a TLS 1.3 handshake: hello, answer, certificate of the client, and one to see the end."""
_X509_V_ERR_CERT_NOT_YET_VALID = 9
_X509_V_ERR_CERT_HAS_EXPIRED = 10

_CERT, _KEY, _CA = "pgraft.ssl_cert_file", "pgraft.ssl_key_file", "pgraft.ssl_ca_file"


class TlsFilesWrong(Exception):
    """A file that cannot be used: names the setting, the file and what is wrong; `hint` what to do."""

    def __init__(self, setting: str, path: str, what: str, *, hint: str = "") -> None:
        super().__init__(f"{setting} = '{path}': {what}")
        self.hint = hint


class CertificateOutOfDate(TlsFilesWrong):
    """The certificate is good but for its dates: peers refuse it, and only time or renewal helps."""


class TlsFiles(NamedTuple):
    """The three files of pgraft.ssl_*_file."""

    cert: str
    key: str
    ca: str


class Whom(NamedTuple):
    """The node that a certificate has to name. `address`: empty where it is not known, and names nobody."""

    cluster_id: str
    node_id: int
    address: str

    @property
    def uri(self) -> str:
        """The subject alternative name that names it."""
        return f"pgraft://{quote(self.cluster_id, safe='')}/{self.node_id}"


class Names:
    """The subject alternative names of a certificate, as ssl's getpeercert() gives them."""

    def __init__(self, certificate: dict[str, Any] | None) -> None:
        self._by_kind: dict[str, set[str]] = {}
        for kind, name in (certificate or {}).get("subjectAltName", ()):
            self._by_kind.setdefault(str(kind), set()).add(str(name))

    def name(self, whom: Whom) -> bool:
        """Whether one of them is that node's URI, or a DNS name or IP address equal to its address."""
        return whom.uri in self._by_kind.get("URI", ()) or (
            bool(whom.address) and self._name_address(whom.address)
        )

    def _name_address(self, address: str) -> bool:
        try:
            wanted = ipaddress.ip_address(address)
        except ValueError:
            return address.lower() in {name.lower() for name in self._by_kind.get("DNS", ())}
        for name in self._by_kind.get("IP Address", ()):
            try:
                if ipaddress.ip_address(name) == wanted:
                    return True
            except ValueError:
                continue
        return False

    def __str__(self) -> str:
        shown = sorted(f"{kind}:{name}" for kind, found in self._by_kind.items() for name in found)
        return ", ".join(shown[:_NAMES_SHOWN_MAX]) or "no subject alternative names"


class Contexts(NamedTuple):
    """TLS contexts of both directions, made of the same files."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def load(files: TlsFiles) -> Contexts:
    """Contexts that use these files. Raises TlsFilesWrong."""
    _check_key(files.key)
    return Contexts(_context(ssl.PROTOCOL_TLS_SERVER, files), _context(ssl.PROTOCOL_TLS_CLIENT, files))


def check_own(contexts: Contexts, files: TlsFiles, whom: Whom) -> float:
    """Whether peers will let this node in, as far as this node can tell: it shakes hands with itself.

    Returns how long the certificate is still good, in seconds. Raises TlsFilesWrong, and of a
    certificate that is wrong in nothing but its dates, CertificateOutOfDate.
    """
    certificate = _own_certificate(contexts, files)
    names = Names(certificate)
    if not names.name(whom):
        raise TlsFilesWrong(
            _CERT,
            files.cert,
            f"must name this node, {whom.uri} at {whom.address}, and names {names}",
            hint=f"issue one with the subject alternative name URI:{whom.uri}, or with the node's address",
        )
    return ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()


def _own_certificate(contexts: Contexts, files: TlsFiles) -> dict[str, Any]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts.client.wrap_bio(back, there)
    server = contexts.server.wrap_bio(there, back, server_side=True)
    try:
        for _ in range(_FLIGHTS_MAX):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise _unfit(files, error) from error
    except ssl.SSLError as error:
        raise TlsFilesWrong(_CERT, files.cert, reason(error)) from error
    return dict(client.getpeercert() or {})


def _unfit(files: TlsFiles, error: ssl.SSLCertVerificationError) -> TlsFilesWrong:
    message = error.verify_message
    if error.verify_code in (_X509_V_ERR_CERT_NOT_YET_VALID, _X509_V_ERR_CERT_HAS_EXPIRED):
        return CertificateOutOfDate(_CERT, files.cert, message, hint="renew it, then pgraft-launch reload")
    return TlsFilesWrong(
        _CERT,
        files.cert,
        f"is not accepted by the authorities in {_CA} = '{files.ca}': {message}",
        hint="one of them must have signed it, for clients and servers where it has an extended key usage",
    )


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # judge_peer asks for the node, which the host name does not give
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # sessions are not resumed: a reload counts for every new connection
    _load_own(context, files)
    try:
        context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesWrong(_CA, files.ca, f"must hold certificates in PEM: {reason(error)}") from error
    return context


def _load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        with open(files.cert, "rb"):
            pass
    except OSError as error:
        raise TlsFilesWrong(
            _CERT, files.cert, f"must be a file that can be read: {error.strerror}"
        ) from error

    def passphrase() -> str:
        # OpenSSL would ask the terminal, and wait.
        raise TlsFilesWrong(
            _KEY,
            files.key,
            "must not need a passphrase: nobody is there to type it",
            hint="openssl pkey -in OLD -out NEW writes the key without one; keep its mode 0600",
        )

    try:
        context.load_cert_chain(files.cert, files.key, passphrase)
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesWrong(
            _CERT,
            files.cert,
            f"must be a certificate in PEM, and {_KEY} = '{files.key}' its key: {reason(error)}",
        ) from error


def _check_key(path: str) -> None:
    """As PostgreSQL does for its own (be-secure-common.c, check_ssl_key_file_permissions)."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise TlsFilesWrong(_KEY, path, f"must be a file that can be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise TlsFilesWrong(_KEY, path, "must be a regular file")
    user = os.geteuid()
    if found.st_uid not in (0, user):
        raise TlsFilesWrong(
            _KEY,
            path,
            f"must be owned by PostgreSQL's user (uid {user}) or by root, and is by uid {found.st_uid}",
        )
    allowed = 0o740 if found.st_uid == 0 and user != 0 else 0o700
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o777 & ~allowed:
        raise TlsFilesWrong(
            _KEY,
            path,
            f"must not be open to others: mode {mode:04o}; 0600 or less, or 0640 or less if root owns it",
            hint=f"chmod 0600 {path}",
        )


def reason(error: OSError) -> str:
    """OpenSSL's word for it, else the system's."""
    return str(getattr(error, "reason", None) or error.strerror or error)
