"""One connection: frames out through a bounded queue, frames in through a decoder.

It knows nothing of who is at the other end; its owner (a Session) does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from pgraft.transport.channel import Buffer, Channel
from pgraft.transport.framing import (
    PROTOCOL_VERSION,
    Frame,
    FrameDecoder,
    FrameType,
    RemoteViolation,
    encode_frame,
    frame_header,
)
from pgraft.transport.limits import FRAME_TIMEOUT_MS, RECEIVE_BYTES, SEND_BUFFERS_MAX, SEND_QUEUE_BYTES_MAX
from pgraft.transport.loop import READ, WRITE, Loop, now_ns

_MESSAGE = int(FrameType.MESSAGE)
_NOTHING = memoryview(b"")


class Owner(Protocol):
    """Who is told what happens to a connection. All may close it."""

    def on_shaken(self) -> None:
        """What comes before the first frame is done: frames may go out."""
        ...

    def on_frames(self, frames: list[Frame]) -> None:
        """Frames have come; their payloads are valid during the call only. May raise RemoteViolation."""
        ...

    def on_unfinished(self) -> None:
        """Bytes of a frame have come that is not whole yet."""
        ...

    def on_overdue(self) -> None:
        """A frame that began to come was not finished in time. Close it."""
        ...

    def on_lost(self, reason: str) -> None:
        """The other side closed it or it broke. Close it."""
        ...

    def on_violation(self, violation: RemoteViolation) -> None:
        """The other side broke the protocol. Close it."""
        ...


class Counters:
    """What the network process counts; published in the segment."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "connections",
        "connects",
        "crowded_out",
        "dropped",
        "frames_in",
        "frames_out",
        "malformed",
        "pending",
        "refused",
        "timed_out",
    )

    def __init__(self) -> None:
        self.frames_in = 0
        self.frames_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.refused = 0
        self.malformed = 0
        self.dropped = 0
        self.connects = 0
        self.crowded_out = 0
        self.timed_out = 0
        self.connections = 0
        self.pending = 0


class Wire:
    """What all connections of the process share: the loop, the counters, the receive buffer."""

    __slots__ = ("counters", "loop", "scratch")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.counters = Counters()
        self.scratch = memoryview(bytearray(RECEIVE_BYTES))


