"""The ranges of ids and ports, which the wire, the disk and the membership have in common."""

from __future__ import annotations

NODE_ID_MAX = 2**31 - 1
"""Ids of nodes count from 1; SQL shows them as integer."""
MEMBER_ID_MAX = 2**64 - 1
"""Member ids are random and never 0."""
PORT_MAX = 65535
TERM_MAX = 2**62
INDEX_MAX = 2**62
"""SQL shows terms and indexes as bigint, and no arithmetic on them comes near an edge."""
INCARNATION_MAX = 2**32
"""Incarnations of a member count from 1: one more each time that its directory is adopted in another
place."""
INCARNATION_JUMP_MAX = 1024
"""How much higher than known an incarnation may be: a garbled one must not bar a member for ever."""
