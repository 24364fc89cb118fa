"""Host names to addresses without holding up the loop.

Numeric addresses are answered at once. Names go to getaddrinfo in a helper thread, at most
RESOLVER_THREADS_MAX at a time, and the answer is used again for a while.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from pgraft.transport.limits import (
    ADDRESSES_PER_NAME_MAX,
    RESOLVE_AGAIN_MS,
    RESOLVE_REUSE_MS,
    RESOLVER_THREADS_MAX,
)
from pgraft.transport.loop import READ, Loop, now_ns

_MS = 1_000_000


def numeric_family(host: str) -> int:
    """AF_INET or AF_INET6 for a numeric address, 0 for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family
    return 0


class _Answer:
    __slots__ = ("asked_ns", "error", "hosts")

    def __init__(self, hosts: tuple[str, ...], error: str, asked_ns: int) -> None:
        self.hosts = hosts
        self.error = error
        self.asked_ns = asked_ns


class Resolver:
    """`lookup` answers at once or not yet; `on_answer(host)` is called in the loop when it can."""

    def __init__(self, loop: Loop, on_answer: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_answer = on_answer
        self._answers: dict[str, _Answer] = {}
        self._asking: set[str] = set()
        self._wanted: dict[str, None] = {}
        self._done: list[tuple[str, _Answer]] = []
        self._pipe: tuple[int, int] | None = None

    def lookup(self, host: str) -> tuple[str, ...] | None:
        """Numeric addresses of `host`; None while they are being asked for; OSError when there are none."""
        if numeric_family(host):
            return (host,)
        answer = self._answers.get(host)
        reuse_ms = RESOLVE_REUSE_MS if answer is not None and answer.hosts else RESOLVE_AGAIN_MS
        if answer is None or now_ns() - answer.asked_ns > reuse_ms * _MS:
            self._ask(host)
        if answer is None:
            return None
        if not answer.hosts:
            raise OSError(answer.error)
        return answer.hosts

    def doubt(self, host: str) -> None:
        """A connection to what was answered failed: ask again, not too often."""
        answer = self._answers.get(host)
        if answer is not None and now_ns() - answer.asked_ns > RESOLVE_AGAIN_MS * _MS:
            self._ask(host)

    def keep_only(self, hosts: set[str]) -> None:
        """Forget names that no member has any more."""
        self._answers = {host: answer for host, answer in self._answers.items() if host in hosts}
        self._wanted = {host: None for host in self._wanted if host in hosts}

    def _ask(self, host: str) -> None:
        if host in self._asking:
            return
        if len(self._asking) >= RESOLVER_THREADS_MAX:
            self._wanted[host] = None
            return
        self._asking.add(host)
        write_fd = self._wake_pipe()
        threading.Thread(target=self._work, args=(host, write_fd), daemon=True).start()

    def _wake_pipe(self) -> int:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.watch(self._pipe[0], READ, self._on_wake)
        return self._pipe[1]

    def _work(self, host: str, write_fd: int) -> None:
        """In the helper thread. A list's append is atomic; everything else belongs to the loop."""
        asked_ns = now_ns()
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            hosts = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
            answer = _Answer(hosts[:ADDRESSES_PER_NAME_MAX], "", asked_ns)
        except (OSError, ValueError) as error:
            answer = _Answer((), getattr(error, "strerror", None) or str(error), asked_ns)
        self._done.append((host, answer))
        try:
            os.write(write_fd, b"\0")
        except OSError:
            return  # the pipe is full of wake-ups, or the process is ending

    def _on_wake(self, _events: int) -> None:
        if self._pipe is not None:
            os.read(self._pipe[0], 256)
        while self._done:
            host, answer = self._done.pop(0)
            self._asking.discard(host)
            old = self._answers.get(host)
            # A name that cannot be resolved for a moment keeps the addresses that it had.
            if answer.hosts or old is None or not old.hosts:
                self._answers[host] = answer
            else:
                old.asked_ns = answer.asked_ns
            if self._wanted:
                waiting = next(iter(self._wanted))
                del self._wanted[waiting]
                self._ask(waiting)
            self._on_answer(host)

    def close(self) -> None:
        """Stop listening to helper threads; they end by themselves."""
        if self._pipe is not None:
            self._loop.forget(self._pipe[0])
            # The writing end stays open: a helper that is still at work writes to it.
            os.close(self._pipe[0])
            self._pipe = None
