"""Who may connect to the servers of a demo: its own user and root by the socket, nobody by TCP.

The kernel tells PostgreSQL who is at the other end of a Unix socket (peer), and the map below says whom
it lets in. Root could become the demo's user anyway. By TCP a password is asked for, and no role has one
until somebody sets it.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from pgraft.postgres import conffile

INITDB_OPTIONS = ("--auth-local=peer", "--auth-host=scram-sha-256")
MAP = "pgraft_demo"
_HBA = f"""\
# Made by pgraft-launch demo up. pg_ident.conf says whom the map lets in.
# TYPE  DATABASE     USER  ADDRESS       METHOD
local   all          all                 peer map={MAP}
local   replication  all                 peer map={MAP}
host    all          all   127.0.0.1/32  scram-sha-256
"""


def write(pgdata: Path) -> None:
    """Into pg_hba.conf and pg_ident.conf of a server that has not been started yet. OSError."""
    names = dict.fromkeys(pwd.getpwuid(uid).pw_name for uid in (os.geteuid(), 0))
    lines = [f'{MAP}  "{name}"  all\n' for name in names]
    ident = "# Made by pgraft-launch demo up.\n# MAPNAME    SYSTEM-USERNAME  DATABASE-USERNAME\n"
    conffile.replace_file(pgdata / "pg_ident.conf", ident + "".join(lines))
    conffile.replace_file(pgdata / "pg_hba.conf", _HBA)
