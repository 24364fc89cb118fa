"""Every bound of the transport, by name. Nothing in this room grows past one of these."""

from __future__ import annotations

FRAME_BYTES_MAX = 2 * 1024 * 1024 - 64
"""Payload of one frame: with its prefix and header it fills at most half of a 4 MiB ring."""
HANDSHAKE_BYTES_MAX = 64 * 1024
"""Payload of a frame before the sender is known: 64 members with long addresses fit."""
FRAME_TIMEOUT_MS = 30_000
"""From the first bytes of a frame to its last, once somebody is let in: the largest at 70 kB/s."""
STRANGERS_HELD_BYTES_MAX = 8 * 1024 * 1024
"""Of unfinished frames of all nodes together that are no members here (yet). When more, the oldest goes."""
RECEIVE_BYTES = 256 * 1024
"""Room of the one buffer that all connections of the process receive into."""
SEND_QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""What waits for one peer that does not read; further messages are dropped (Raft sends again)."""
SEND_BUFFERS_MAX = 512
"""Buffers handed to one sendmsg (the kernel takes 1024)."""
SEND_JOIN_BYTES = 64 * 1024
"""Up to here, one copied buffer is cheaper than a vector of buffers."""

CONNECT_TIMEOUT_MS_MIN = 1_500
CONNECT_TIMEOUT_MS_MAX = 5_000
"""One election timeout within these bounds. The kernel asks again after 1 s, and then ever more rarely; a new
attempt asks at once."""
RETRANSMIT_MS_MAX = 1_000
"""How long TCP waits at most before it sends again what was not acknowledged, where the kernel takes it."""
HANDSHAKE_TIMEOUT_MS = 5_000
"""From accept (or connect) to the end of the handshake, TLS included."""
LINGER_MS = 1_000
"""How long a connection whose last word has been sent waits for the other side to close."""
BACKOFF_FIRST_MS = 50
BACKOFF_MAX_MS = 1_000
PROBE_MS_MAX = 2_000
"""How long a second instance of a node waits for a sign of life of the first one."""

PENDING_CONNECTIONS_MAX = 256
"""Accepted connections that have not finished their handshake, or are lingering."""
PENDING_PER_ADDRESS_MAX = 128
"""Of those, from one address. When full the oldest goes: a true peer greets at once."""
ACCEPTS_PER_WAKE = 16
"""A flood of connections gets this much of each turn of the loop, messages come after it."""
STRANGERS_TURN_MS = 2
"""Of one turn of the loop, for all connections whose handshake is not over: after this, and the step that is
under way, messages come again. A TLS handshake costs 1 ms with an EC key, 11 ms with RSA-4096."""
ACCEPT_PAUSE_MS = 100
"""Pause of accepting when the process is out of file descriptors."""
LISTEN_BACKLOG = 1024
LISTEN_ADDRESSES_MAX = 8
INCOMING_MAX = 256
"""Established incoming connections, of members and of unknown ids together."""
UNKNOWN_PEERS_MAX = 64
"""Established incoming connections of ids that are not members here (yet)."""
REFUSED_STARTS_MAX = 128
"""Peers of which one worker's start is refused; beyond that the oldest is asked of the worker again."""

UNDELIVERED_RECORDS_MAX = 4096
"""Records that wait for room in the inbound ring; reading stops at the first one."""
STALL_RECHECK_MS = 5
"""How soon a full inbound ring is looked at again when nothing rings."""

RESOLVER_THREADS_MAX = 4
RESOLVE_REUSE_MS = 30_000
"""How long an answer of the resolver is used; a failed connection asks again sooner."""
RESOLVE_AGAIN_MS = 1_000
"""A name is asked for at most this often."""
ADDRESSES_PER_NAME_MAX = 8

LOG_REPEAT_MS = 60_000
"""The same reason about the same peer: at once the first time, again after this, with a count."""
LOG_REPEAT_GROWTH = 8
LOG_REPEAT_MS_MAX = 12 * 3_600_000
"""From one repetition to the next so many times longer, up to this: a peer that is away for a day costs six
lines, and two for each day more."""
LOG_QUIET_MS = 600_000
"""After so long without it, the same reason is news again."""
LOG_SUBJECTS_MAX = 256
LOG_LINES_PER_MINUTE_MAX = 60
"""Over all subjects: a flood with many faces does not fill the server log."""
LOG_TEXT_CHARS_MAX = 2_000
"""Of what a peer says about itself or us, in a log line."""
STOP_FLUSH_MS = 100

EXPIRY_NEAR_DAYS = 30
"""A certificate that ends within this time is warned of, at each start and reload, and is made anew where we
make them ourselves."""
