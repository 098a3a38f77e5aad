"""Signs of progress on standard error about what takes long: on a terminal one line that changes."""

import sys
import time

#: seconds before the first sign of progress; between two of them on a terminal, and elsewhere
_PATIENCE, _OFTEN, _SELDOM = 2.0, 0.5, 30.0


class Line:
    """A line that changes, or on no terminal a line now and then."""

    def __init__(self) -> None:
        self._begun, self._terminal = time.monotonic(), sys.stderr.isatty()
        self._next = self._begun + _PATIENCE
        self._shown = False

    def due(self) -> float:
        """How many seconds it has taken, if something is to be shown; else 0."""
        now = time.monotonic()
        if now < self._next:
            return 0.0
        self._next = now + (_OFTEN if self._terminal else _SELDOM)
        return now - self._begun

    def show(self, text: str) -> None:
        """Show it now."""
        print(f"\r{text}\033[K" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr,
              flush=True)
        self._shown = True

    def end(self) -> None:
        """Leave the line."""
        if self._shown and self._terminal:
            print(file=sys.stderr)
        self._shown = False


class Transfer(Line):
    """Bytes on their way.

    :param what: the word for it
    """

    def __init__(self, what: str):
        super().__init__()
        self._what = what

    def __call__(self, done: int, total: int) -> None:
        """:param total: 0 where nobody knows"""
        seconds = self.due()
        if not seconds:
            return
        rate = done / seconds
        text = f"{self._what}: {mib(done)}" + (f" of {mib(total)}" if total else "") + f", {mib(rate)}/s"
        if total and rate:
            left = max(0, total - done) / rate
            text += f", {left:.0f} s left" if left < 120 else f", {left / 60:.0f} min left"
        self.show(text)


def mib(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 2**20:.1f} MiB" if size < 1 << 30 else f"{size / 2**30:.2f} GiB"