class Connection:
    """Created watching for input. Its first event, or who made it, lets the channel shake hands: before that
    nothing may be sent."""

    __slots__ = (
        "_channel",
        "_decoder",
        "_fd",
        "_finishing",
        "_handshaking",
        "_owner",
        "_paused",
        "_queue",
        "_shaken",
        "_version",
        "_watched",
        "_wire",
        "closed",
        "queued_bytes",
        "unfinished_since",
    )

    def __init__(self, wire: Wire, channel: Channel, owner: Owner) -> None:
        self._wire = wire
        self._channel = channel
        self._owner = owner
        self._decoder = FrameDecoder()
        self._queue: deque[Buffer] = deque()
        self.queued_bytes = 0
        self.unfinished_since = 0
        """When the frame that is not whole yet began to come; 0 while there is none."""
        self._version = PROTOCOL_VERSION
        self._shaken = False
        self._handshaking = True
        self._paused = False
        self._finishing = False
        self.closed = False
        self._fd = channel.fileno()
        self._watched = 0
        self._update()

    # --- life -----------------------------------------------------------------------------------

    def shake(self) -> bool:
        """Go on with the channel's own handshake; whether it is done and frames can go."""
        try:
            self._channel.shake()
        except BlockingIOError:
            self._update()
            return False
        except OSError as error:
            self._owner.on_lost(error.strerror or str(error))
            return False
        except RemoteViolation as violation:
            self._owner.on_violation(violation)
            return False
        self._shaken = True
        self._update()
        self._owner.on_shaken()
        return not self.closed

    def established(self, version: int) -> None:
        """The handshake is over."""
        self._version = version
        self._handshaking = False
        self._wire.loop.trust(self._fd)
        self._decoder.established(version)

    def pause(self) -> None:
        """Stop reading: TCP holds the sender back."""
        self._paused = True
        self._time_frame(anew=False)
        self._update()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._time_frame(anew=False)
        self._update()

    def finish(self) -> None:
        """Send what waits, then say that nothing more comes, and read on only to see the other side
        close: closing with unread input would throw away what was just sent."""
        self._finishing = True
        self._paused = False
        self._time_frame(anew=False)
        if not self._queue:
            self._channel.end_writing()
        self._update()

    def close(self) -> None:
        """Close at once; twice is once."""
        if self.closed:
            return
        self.closed = True
        self._time_frame(anew=False)
        self._wire.loop.forget(self._fd)
        self._queue.clear()
        self.queued_bytes = 0
        self._channel.close()

    def _update(self) -> None:
        """Watch what matters now. With nothing to watch for, epoll would still report a hang-up again
        and again, so the descriptor leaves it."""
        if self.closed:
            return
        if self._shaken:
            wanted = (0 if self._paused else READ) | (WRITE if self._queue else 0)
        else:
            wanted = WRITE if self._channel.shake_writes else READ
        if wanted == self._watched:
            return
        loop = self._wire.loop
        if not wanted:
            loop.forget(self._fd)
        elif not self._watched:
            loop.watch(self._fd, wanted, self._handle, stranger=self._handshaking)
        else:
            loop.change(self._fd, wanted)
        self._watched = wanted

    def _handle(self, happened: int) -> None:
        if not self._shaken and not self.shake():
            return
        if happened & WRITE and self._queue:
            self._flush()
        if happened & ~WRITE and not self._paused and not self.closed:
            self._receive()

    # --- in -------------------------------------------------------------------------------------

    def _receive(self) -> None:
        scratch = self._wire.scratch
        left = len(scratch)
        while left > 0:
            try:
                count = self._channel.recv_into(scratch)
            except BlockingIOError:
                return
            except OSError as error:
                self._owner.on_lost(error.strerror or str(error))
                return
            except RemoteViolation as violation:
                self._owner.on_violation(violation)
                return
            if not count:
                self._owner.on_lost("closed by the other side")
                return
            if not self._finishing:
                self._take(scratch[:count])
            if not self._channel.greedy or self.closed or self._paused:
                return
            left -= count  # who never stops sending does not keep the others waiting

    def _take(self, data: memoryview) -> None:
        counters = self._wire.counters
        counters.bytes_in += len(data)
        handshaking = self._handshaking
        some = False
        try:
            frames = self._decoder.feed(data)
            while frames:
                some = True
                counters.frames_in += len(frames)
                self._owner.on_frames(frames)
                if not handshaking or self.closed or self._finishing:
                    break
                handshaking = self._handshaking
                frames = self._decoder.feed(_NOTHING)
        except RemoteViolation as violation:
            self._owner.on_violation(violation)
            return
        if self.held_bytes or self.unfinished_since:
            self._time_frame(anew=some)
            if self.unfinished_since:
                self._owner.on_unfinished()

    @property
    def held_bytes(self) -> int:
        """Bytes of the frame that is not whole yet."""
        return self._decoder.held_bytes

    def _time_frame(self, *, anew: bool) -> None:
        """Give the frame that is not whole yet its time, or go on with the time that it has. Of no one whom
        we do not read: that is not the sender's fault. During the handshake its own time counts."""
        deaf = self.closed or self._finishing or self._paused or self._handshaking
        if deaf or not self.held_bytes:
            if self.unfinished_since:
                self.unfinished_since = 0
                self._wire.loop.timers.cancel(("frame", self))
        elif anew or not self.unfinished_since:
            self.unfinished_since = now_ns()
            self._wire.loop.timers.set(("frame", self), FRAME_TIMEOUT_MS, self._owner.on_overdue)

    # --- out ------------------------------------------------------------------------------------

    def send_frame(self, kind: FrameType, payload: bytes = b"") -> bool:
        """Send or queue one frame; False when there is no room for it."""
        frame = encode_frame(kind, payload, self._version)
        return self._send([frame], len(frame), 1)

    def send_messages(self, bodies: Sequence[Buffer]) -> int:
        """Send or queue MESSAGE frames, all in one send where possible; how many were dropped."""
        parts: list[Buffer] = []
        size = 0
        version = self._version
        for body in bodies:
            header = frame_header(_MESSAGE, body, version)
            parts.append(header)
            parts.append(body)
            size += len(header) + len(body)
        if self.queued_bytes + size <= SEND_QUEUE_BYTES_MAX:
            return 0 if self._send(parts, size, len(bodies)) else len(bodies)
        return self._send_what_fits(parts)

    def _send_what_fits(self, parts: list[Buffer]) -> int:
        dropped = 0
        for at in range(0, len(parts), 2):
            frame = parts[at : at + 2]
            if not self._send(frame, len(frame[0]) + len(frame[1]), 1):
                dropped += 1
        return dropped

    def _send(self, parts: list[Buffer], size: int, frames: int) -> bool:
        """All or nothing. A broken connection is reported by its next event, not from here."""
        if self.closed or self._finishing or self.queued_bytes + size > SEND_QUEUE_BYTES_MAX:
            return False
        sent = 0
        if not self._queue:
            try:
                sent = self._channel.send(parts, size)
            except BlockingIOError:
                pass
            except OSError:
                return False
        counters = self._wire.counters
        counters.frames_out += frames
        counters.bytes_out += sent
        if sent < size:
            self._queue.extend(_behind(parts, sent))
            self.queued_bytes += size - sent
            self._update()
        return True

    def _flush(self) -> None:
        batch = list(islice(self._queue, SEND_BUFFERS_MAX))
        try:
            sent = self._channel.send(batch, sum(map(len, batch)))
        except OSError:
            # Would block after all, or broken, which the next read reports.
            self._update()
            return
        self._wire.counters.bytes_out += sent
        self.queued_bytes -= sent
        rest = _behind(batch, sent)
        for _ in batch:
            self._queue.popleft()
        self._queue.extendleft(reversed(rest))
        if not self._queue and self._finishing:
            self._channel.end_writing()
        self._update()


def _behind(parts: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of `parts` after `sent` bytes."""
    for number, part in enumerate(parts):
        if sent < len(part):
            rest = list(parts[number:])
            rest[0] = memoryview(part)[sent:]
            return rest
        sent -= len(part)
    return []
