"""Certificates for tests: good ones, and such as nobody should accept."""

from __future__ import annotations

import os
from pathlib import Path

from pgraft.transport.tls_files import TlsFiles
from pgraft_launcher.certificates import Authority, Files, files_of


class Maker:
    """An authority, and what it signs, in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.authority = Authority.new(name)
        self.ca = folder / f"{name}.crt"
        folder.mkdir(exist_ok=True)
        self.authority.write(self.ca, folder / f"{name}.key")

    def issue(self, name: str, uri: str, *, starts_days: int = 0, ends_days: int = 100) -> TlsFiles:
        """NAME.crt and NAME.key for this URI; done again, a renewed one in the same files."""
        files = Files(self.folder / f"{name}.crt", self.folder / f"{name}.key", self.ca)
        self.authority.issue(files, uri, starts_days=starts_days, ends_days=ends_days)
        return TlsFiles(str(files.cert), str(files.key), str(files.ca))


def replace(directory: Path, node_id: int, by: TlsFiles, *, owner_of: Path) -> None:
    """Put other files in the place of a node's certificate and key, as an operator would."""
    target = files_of(directory, node_id)
    about = owner_of.stat()
    for source, path in ((by.cert, target.cert), (by.key, target.key)):
        aside = path.with_name(path.name + ".new")
        aside.write_bytes(Path(source).read_bytes())
        aside.chmod(0o600)
        os.chown(aside, about.st_uid, about.st_gid)
        aside.replace(path)
