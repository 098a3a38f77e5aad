"""Requests taken apart as they arrive: heads, bodies, and what is none.

Pure: bytes in, events out.  Rules: RFC 9112, read strictly, because what two servers in a row read differently is a way
to smuggle a request past the first: lines end in CR LF, nothing is folded, a body has exactly one length, and of
transfer codings only ``chunked`` is known.  Header names and values are text of which each character is a byte.
"""

import enum
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tornado import httputil

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_START_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e\x80-\xff]++) HTTP/([0-9])\.([0-9])")
_FIELDS = re.compile(rf"(?:{_TOKEN}:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
#: bytes that the line before a chunk may have
_MAX_CHUNK_LINE = 4096
#: bytes of line ends that may come before a head: some clients send one after a body
_MAX_BLANK = 64


class Refused(Exception):
    """The request cannot be read, or will not be.  :param status: the answer's"""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Headers(httputil.HTTPHeaders):
    """The headers of a request, quickly made and looked up.

    `pairs` are names and values as they came; `joined` are values by the name in lower case, repeated ones joined by
    commas.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()):
        self.pairs: list[tuple[str, str]] = []
        self.joined: dict[str, str] = {}
        for name, value in pairs:
            self.pairs.append((name, value))
            key = _lower(name)
            self.joined[key] = f"{self.joined[key]},{value}" if key in self.joined else value

    def __getitem__(self, name: str) -> str:
        return self.joined[_lower(name)]

    def get(self, name: str, default: Any = None) -> Any:
        return self.joined.get(_lower(name), default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _lower(name) in self.joined

    def __iter__(self) -> Iterator[str]:
        return map(_capitalized, self.joined)

    def __len__(self) -> int:
        return len(self.joined)

    def add(self, name: str, value: str, *, _chars_are_bytes: bool = True) -> None:
        self.__init__([*self.pairs, (name, value)])  # type: ignore[misc]

    def __setitem__(self, name: str, value: str) -> None:
        self.__init__([*(p for p in self.pairs if _lower(p[0]) != _lower(name)), (name, value)])  # type: ignore[misc]

    def __delitem__(self, name: str) -> None:
        del self.joined[_lower(name)]
        self.pairs = [pair for pair in self.pairs if _lower(pair[0]) != _lower(name)]

    def get_list(self, name: str) -> list[str]:
        return [value for other, value in self.pairs if _lower(other) == _lower(name)]

    def get_all(self) -> Iterator[tuple[str, str]]:
        return ((_capitalized(name), value) for name, value in self.pairs)

    def copy(self) -> "Headers":
        return Headers(self.pairs)

    __copy__ = copy


@functools.lru_cache(1000)
def _lower(name: str) -> str:
    return name.lower()


@functools.lru_cache(1000)
def _capitalized(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


class Head(NamedTuple):
    """What comes before a request's body.

    `target` is as on the wire; `length` is the body's in bytes, None if it comes in chunks; `keeps_alive` says that the
    client expects to send another request, `waits` that it waits for leave to send the body.
    """

    method: str
    target: str
    version: str
    headers: Headers
    length: int | None
    keeps_alive: bool
    waits: bool


class End:
    """A request is over."""


END = End()
#: a head, a piece of a body, or the end of a request
Event = Head | bytes | End


def read_head(text: str) -> Head:
    """Read a request's first line and headers.

    :param text: each line with its CR LF, without the empty line behind them
    :raises Refused:
    """
    first, _, rest = text.partition("\r\n")
    line = _START_LINE.fullmatch(first)
    if line is None or not _FIELDS.fullmatch(rest):
        raise Refused(400, "no HTTP request")
    method, target, major, minor = line.groups()
    if major != "1" or minor not in "01":
        raise Refused(505, f"version {major}.{minor}")
    pairs = []
    for field in rest.split("\r\n"):
        name, colon, value = field.partition(":")
        if colon:
            pairs.append((name, value.strip(" \t")))
    headers = Headers(pairs)
    joined = headers.joined
    host = joined.get("host", "" if minor == "0" else None)
    if host is None or not _HOST.fullmatch(host):  # several are joined by a comma
        raise Refused(400, "no Host, or several")
    connection = joined.get("connection", "").lower()
    keeps_alive = "close" not in connection if minor == "1" else "keep-alive" in connection
    waits = minor == "1" and joined.get("expect", "").lower() == "100-continue"
    return Head(method, target, f"HTTP/1.{minor}", headers, _length(joined, minor == "1"), keeps_alive, waits)


def _length(headers: dict[str, str], may_be_chunked: bool) -> int | None:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or not may_be_chunked:
            raise Refused(400, "Transfer-Encoding together with Content-Length, or in HTTP/1.0")
        if coding.lower() != "chunked":
            raise Refused(501, f"Transfer-Encoding {coding!r}")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise Refused(400, f"Content-Length {length!r}")
    return int(length)


class _State(enum.Enum):
    """What comes next."""

    HEAD = enum.auto()
    BODY = enum.auto()  # of known length
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    CHUNK_END = enum.auto()
    TRAILER = enum.auto()


class Reader:
    """Takes the bytes of a connection apart.

    :param max_head: bytes that a head, or what follows the last chunk, may have
    """

    def __init__(self, max_head: int):
        self._max_head = max_head
        self._buffer = bytearray()  # what is not read yet
        self._state = _State.HEAD
        self._left = 0  # bytes of a body of known length, or of a chunk
        self._searched = self._blank = self._trailers = 0

    @property
    def is_between(self) -> bool:
        """No request has begun that is not over."""
        return self._state is _State.HEAD and not self._buffer

    def feed(self, data: memoryview) -> Iterator[Event]:
        """What has arrived, in order: of each request its head, pieces of its body, its end.

        :raises Refused: (after the events before it) this cannot be understood, nor what comes behind it
        """
        pieces: list[bytes] = []
        if self._left and not self._buffer:  # most of a large body goes this way, copied once
            pieces.append(bytes(data[:self._left]))
            data = data[len(pieces[0]):]
            self._left -= len(pieces[0])
        self._buffer += data
        while True:
            event = self._next()
            if isinstance(event, bytes):
                if event:
                    pieces.append(event)
                continue
            if pieces:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces = []
            if event is None:
                return
            yield event

    def _next(self) -> Event | None:
        """Read on: an event, b"" where what was read is none, None to wait for more."""
        match self._state:
            case _State.HEAD:
                return self._head()
            case _State.BODY | _State.CHUNK:
                return self._data()
            case _State.CHUNK_SIZE:
                return self._chunk_size()
            case _State.CHUNK_END:
                return self._chunk_end()
            case _State.TRAILER:
                return self._trailer()

    def _head(self) -> Head | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._blank += 2
            if self._blank > _MAX_BLANK:
                raise Refused(400, "empty lines")
        end = buffer.find(b"\r\n\r\n", self._searched)
        if end > self._max_head or (end < 0 and len(buffer) > self._max_head + 3):
            raise Refused(431, "the headers are too large")
        if end < 0:
            self._searched = max(len(buffer) - 3, 0)
            return None
        head = read_head(buffer[:end + 2].decode("latin-1"))
        del buffer[:end + 4]
        self._searched = self._blank = 0
        self._left = head.length or 0
        self._state = _State.CHUNK_SIZE if head.length is None else _State.BODY
        return head

    def _data(self) -> Event | None:
        if not self._left:
            if self._state is _State.BODY:
                self._state = _State.HEAD
                return END
            self._state = _State.CHUNK_END
            return b""
        if not self._buffer:
            return None
        piece = bytes(memoryview(self._buffer)[:self._left])
        del self._buffer[:len(piece)]
        self._left -= len(piece)
        return piece

    def _chunk_size(self) -> bytes | None:
        line = self._line(_MAX_CHUNK_LINE)
        if line is None:
            return None
        size = _CHUNK.fullmatch(line)
        if size is None:
            raise Refused(400, "the size of a chunk")
        self._left = int(size[1], 16)
        self._state = _State.CHUNK if self._left else _State.TRAILER
        self._trailers = 0
        return b""

    def _chunk_end(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if not self._buffer.startswith(b"\r\n"):
            raise Refused(400, "a chunk is longer than it says")
        del self._buffer[:2]
        self._state = _State.CHUNK_SIZE
        return b""

    def _trailer(self) -> Event | None:
        """What follows the last chunk is checked, and means nothing."""
        line = self._line(self._max_head - self._trailers)
        if line is None:
            return None
        if not line:
            self._state = _State.HEAD
            return END
        if not _FIELDS.fullmatch(line.decode("latin-1") + "\r\n"):
            raise Refused(400, "what follows the last chunk")
        self._trailers += len(line) + 2
        return b""

    def _line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > limit or (end < 0 and len(self._buffer) > limit + 1):
            raise Refused(400, "a line that does not end")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 2]
        return line
