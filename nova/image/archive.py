"""A tar archive of exactly one regular file, read as a stream, and written as one.

Bundles hold their image so.  Everything else that tar can hold is refused: links, directories, devices, a second
member, names with a path in them.  Sparse files stay sparse, in all the forms that GNU tar gives them (its own old one,
and 0.0, 0.1 and 1.0 in extended headers of POSIX.1-2001); the format is that of GNU tar's manual, "Tar Internals".
`tarfile` does not serve: it puts no limit on sparse maps and headers, and gives holes out as zeros.
"""

import errno
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nova import exception

BLOCK = 512
#: what is believed of headers in front of the file, of regions in a sparse map, and of zeros behind the file
MAX_HEADER, MAX_REGIONS, MAX_PADDING = 4 << 20, 1 << 20, 1 << 20

_ZERO = bytes(BLOCK)
_DECIMAL = re.compile(rb"[0-9]{1,18}")


def _bad(reason: str) -> exception.InvalidManifest:
    return exception.InvalidManifest(reason=f"the bundle is no tar archive of one file: {reason}")


class _Stream:
    """Chunks of bytes, taken in other pieces than they come in."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._chunk = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """What is at hand, one byte to `most`; empty at the end."""
        while not self._chunk:
            try:
                self._chunk = memoryview(next(self._chunks))
            except StopIteration:
                return memoryview(b"")
        taken, self._chunk = self._chunk[:most], self._chunk[most:]
        return taken

    def exactly(self, count: int) -> bytes:
        """So many bytes; for few."""
        made = bytearray()
        while len(made) < count:
            taken = self.some(count - len(made))
            if not taken:
                raise _bad("it is cut off")
            made += taken
        return bytes(made)


@dataclass
class _Headers:
    """What extended headers say of the file behind them."""

    values: dict[str, bytes] = field(default_factory=dict)
    map: array = field(default_factory=lambda: array("Q"))  # of version 0.0 and 0.1: offset, length, offset, ...
    name: bytes = b""


def read_file(chunks: Iterable[bytes], size: int) -> Iterator[tuple[int, memoryview]]:
    """The file in an archive: pieces of data with their offsets, ascending; what is between them, and behind the last
    one, is a hole.

    :param size: what the file's size must be, in bytes
    :raises exception.InvalidManifest: it is no archive of exactly one regular file of this size, or it is cut off
    """
    stream = _Stream(chunks)
    header, extended = _find_file(stream)
    left = _number(header[124:136])
    if "size" in extended.values:
        left = _decimal(extended.values["size"])
    padding = -left % BLOCK
    regions, real = extended.map, left
    if header[156:157] == b"S":
        regions, real = _old_map(stream, header), _number(header[483:495])
    elif extended.values.get("GNU.sparse.major") == b"1":
        if extended.values.get("GNU.sparse.minor") != b"0":
            raise _bad("a sparse file of an unknown version")
        regions, taken = _new_map(stream)
        left, real = left - taken, _decimal(extended.values.get("GNU.sparse.realsize", b""))
    elif "GNU.sparse.size" in extended.values:
        real = _decimal(extended.values["GNU.sparse.size"])
    else:
        regions = array("Q", [0, left])
    if real != size:
        raise exception.InvalidManifest(reason="the image's size is not what the manifest says")
    _check_map(regions, left, real)
    for index in range(0, len(regions), 2):
        offset, end = regions[index], regions[index] + regions[index + 1]
        while offset < end:
            data = stream.some(end - offset)
            if not data:
                raise _bad("it is cut off")
            yield offset, data
            offset += len(data)
    _check_end(stream, padding)


def _find_file(stream: _Stream) -> tuple[bytes, _Headers]:
    """The header of the file, and what stands before it."""
    extended, read = _Headers(), 0
    while True:
        header = stream.exactly(BLOCK)
        if header == _ZERO:
            raise _bad("it must hold exactly one regular file, and it is empty")
        _check_sum(header)
        kind = header[156:157]
        if kind in b"xgLK":
            length = _number(header[124:136])
            read += BLOCK + length
            if read > MAX_HEADER:
                raise _bad("its headers are too long")
            body = stream.exactly(length)
            stream.exactly(-length % BLOCK)
            if kind in b"xg":
                _read_extended(body, extended)
            elif kind == b"L":
                extended.name = body.rstrip(b"\0")
            continue
        if kind not in (b"0", b"\0", b"7", b"S"):
            raise _bad("it must hold exactly one regular file, and no links, directories or devices")
        name = header[:100].rstrip(b"\0")
        if header[257:263] == b"ustar\0" and header[345:500].rstrip(b"\0"):
            name = header[345:500].rstrip(b"\0") + b"/" + name
        _check_name(extended.values.get("GNU.sparse.name") or extended.values.get("path") or extended.name or name)
        return header, extended


def _check_sum(header: bytes) -> None:
    """The sum of a header's bytes, its own field taken as blanks; some old tars took the bytes as signed."""
    bytes_ = header[:148] + b" " * 8 + header[156:]
    sum_ = sum(bytes_)
    if _number(header[148:156]) not in (sum_, sum_ - 256 * sum(byte > 127 for byte in bytes_)):
        raise _bad("a header's sum is wrong")


def _check_name(name: bytes) -> None:
    plain = name.removeprefix(b"./")
    if not plain or b"/" in plain or b"\0" in plain or plain in (b".", b".."):
        raise _bad("the file's name must not have a path in it")


