"""pgraft.initial_cluster: `name=host:port,name=host:port`, an id being the place in the list, from 1."""

from __future__ import annotations

from pgraft.hosts import is_host
from pgraft.postgres.errors import SettingError
from pgraft.postgres.settings import Member

INITIAL_MEMBERS_MAX = 64
NAME_BYTES_MAX = 120
_SETTING = "pgraft.initial_cluster"
_FORM = "must be a list of name=host:port, separated by commas"


def split_address(text: str) -> tuple[str, int] | None:
    """`host:port` or `[v6]:port` as (host, port); None when it is not one."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not is_host(host):
        return None
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        return None
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The text that split_address reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_members(text: str) -> tuple[Member, ...]:
    """The members of the list; SettingError where it is malformed or holds something twice."""
    if not text.strip():
        return ()
    members = []
    for number, part in enumerate(text.split(","), 1):
        members.append(_member(text, number, part.strip()))
    if len(members) > INITIAL_MEMBERS_MAX:
        raise SettingError(_SETTING, text, f"holds {len(members)} nodes, {INITIAL_MEMBERS_MAX} are allowed")
    _check_unique(text, members)
    return tuple(members)


def _member(text: str, number: int, part: str) -> Member:
    name, _, where = part.partition("=")
    name = name.strip()
    address = split_address(where)
    if not name or address is None or any(c.isspace() for c in name):
        raise SettingError(_SETTING, text, f"{_FORM}; item {number} is '{part}'")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise SettingError(_SETTING, text, f"the name in item {number} is longer than {NAME_BYTES_MAX} bytes")
    return Member(number, name, *address)


def _check_unique(text: str, members: list[Member]) -> None:
    names: dict[str, Member] = {}
    addresses: dict[tuple[str, int], Member] = {}
    for member in members:
        if member.name in names:
            raise SettingError(_SETTING, text, f"two nodes are called {member.name}; each needs its own name")
        other = addresses.get((member.address, member.port))
        if other is not None:
            where = join_address(member.address, member.port)
            raise SettingError(
                _SETTING,
                text,
                f"{other.name} and {member.name} both have {where}; each needs its own address",
            )
        names[member.name] = member
        addresses[member.address, member.port] = member
