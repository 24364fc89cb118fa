"""The ranges of ids and ports, which the wire, the disk and the membership have in common."""

from __future__ import annotations

NODE_ID_MAX = 2**31 - 1
"""Ids of nodes count from 1; SQL shows them as integer."""
MEMBER_ID_MAX = 2**64 - 1
"""Member ids are random and never 0."""
PORT_MAX = 65535
