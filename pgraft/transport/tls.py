"""Mutual TLS 1.3 around a non-blocking socket. Imported only when pgraft.ssl_enabled is on.

The certificate must be of the cluster's authority, which OpenSSL checks, and must name the node that
it claims to be, which `judge_peer` checks: a URI SAN pgraft://CLUSTER/NODE_ID, or a DNS or IP SAN equal
to that member's address.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from urllib.parse import quote

from pgraft.transport.channel import Buffer
from pgraft.transport.framing import RemoteViolation, ViolationKind
from pgraft.transport.handshake import Local
from pgraft.transport.limits import SEND_JOIN_BYTES
from pgraft.transport.records import Refusal, RefusalCode

_NAMES_SHOWN_MAX = 8


class TlsFilesWrong(Exception):
    """A certificate, key or authority file that cannot be used; the text names the setting and the file."""


class TlsFiles:
    """The three files of pgraft.ssl_*_file."""

    __slots__ = ("ca", "cert", "key")

    def __init__(self, cert: str, key: str, ca: str) -> None:
        self.cert = cert
        self.key = key
        self.ca = ca


class TlsChannel:
    """A Channel with TLS. Its handshake happens inside the first sends and receives."""

    __slots__ = ("_sock", "greedy", "wants_read")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.greedy = True
        self.wants_read = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    def recv_into(self, room: memoryview) -> int:
        """Decrypted bytes; an end without a close_notify counts as an end. Raises RemoteViolation, too."""
        try:
            return self._sock.recv_into(room)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            raise RemoteViolation(ViolationKind.TLS, _reason(error)) from error

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        """Encrypt and send a part of it as one buffer. After "would block", OpenSSL wants to see the
        same bytes again, perhaps with more behind them: a queue's beginning is just that."""
        self.wants_read = False
        try:
            return self._sock.send(_joined(parts))
        except ssl.SSLWantReadError as error:
            self.wants_read = True
            raise BlockingIOError from error
        except ssl.SSLWantWriteError as error:
            raise BlockingIOError from error
        except ssl.SSLError as error:
            raise OSError(error.errno, f"TLS: {_reason(error)}") from error

    def end_writing(self) -> None:
        """Half-close below TLS; the peer takes that as the end."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def names(self) -> dict[str, set[str]]:
        """The subject alternative names of the peer's certificate, by kind."""
        found: dict[str, set[str]] = {}
        certificate = self._sock.getpeercert() or {}
        for entry in certificate.get("subjectAltName", ()):
            kind, name = str(entry[0]), str(entry[1])
            found.setdefault(kind, set()).add(name)
        return found


class TlsContext:
    """Both directions' contexts. Raises TlsFilesWrong when a file cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, files)
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, files)

    def wrap(self, sock: socket.socket, *, server_side: bool) -> TlsChannel:
        """A channel on a connected, non-blocking socket. Raises OSError."""
        context = self._server if server_side else self._client
        wrapped = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
        return TlsChannel(wrapped)

    def judge_peer(self, channel: object, local: Local, node_id: int, address: str) -> Refusal | None:
        """Whether the certificate at the other end names this node: None, or why not."""
        names = channel.names() if isinstance(channel, TlsChannel) else {}
        wanted = node_uri(local.identity.cluster_id, node_id)
        if wanted in names.get("URI", ()) or _names_address(names, address):
            return None
        shown = sorted(f"{kind}:{name}" for kind, found in names.items() for name in found)
        return Refusal(
            RefusalCode.CERTIFICATE,
            f"the certificate of node {node_id} does not name it: it has"
            f" {', '.join(shown[:_NAMES_SHOWN_MAX]) or 'no subject alternative names'}",
            f"Issue one with the subject alternative name URI:{wanted} or with the node's address.",
        )


def _joined(parts: Sequence[Buffer]) -> Buffer:
    size = 0
    for number, part in enumerate(parts):
        size += len(part)
        if size >= SEND_JOIN_BYTES:
            return b"".join(parts[: number + 1]) if number else part
    return b"".join(parts)


def node_uri(cluster_id: str, node_id: int) -> str:
    """The URI that names a node in its certificate."""
    return f"pgraft://{quote(cluster_id, safe='')}/{node_id}"


def _names_address(names: dict[str, set[str]], address: str) -> bool:
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return address.lower() in {name.lower() for name in names.get("DNS", ())}
    for name in names.get("IP Address", ()):
        try:
            if ipaddress.ip_address(name) == wanted:
                return True
        except ValueError:
            continue
    return False


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    _check_key(files.key)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # judge_peer asks for the node, which the host name does not give
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # sessions are not resumed: a reload counts for every new connection
    try:
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesWrong(
            f'pgraft.ssl_cert_file "{files.cert}" with pgraft.ssl_key_file "{files.key}": {_reason(error)}'
        ) from error
    try:
        context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesWrong(f'pgraft.ssl_ca_file "{files.ca}": {_reason(error)}') from error
    return context


def _check_key(path: str) -> None:
    """As PostgreSQL does for its own (be-secure-common.c, check_ssl_key_file_permissions)."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise TlsFilesWrong(f'pgraft.ssl_key_file "{path}": {error.strerror}') from error
    mode = stat.S_IMODE(found.st_mode)
    allowed = 0o640 if found.st_uid == 0 and os.geteuid() != 0 else 0o600
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or mode & ~(allowed | 0o100):
        raise TlsFilesWrong(
            f'pgraft.ssl_key_file "{path}" must be a file of this user or of root that others cannot'
            f" read: mode {mode:04o}, at most {allowed:04o} is allowed"
        )


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
