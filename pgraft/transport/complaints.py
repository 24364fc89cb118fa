"""The server log at a bounded rate: a peer that is away or refused for a day is a handful of lines."""

from __future__ import annotations

from collections.abc import Hashable

from pgraft.log import Level, log
from pgraft.transport.handshake import printable
from pgraft.transport.limits import (
    LOG_LINES_PER_MINUTE_MAX,
    LOG_QUIET_MS,
    LOG_REPEAT_GROWTH,
    LOG_REPEAT_MS,
    LOG_REPEAT_MS_MAX,
    LOG_SUBJECTS_MAX,
)
from pgraft.transport.loop import now_ns

_REPEAT_NS = LOG_REPEAT_MS * 1_000_000
_REPEAT_NS_MAX = LOG_REPEAT_MS_MAX * 1_000_000
_QUIET_NS = LOG_QUIET_MS * 1_000_000
_MINUTE_NS = 60_000_000_000


class _Subject:
    __slots__ = ("again_ns", "kept_back", "met_ns", "pause_ns")

    def __init__(self) -> None:
        self.met_ns = 0
        self.again_ns = 0
        self.pause_ns = _REPEAT_NS
        self.kept_back = 0


class Complaints:
    """Logs the first complaint about a subject at once, the next ones after growing pauses, with a count."""

    def __init__(self) -> None:
        self._subjects: dict[Hashable, _Subject] = {}
        self._minute_began_ns = 0
        self._lines = 0

    def log(self, subject: Hashable, level: Level, message: str, detail: str = "", hint: str = "") -> bool:
        """Whether a line was written. `subject`: what makes two complaints the same one."""
        now = now_ns()
        known = self._subject(subject)
        if now - known.met_ns > _QUIET_NS:
            known.again_ns, known.pause_ns = 0, _REPEAT_NS
        known.met_ns = now
        if now < known.again_ns or not self._may_write(now):
            known.kept_back += 1
            return False
        if known.kept_back:
            message = f"{message} ({known.kept_back} more since the last report)"
        known.again_ns = now + known.pause_ns
        known.pause_ns = min(known.pause_ns * LOG_REPEAT_GROWTH, _REPEAT_NS_MAX)
        known.kept_back = 0
        log(level, printable(message), detail=printable(detail), hint=printable(hint))
        return True

    def forget(self, subject: Hashable) -> None:
        """The matter is settled: the next complaint is a first one again."""
        self._subjects.pop(subject, None)

    def _subject(self, subject: Hashable) -> _Subject:
        known = self._subjects.pop(subject, None)
        if known is None:
            known = _Subject()
            if len(self._subjects) >= LOG_SUBJECTS_MAX:
                del self._subjects[next(iter(self._subjects))]
        self._subjects[subject] = known  # the newest stands last, the oldest goes first
        return known

    def _may_write(self, now: int) -> bool:
        if now - self._minute_began_ns >= _MINUTE_NS:
            self._minute_began_ns = now
            self._lines = 0
        if self._lines >= LOG_LINES_PER_MINUTE_MAX:
            return False
        self._lines += 1
        return True
