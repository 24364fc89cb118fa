"""Mutual TLS 1.3 around a non-blocking socket. Imported only when pgraft.ssl_enabled is on.

The certificate must be of the cluster's authority, which OpenSSL checks, and must name the node that
it claims to be, which `judge_peer` checks: a URI SAN pgraft://CLUSTER/NODE_ID, or a DNS or IP SAN equal
to that member's address.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence

from pgraft.transport.channel import Buffer
from pgraft.transport.framing import RemoteViolation, ViolationKind
from pgraft.transport.limits import SEND_JOIN_BYTES
from pgraft.transport.records import Refusal, RefusalCode
from pgraft.transport.tls_files import Names, TlsFiles, Whom, check_own, load, reason

_RECORD_BYTES = 16 * 1024
"""Plain text of a full TLS record (RFC 8446, 5.1): behind one there is probably another."""
_NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
_OLD_TLS = frozenset({"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW"})


class TlsChannel:
    """A Channel with TLS."""

    __slots__ = ("_sock", "greedy", "shake_writes")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.greedy = False
        self.shake_writes = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    def shake(self) -> None:
        """A step of the handshake. When it is done, the other side's certificate can be judged."""
        self.shake_writes = False
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        except ssl.SSLWantWriteError as error:
            self.shake_writes = True
            raise BlockingIOError from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ConnectionError(errno.ECONNRESET, "closed by the other side") from error
        except ssl.SSLError as error:
            raise _violation(error) from error

    def recv_into(self, room: memoryview) -> int:
        """Decrypted bytes; an end without a close_notify counts as an end. Raises RemoteViolation, too."""
        try:
            count = self._sock.recv_into(room)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            raise _violation(error) from error
        # The room holds a whole record, and OpenSSL reads no further than its end: what is left is in
        # the kernel, where epoll sees it. Behind a full one there is more; else asking costs two calls.
        self.greedy = count >= _RECORD_BYTES
        return count

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        """Encrypt and send a part of it as one buffer. After "would block", OpenSSL wants to see the
        same bytes again, perhaps with more behind them: a queue's beginning is just that."""
        try:
            return self._sock.send(_joined(parts))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        except ssl.SSLError as error:
            raise OSError(error.errno, f"TLS: {reason(error)}") from error

    def end_writing(self) -> None:
        """Half-close below TLS; the peer takes that as the end."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def names(self) -> Names:
        """Whom the peer's certificate names."""
        return Names(self._sock.getpeercert())


class TlsContext:
    """Both directions' contexts. Raises TlsFilesWrong when a file cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._contexts = load(files)

    def check_own(self, whom: Whom) -> float:
        """Whether peers will let this node in; seconds that its certificate is still good. Raises
        TlsFilesWrong, and where only the dates are wrong CertificateOutOfDate."""
        return check_own(self._contexts, self._files, whom)

    def wrap(self, sock: socket.socket, *, server_side: bool) -> TlsChannel:
        """A channel on a connected, non-blocking socket. Raises OSError."""
        context = self._contexts.server if server_side else self._contexts.client
        sock.getpeername()  # one that was reset already is better told before ssl takes it over
        wrapped = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
        try:
            # On a socket that is not connected any more ssl would read in the clear (CVE-2023-40217).
            wrapped.getpeercert()
        except ValueError:
            pass  # it is connected, and has not shaken hands yet
        except OSError:
            wrapped.close()
            raise
        return TlsChannel(wrapped)

    def judge_peer(self, channel: object, cluster_id: str, node_id: int, address: str) -> Refusal | None:
        """Whether the certificate at the other end names the node that it claims to be: None, or why not."""
        claimed = Whom(cluster_id, node_id, address)
        names = channel.names() if isinstance(channel, TlsChannel) else Names(None)
        if names.name(claimed):
            return None
        return Refusal(
            RefusalCode.CERTIFICATE,
            f"the certificate of node {claimed.node_id} does not name it: it has {names}",
            f"Issue one with the subject alternative name URI:{claimed.uri}; the node's address serves"
            " where the other side knows it as a member's.",
        )


def _joined(parts: Sequence[Buffer]) -> Buffer:
    size = 0
    for number, part in enumerate(parts):
        size += len(part)
        if size >= SEND_JOIN_BYTES:
            return b"".join(parts[: number + 1]) if number else part
    return b"".join(parts)


def _violation(error: ssl.SSLError) -> RemoteViolation:
    """What the other side did, in words for its log and ours."""
    why = reason(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return RemoteViolation(
            ViolationKind.CERTIFICATE,
            error.verify_message,
            "It must be valid now, and signed by an authority in this node's pgraft.ssl_ca_file.",
        )
    if why == _NO_CERTIFICATE:
        return RemoteViolation(ViolationKind.CERTIFICATE, "it presented none")
    if why in _NOT_TLS:
        return RemoteViolation(ViolationKind.TLS, "it does not speak TLS; pgraft.ssl_enabled must agree")
    if why in _OLD_TLS:
        return RemoteViolation(ViolationKind.TLS, "it does not speak TLS 1.3")
    _, is_alert, alert = why.partition("ALERT_")
    if is_alert:
        return RemoteViolation(
            ViolationKind.TLS_ALERT,
            alert.lower().replace("_", " "),
            "Its own log says more; it must accept the authority and the dates of this node's certificate.",
        )
    return RemoteViolation(ViolationKind.TLS, why)