def _number(digits: bytes) -> int:
    """A number in a header: octal digits, or GNU's binary form."""
    text = digits.strip(b" \0")
    if digits[0] == 0x80:
        number = int.from_bytes(digits[1:], "big")
    elif re.fullmatch(rb"[0-7]*", text):
        number = int(text or b"0", 8)
    else:
        raise _bad("a number in a header is none")
    if number >> 60:
        raise _bad("a number in a header is too large")
    return number


def _decimal(digits: bytes) -> int:
    if not _DECIMAL.fullmatch(digits):
        raise _bad("a number in an extended header is none")
    return int(digits)


def _read_extended(body: bytes, extended: _Headers) -> None:
    """Records of ``<length> <key>=<value>\\n``."""
    position = 0
    while position < len(body):
        blank = body.find(b" ", position, position + 20)
        length = _decimal(body[position:blank]) if blank > 0 else 0
        record = body[blank + 1:position + length]
        if length < 5 or position + length > len(body) or not record.endswith(b"\n") or b"=" not in record:
            raise _bad("an extended header is not well-formed")
        key, value = record[:-1].split(b"=", 1)
        position += length
        if key == b"GNU.sparse.map":
            extended.map = array("Q", (_decimal(number) for number in value.split(b","))) if value else array("Q")
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if len(extended.map) % 2 != (key == b"GNU.sparse.numbytes"):
                raise _bad("a sparse map is not well-formed")
            extended.map.append(_decimal(value))
        else:
            extended.values[key.decode(errors="replace")] = value


def _old_map(stream: _Stream, header: bytes) -> array:
    """The map of GNU's old sparse file: four regions in the header, 21 in each block behind it."""
    regions = array("Q")

    def add(fields: bytes) -> None:
        for position in range(0, len(fields), 24):
            if not fields[position + 12:position + 24].strip(b"\0 "):
                return
            regions.extend((_number(fields[position:position + 12]), _number(fields[position + 12:position + 24])))
    add(header[386:482])
    more = header[482]
    while more:
        block = stream.exactly(BLOCK)
        add(block[:504])
        more = block[504]
        if len(regions) > 2 * MAX_REGIONS:
            raise _bad("its sparse map is too long")
    return regions


def _new_map(stream: _Stream) -> tuple[array, int]:
    """The map of version 1.0: decimal numbers, one a line, in whole blocks before the data; and its length in bytes."""
    regions, wanted, rest, taken = array("Q"), 1, b"", 0
    while len(regions) < wanted:
        *lines, rest = (rest + stream.exactly(BLOCK)).split(b"\n")
        taken += BLOCK
        for line in lines:
            if len(regions) == wanted:
                break
            regions.append(_decimal(line))
            if len(regions) == 1:
                if regions[0] > MAX_REGIONS:
                    raise _bad("its sparse map is too long")
                wanted = 1 + 2 * regions[0]
        if len(rest) > BLOCK:
            raise _bad("a sparse map is not well-formed")
    return regions[1:], taken


def _check_map(regions: array, stored: int, size: int) -> None:
    """The regions must ascend, lie in the file, and hold what is stored."""
    position = total = 0
    if len(regions) % 2:
        raise _bad("a sparse map is not well-formed")
    for index in range(0, len(regions), 2):
        offset, length = regions[index], regions[index + 1]
        if offset < position or offset + length > size:
            raise _bad("a sparse map does not fit its file")
        position, total = offset + length, total + length
    if total != stored:
        raise _bad("a sparse map does not fit what is stored")


def _check_end(stream: _Stream, padding: int) -> None:
    """Behind the file there are zeros and nothing else: at least one block."""
    stream.exactly(padding)
    seen = 0
    while data := stream.some(1 << 16):
        seen += len(data)
        if bytes(data).strip(b"\0"):
            raise _bad("it must hold exactly one regular file, and there is something behind it")
        if seen > MAX_PADDING:
            raise _bad("there is too much behind the file")
    if seen < BLOCK:
        raise _bad("it is cut off")


# -- writing ----------------------------------------------------------------------------------------------------------

def write_file(descriptor: int, name: str, size: int, chunk: int = 1 << 18) -> Iterator[bytes]:
    """An archive of a file, in pieces; its holes are left out, as ``tar -S --format=posix`` does.

    :param descriptor: an open file, which must not change meanwhile
    :raises exception.NovaError: it does
    """
    regions = list(data_regions(descriptor, size))
    stored = sum(length for _, length in regions)
    if stored == size:
        yield _header(name, size)
    else:
        numbers = b"%d\n" % len(regions) + b"".join(b"%d\n%d\n" % region for region in regions)
        numbers += bytes(-len(numbers) % BLOCK)
        pairs = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name,
                 "GNU.sparse.realsize": str(size), "size": str(stored + len(numbers))}
        body = b"".join(_record(key, value) for key, value in pairs.items())
        yield _header("pax", len(body), b"x") + body + bytes(-len(body) % BLOCK)
        yield _header(f"GNUSparseFile.0/{name}", stored + len(numbers)) + numbers
        stored += len(numbers)
    for offset, length in regions:
        while length:
            data = os.pread(descriptor, min(length, chunk), offset)
            if not data:
                raise exception.NovaError(f"{name} became shorter while it was read")
            yield data
            offset, length = offset + len(data), length - len(data)
    yield bytes(-stored % BLOCK + 2 * BLOCK)


def data_regions(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the data of a file is, as the file system knows it: offsets and lengths in bytes."""
    position = 0
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            yield size, 0  # nothing but a hole up to the end; tar marks it so
            return
        position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        if begin < position:
            yield begin, position - begin


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    number = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    head = (name.encode()[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + number + b"%011o\0" % 0
            + b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247))
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body
