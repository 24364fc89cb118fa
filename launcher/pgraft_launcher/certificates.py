"""An authority and node certificates for trials: `init --make-certs DIR`, `demo up`.

    DIR/ca.crt, DIR/ca.key          the authority of the cluster
    DIR/node1.crt, DIR/node1.key    node 1: URI SAN pgraft://CLUSTER/1, and nothing else: nodes that share
                                    an address cannot be taken for each other

What is there stays. A certificate that ends soon is renewed, and needs a reload. The authority's key lies
beside what it signs, which is convenient and no more: for a cluster that matters, README.md shows how to
sign with one that is kept elsewhere.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgraft.transport.limits import EXPIRY_NEAR_DAYS
from pgraft_launcher.errors import LaunchError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
_BACKDATED = datetime.timedelta(hours=1)
"""Clocks of test machines differ."""


class Files(NamedTuple):
    """What one node needs: the values of pgraft.ssl_*_file."""

    cert: Path
    key: Path
    ca: Path

    def settings(self) -> dict[str, str]:
        """TLS on, with these files."""
        return {
            "pgraft.ssl_enabled": "on",
            "pgraft.ssl_cert_file": str(self.cert),
            "pgraft.ssl_key_file": str(self.key),
            "pgraft.ssl_ca_file": str(self.ca),
        }


def files_of(directory: Path, node_id: int) -> Files:
    """Where the files of a node are, or will be."""
    return Files(directory / f"node{node_id}.crt", directory / f"node{node_id}.key", directory / "ca.crt")


def require() -> None:
    """LaunchError where the package is missing that makes certificates."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise LaunchError(
            "making certificates needs the Python package cryptography, which is not installed",
            hint="pip install 'pgraft[tls]', or make them with openssl as README.md shows",
        ) from error


def ensure(directory: Path, cluster_id: str, node_ids: list[int]) -> list[int]:
    """Certificates of these nodes in `directory`; which of them are new. LaunchError when that cannot be."""
    require()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        missing = [one for one in node_ids if not _is_good(files_of(directory, one), cluster_id, one)]
        if missing:
            authority = Authority.of(directory)
            for node_id in missing:
                authority.issue(files_of(directory, node_id), node_uri(cluster_id, node_id))
    except OSError as error:
        raise LaunchError(f"cannot make certificates in {directory}: {error.strerror}") from error
    return missing


def node_uri(cluster_id: str, node_id: int) -> str:
    """The subject alternative name of a node."""
    from pgraft.transport.tls_files import Whom  # which imports ssl

    return Whom(cluster_id, node_id, "").uri


def _is_good(files: Files, cluster_id: str, node_id: int) -> bool:
    """Whether a node's certificate is there and lasts. LaunchError when it is that of another cluster."""
    from cryptography import x509

    if not (files.cert.exists() and files.key.exists()):
        return False
    try:
        found = x509.load_pem_x509_certificate(files.cert.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise LaunchError(f"{files.cert} is no node's certificate: {error}", hint="remove it") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if node_uri(cluster_id, node_id) not in uris:
        raise LaunchError(
            f"{files.cert} names {', '.join(uris) or 'nobody'}, and not {node_uri(cluster_id, node_id)}",
            hint="give each cluster a directory of its own with --make-certs",
        )
    return found.not_valid_after_utc - _now() > datetime.timedelta(days=EXPIRY_NEAR_DAYS)


class Authority:
    """A key that signs, and its own certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def of(cls, directory: Path) -> Authority:
        """The one in this directory, made where there is none."""
        certificate, key = directory / "ca.crt", directory / "ca.key"
        if not certificate.exists() and not key.exists():
            made = cls.new(f"pgraft test authority in {directory.name}")
            made.write(certificate, key)
            return made
        for path in (certificate, key):
            if not path.exists():
                raise LaunchError(
                    f"{path} is missing, and a node's certificate has to be signed",
                    hint=f"copy all of {directory} from the machine where it was made",
                )
        return cls.load(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """The one in these files."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            found = load_pem_private_key(key.read_bytes(), None)
            issuer = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (ValueError, TypeError) as error:
            raise LaunchError(f"{certificate} and {key} cannot be read: {error}") from error
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise LaunchError(f"{key} is not a key that pgraft-launch has made", hint="sign with openssl")
        return cls(issuer, found)

    @classmethod
    def new(cls, name: str, *, days: int = AUTHORITY_DAYS) -> Authority:
        """A new one; nothing is written yet."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _begin(subject, subject, key.public_key(), 0, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return cls(builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key)

    def write(self, certificate: Path, key: Path) -> None:
        """Into files; the key's is readable by its owner only."""
        _write(key, _pem_of_key(self._key), 0o600)
        _write(certificate, _pem(self.certificate), 0o644)

    def issue(self, files: Files, uri: str, *, starts_days: int = 0, ends_days: int = NODE_DAYS) -> None:
        """A new key and a certificate with this URI, good between these days from now; and our own
        certificate as `files.ca`, where it is not there."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(files.cert.stem)
        builder = _begin(subject, self.certificate.subject, key.public_key(), starts_days, ends_days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        # A node is client and server, one of each to every peer.
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        _write(files.key, _pem_of_key(key), 0o600)
        _write(files.cert, _pem(builder.sign(self._key, hashes.SHA256())), 0o644)
        if not files.ca.exists():
            _write(files.ca, _pem(self.certificate), 0o644)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, starts_days: int, ends_days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=starts_days) - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=ends_days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    """Aside, then renamed: nobody reads half of it, and no mode but the last is ever seen."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
