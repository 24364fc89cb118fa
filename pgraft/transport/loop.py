"""The event loop: descriptors and named timers. One thread, no callbacks from elsewhere.

`select.epoll` itself rather than `selectors`, which builds a key object per event: this loop turns
twice for each hop of a commit.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Hashable

from pgraft.transport.limits import STRANGERS_TURN_MS

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_EVENTS_MAX = 256

Handler = Callable[[int], None]
"""Called with the epoll events of its descriptor."""


def now_ns() -> int:
    """CLOCK_BOOTTIME: a suspended machine's time counts, the wall clock does not."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Timers:
    """Deadlines by key; setting a key again moves it. There are few: one or two for each peer."""

    def __init__(self) -> None:
        self._due: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self.next_ns = 0
        """The earliest deadline, 0 when there is none. It may be early, never late."""

    def set(self, key: Hashable, after_ms: float, action: Callable[[], None]) -> None:
        """Call `action` once, `after_ms` from now."""
        due = now_ns() + int(after_ms * 1_000_000)
        self._due[key] = (due, action)
        if not self.next_ns or due < self.next_ns:
            self.next_ns = due

    def cancel(self, key: Hashable) -> None:
        """Forget a timer; one that is not set is no error."""
        self._due.pop(key, None)

    def is_set(self, key: Hashable) -> bool:
        """Whether a timer of this key waits."""
        return key in self._due

    def run(self, now: int) -> None:
        """Call everything that is due."""
        due = [key for key, (at, _) in self._due.items() if at <= now]
        for key in due:
            entry = self._due.get(key)
            # An action before this one may have cancelled or moved it.
            if entry is not None and entry[0] <= now:
                del self._due[key]
                entry[1]()
        self.next_ns = min((at for at, _ in self._due.values()), default=0)


class Loop:
    """Handlers by descriptor, and the timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._strangers: set[int] = set()
        self.timers = Timers()

    def watch(self, fd: int, events: int, handler: Handler, *, stranger: bool = False) -> None:
        """Call `handler` when one of `events` is there (errors and hang-ups always are reported); of a
        `stranger` after all others, and in a later turn when this one has no time left."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler
        if stranger:
            self._strangers.add(fd)

    def trust(self, fd: int) -> None:
        """No stranger any more."""
        self._strangers.discard(fd)

    def change(self, fd: int, events: int) -> None:
        """Watch other events of a watched descriptor."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed. Not watched: nothing done."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._strangers.discard(fd)

    def wait_s(self) -> float:
        """Seconds to the next deadline, -1 when there is none (what epoll takes)."""
        due = self.timers.next_ns
        if not due:
            return -1.0
        return max(0.0, (due - now_ns()) / 1e9)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait; the events that came, for `dispatch`."""
        return self._epoll.poll(timeout_s, _EVENTS_MAX)

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        """Call the handlers of `events`, those of strangers last; then the timers that are due."""
        handlers, strangers = self._handlers, self._strangers
        late: list[tuple[int, int]] = []
        for fd, happened in events:
            if fd in strangers:
                late.append((fd, happened))
                continue
            # A handler before this one may have closed the descriptor.
            handler = handlers.get(fd)
            if handler is not None:
                handler(happened)
        if late:
            self._serve_strangers(late)
        due = self.timers.next_ns
        if due:
            now = now_ns()
            if now >= due:
                self.timers.run(now)

    def _serve_strangers(self, events: list[tuple[int, int]]) -> None:
        """One at least, more while there is time. epoll tells again of those that are left, and in turn."""
        until = now_ns() + STRANGERS_TURN_MS * 1_000_000
        for fd, happened in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(happened)
                if now_ns() >= until:
                    return

    def close(self) -> None:
        """Close the epoll descriptor; watched ones stay open."""
        self._handlers.clear()
        self._epoll.close()
