"""Reading multipart/form-data while it arrives: a parser without input or output.

Rules: RFC 7578 and RFC 2046 section 5.1, and of the Amazon S3 API reference "POST Object": the part named ``file`` is
the file whether other parts have a file name or not, the fields come before it, and what follows it means nothing.  A
boundary may be cut anywhere by the pieces in which the body comes.  Memory holds the fields, which are limited, and of
the file no more than the piece that is being looked at.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from nova.objectstore import errors

#: bytes that may come before the file, S3's limit
MAX_FIELDS = 20 << 10
_MAX_BOUNDARY = 200
#: white space that may stand between a boundary and the end of its line
_MAX_PADDING = 64
_END_OF_LINE = re.compile(rb"--|[ \t]*\r\n")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', re.DOTALL)


@dataclass(frozen=True)
class Field:
    """A field of the form."""

    name: str
    value: str


@dataclass(frozen=True)
class FileBegins:
    """The file comes next, in bytes; `filename` is what the browser calls it, without its directories."""

    filename: str


class FileEnds:
    """The file is over."""


Event = Field | FileBegins | FileEnds | bytes


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names.

    :raises PreconditionFailed: it is not multipart/form-data
    :raises MalformedPOSTRequest: it names no boundary
    """
    kind, parameters = _parameters(content_type)
    if kind != "multipart/form-data":
        raise errors.PreconditionFailed("Bucket POST must be of the enclosure-type multipart/form-data")
    boundary = parameters.get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise errors.MalformedPOSTRequest()
    return boundary


class Parser:
    """Takes the body in pieces of any size and gives what is in it.

    :param boundary: as the Content-Type header names it
    """

    def __init__(self, boundary: bytes):
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # so that the first boundary looks like the others
        self._step: Callable[[], Event | None] = self._preamble
        self._before_file = -2
        self._is_over = False
        self._name = ""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take a piece.

        :raises MalformedPOSTRequest: it is no form
        :raises MaxPostPreDataLengthExceeded: more comes before the file than may
        """
        if self._is_over:
            return
        self._buffer += data
        while (event := self._step()) is not None:
            yield event
            if self._is_over:
                self._buffer = b""
                return

    def finish(self) -> None:
        """The body is over; :raises MalformedPOSTRequest: the form is not, or it has no file"""
        if not self._is_over:
            raise errors.MalformedPOSTRequest()

    # Each step takes what it can from the buffer: an event, b"" for nothing yet to tell but more to do, or None for
    # more data needed.

    def _preamble(self) -> Event | None:
        _, end, is_last = self._scan()
        if not end:
            self._count(len(self._buffer))
            return None
        self._enter(end, is_last)
        return b""

    def _headers(self) -> Event | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            self._count(len(self._buffer))
            return None
        self._count(end + 4)
        name, filename = _disposition(self._buffer[:end])
        self._take(end + 4)
        if name.lower() == "file":
            self._step = self._file
            return FileBegins(filename)
        self._name = name
        self._step = self._value
        return b""

    def _value(self) -> Event | None:
        size, end, is_last = self._scan()
        if not end:
            self._count(len(self._buffer))
            return None
        self._count(end)
        try:
            value = self._buffer[:size].decode()
        except UnicodeDecodeError:
            raise errors.MalformedPOSTRequest() from None
        self._enter(end, is_last)
        return Field(self._name, value)

    def _file(self) -> Event | None:
        size, end, _ = self._scan()
        if size:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            return data
        if not end:
            return None
        self._is_over = True
        return FileEnds()

    def _partial(self) -> int:
        """How many bytes at the end of the buffer may be the beginning of a delimiter."""
        start = self._buffer.find(b"\r", max(0, len(self._buffer) - len(self._delimiter) + 1))
        while start >= 0:
            if self._delimiter.startswith(self._buffer[start:]):
                return len(self._buffer) - start
            start = self._buffer.find(b"\r", start + 1)
        return 0

    def _scan(self) -> tuple[int, int, bool]:
        """How many bytes of the buffer are data for sure, where the delimiter behind them ends (0 if none is there, or
        not all of it), and whether it is the last.  What only begins like a delimiter is data."""
        start = self._buffer.find(self._delimiter)
        while start >= 0:
            after = start + len(self._delimiter)
            found = _END_OF_LINE.match(self._buffer, after, after + _MAX_PADDING)
            if found:
                return start, found.end(), found[0] == b"--"
            if _may_become_end(self._buffer[after:after + _MAX_PADDING]):
                return start, 0, False
            start = self._buffer.find(self._delimiter, start + 1)
        return len(self._buffer) - self._partial(), 0, False

    def _enter(self, end: int, is_last: bool) -> None:
        """Go on behind a delimiter, with the headers of the next part."""
        self._count(end)
        if is_last:
            raise errors.InvalidArgument(reason="POST requires exactly one file upload per request.")
        self._take(end)
        self._step = self._headers

    def _take(self, count: int) -> None:
        self._before_file += count
        self._buffer = self._buffer[count:]
        self._count(0)

    def _count(self, more: int) -> None:
        if self._before_file + more > MAX_FIELDS:
            raise errors.MaxPostPreDataLengthExceeded()


def _may_become_end(rest: bytes) -> bool:
    """Whether more data could make this the rest of a delimiter's line."""
    if len(rest) >= _MAX_PADDING:
        return False
    return rest in (b"", b"-") or rest.strip(b" \t") in (b"", b"\r")


def _disposition(headers: bytes) -> tuple[str, str]:
    """The name of a part and its file name."""
    for line in headers.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            try:
                kind, parameters = _parameters(value.decode())
            except UnicodeDecodeError:
                break
            if kind == "form-data" and parameters.get("name"):
                return parameters["name"], _filename(parameters)
    raise errors.MalformedPOSTRequest()


def _filename(parameters: dict[str, str]) -> str:
    """The last part of the name: some browsers send the whole path."""
    name = parameters.get("filename", "")
    extended = parameters.get("filename*", "")
    if extended and not name:  # RFC 8187; RFC 7578 would not have it in a form, but clients do
        charset, _, rest = extended.partition("'")
        if charset.lower() == "utf-8":
            name = unquote(rest.partition("'")[2])
    return re.split(r"[/\\]", name)[-1]


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    """A header's value and its parameters, names in lower case."""
    kind, _, _ = value.partition(";")
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value, len(kind)):
        text = match[3] if match[2] is None else match[2].replace('\\"', '"')
        found.setdefault(match[1].lower(), text)
    return kind.strip().lower(), found
