"""The live page: redrawn in place with a few ANSI sequences, no curses. Ends on q or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Callable, Iterator

KEYS_BYTES_MAX = 64
HOME, CLEAR_TO_SCREEN_END = "\x1b[H", "\x1b[J"
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
CLEAR_TO_LINE_END = "\x1b[K"


def watch(draw: Callable[[], str], interval_s: float, count: int | None) -> None:
    """Show `draw()` every `interval_s`, `count` times or until q; page after page when piped."""
    on_screen = sys.stdout.isatty()
    with _keys() as keyboard, _screen(on_screen):
        shown = 0
        while count is None or shown < count:
            if shown and _quit_pressed(keyboard, interval_s):
                return
            _put(draw(), on_screen)
            shown += 1


def _put(page: str, on_screen: bool) -> None:
    if not on_screen:
        sys.stdout.write(page + "\n")
    else:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns] for line in page.splitlines()][: size.lines - 1]
        body = "".join(f"{line}{CLEAR_TO_LINE_END}\n" for line in lines)
        sys.stdout.write(f"{HOME}{body}{CLEAR_TO_SCREEN_END}q quits")
    sys.stdout.flush()


def _quit_pressed(keyboard: int | None, interval_s: float) -> bool:
    """Wait one interval; true when q was pressed in it. Other keys refresh at once."""
    ready, _, _ = select.select([] if keyboard is None else [keyboard], [], [], interval_s)
    if not ready:
        return False
    pressed = os.read(ready[0], KEYS_BYTES_MAX)
    return not pressed or b"q" in pressed.lower()


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Keys one by one, without Enter; None when there is no keyboard."""
    if not sys.stdin or not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _screen(on_screen: bool) -> Iterator[None]:
    if not on_screen:
        yield
        return
    sys.stdout.write(ENTER_SCREEN)
    try:
        yield
    finally:
        sys.stdout.write(LEAVE_SCREEN)
        sys.stdout.flush()
