"""How far something is: a bar that is drawn anew on a terminal, a line now and then elsewhere."""

import shutil
import threading
import time
from typing import TextIO

#: seconds between two drawings on a terminal, and between two lines elsewhere
_DRAWN, _SAID = 0.2, 10.0


class Progress:
    """Counts bytes; threads may do so at once.

    :param what: what is done, such as ``uploading``
    :param total: bytes; 0 when nobody knows
    """

    def __init__(self, out: TextIO, what: str, total: int = 0):
        self._out, self._what, self.total, self._terminal = out, what, total, out.isatty()
        self._done, self._skipped, self._begun = 0, 0, time.monotonic()
        self._told = self._begun
        self._lock = threading.Lock()

    def add(self, count: int, skipped: bool = False) -> None:
        """So many more bytes are done; `skipped`: they were done before, and tell nothing of the rate."""
        with self._lock:
            self._done += count
            self._skipped += count if skipped else 0
            now = time.monotonic()
            if now - self._told >= (_DRAWN if self._terminal else _SAID):
                self._told = now
                self._tell(now)

    def end(self, text: str = "") -> None:
        """It is done; `text` says what there is now."""
        with self._lock:
            if self._terminal:
                self._out.write("\r\033[K")
            self._out.write(f"{text or self._line(time.monotonic())}\n")
            self._out.flush()

    def clear(self) -> None:
        """Take the bar away, for something else that is to be said."""
        if self._terminal:
            self._out.write("\r\033[K")
            self._out.flush()

    def _tell(self, now: float) -> None:
        line = self._line(now)
        if not self._terminal:
            self._out.write(line + "\n")
        else:
            room = shutil.get_terminal_size().columns - len(line) - 4
            if self.total and room >= 10:
                width = min(room, 40)
                full = width * min(self._done, self.total) // self.total
                line = f"{line} [{'#' * full}{' ' * (width - full)}]"
            self._out.write(f"\r\033[K{line}")
        self._out.flush()

    def _line(self, now: float) -> str:
        rate = (self._done - self._skipped) / max(now - self._begun, 0.001)
        parts = [self._what]
        if self.total:
            parts.append(f"{100 * min(self._done, self.total) // self.total:3d} %")
            parts.append(f"{size(self._done)} of {size(self.total)},")
        else:
            parts.append(f"{size(self._done)},")
        parts.append(f"{size(rate)}/s")
        if self.total > self._done and rate > 0:
            left = int((self.total - self._done) / rate)
            parts.append(f"{left // 60}:{left % 60:02d} left")
        return " ".join(parts)


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
