"""Targets that are bodies in pieces: aws-chunked ones, and forms."""

import hashlib
import hmac
import zlib
from collections.abc import Iterator

from nova import exception
from nova.auth.claims import Claim, SignedRequest
from nova.auth.signer import EMPTY_SHA256, ChunkVerifier, signing_key
from nova.objectstore.chunked import Decoder
from nova.objectstore.forms import FileBegins, FileEnds, Parser
from tests.fuzz.run import Target

_SECRET, _SCOPE = "secret", "20260102/us-east-1/s3/aws4_request"
_CLAIM = Claim("key", None, "v4-header", "s3", SignedRequest("PUT", "/b/k", "", ()), "f" * 64, scope=_SCOPE)
_CHECKSUM = "x-amz-checksum-crc32"
_MODES = (b"unsigned", b"signed", b"trailer", b"signed-trailer")


def pieces(data: bytes) -> Iterator[bytes]:
    """The data in pieces; the same data are always cut in the same way."""
    number = zlib.crc32(data)
    largest = len(data) if number & 15 or len(data) > 2000 else 2
    at = 0
    while at < len(data):
        number = (number * 1_103_515_245 + 12_345) & 0x7fffffff
        size = 1 + (number >> 8) % largest
        yield data[at:at + size]
        at += size


def _frame(mode: bytes, chunks: list[bytes]) -> bytes:
    """A body with these chunks, the way a client makes it."""
    signed, trailer = mode.startswith(b"signed"), mode.endswith(b"trailer")
    key, previous, head = signing_key(_SECRET, _SCOPE), _CLAIM.signature, f"{_CLAIM.timestamp}\n{_SCOPE}\n"
    parts = []
    for chunk in [*chunks, b""]:
        line = b"%x" % len(chunk)
        if signed:
            text = (f"AWS4-HMAC-SHA256-PAYLOAD\n{head}{previous}\n{EMPTY_SHA256}\n{hashlib.sha256(chunk).hexdigest()}")
            previous = hmac.digest(key, text.encode(), "sha256").hex()
            line += b";chunk-signature=" + previous.encode()
        parts.append(line + b"\r\n" + (chunk + b"\r\n" if chunk else b""))
    if trailer:
        header = f"{_CHECKSUM}:AAAAAA=="
        parts.append(header.encode() + b"\r\n")
        if signed:
            digest = hashlib.sha256(header.encode() + b"\n").hexdigest()
            text = f"AWS4-HMAC-SHA256-TRAILER\n{head}{previous}\n{digest}"
            parts.append(b"x-amz-trailer-signature:" + hmac.digest(key, text.encode(), "sha256").hex().encode()
                         + b"\r\n")
    return b"".join((*parts, b"\r\n"))


def _decoder(mode: bytes, length: int) -> Decoder:
    verifier = ChunkVerifier(_CLAIM, _SECRET) if mode.startswith(b"signed") else None
    return Decoder(length, frozenset([_CHECKSUM] if mode.endswith(b"trailer") else []), verifier)


def _decode(mode: bytes, length: int, pieces: Iterator[bytes]) -> tuple[bytes, exception.ClientError | None]:
    """What comes out of the decoder, and the error that ends it."""
    decoder, data = _decoder(mode, length), []
    try:
        for piece in pieces:
            data += decoder.feed(piece)
        decoder.finish()
    except exception.ClientError as error:
        return b"".join(data), error
    return b"".join(data), None


def _check_chunks(data: bytes) -> str:
    """A body, after a line with its mode and the length of its data: what comes out does not depend on how it is cut,
    is not longer than announced, and is all in the body."""
    head, _, body = data.partition(b"\n")
    mode, _, announced = head.partition(b" ")
    mode = mode if mode in _MODES else _MODES[zlib.crc32(mode) % 4]
    length = int(announced) if announced.isdigit() and len(announced) < 20 else 10
    whole, error = _decode(mode, length, iter((body,)))
    cut, cut_error = _decode(mode, length, pieces(body))
    assert whole == cut and type(error) is type(cut_error), "another result when it is cut in another way"
    assert len(whole) <= length, "more than announced"
    if error:
        raise error
    assert len(whole) == length, "less than announced, and no error"
    return "decoded"


def chunks() -> Target:
    """Bodies that are more or less aws-chunked."""
    seeds = []
    for mode in _MODES:
        for texts in ([], [b"hello"], [b"hello", b"world"], [b"0\r\n\r\n", b"5\r\n"], [b"x" * 300, b"\n" * 17]):
            seeds.append(mode + b" %d\n" % len(b"".join(texts)) + _frame(mode, texts))
    return Target(_check_chunks, seeds, (
        b"0\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"5;chunk-signature=", b"f" * 64, b"ffffffffffffffff", b"+5", b"5 ",
        b"0;chunk-signature=" + b"0" * 64, b";chunk-signature", b"00000005", b"0x5", b"a" * 5000,
        _CHECKSUM.encode() + b":AAAAAA==\r\n", b"x-amz-trailer-signature:", b"x-amz-checksum-sha1:x\r\n", b"\r\n\r\n"))


def _check_frames(data: bytes) -> str:
    """Data that are put into chunks of some sizes come out as they were, however the frame is cut."""
    mode = _MODES[zlib.crc32(data) % 4]
    framed = _frame(mode, list(pieces(data[::-1]))) if len(data) < 4096 else _frame(mode, [data[:5000], data[5000:]])
    expected = data[::-1] if len(data) < 4096 else data
    decoded, error = _decode(mode, len(data), pieces(framed))
    assert error is None, f"refused: {error}"
    assert decoded == expected, "other data than were put in"
    return mode.decode()


def frames() -> Target:
    """Well-formed chunked bodies, whose data look like frames."""
    return Target(_check_frames, (b"", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n",
                                  b"5;chunk-signature=%s\r\nhello\r\n" % (b"f" * 64)))


# -- forms ------------------------------------------------------------------------------------------------------------

_BOUNDARY = b"AaB03x"


def _part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--AaB03x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def _parse(pieces: Iterator[bytes]) -> tuple[list, bytes, exception.ClientError | None]:
    """The events but for the file's data, the data, and the error that ends it."""
    parser, events, data = Parser(_BOUNDARY), [], []
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                if isinstance(event, bytes):
                    data.append(event)
                else:
                    events.append("file ends" if isinstance(event, FileEnds) else event)
        parser.finish()
    except exception.ClientError as error:
        return events, b"".join(data), error
    return events, b"".join(data), None


def _check_forms(data: bytes) -> str:
    """A form is read in the same way however it is cut, and a file's data never contain the boundary."""
    events, file, error = _parse(iter((data,)))
    again = _parse(pieces(data))
    assert (events, type(error)) == (again[0], type(again[2])), "another result when it is cut in another way"
    assert file == again[1] or error, "other data when it is cut in another way"
    assert not any(b"\r\n--" + _BOUNDARY + end in file for end in (b"--", b"\r\n")), "a boundary in the file"
    if error:
        raise error
    assert any(isinstance(event, FileBegins) for event in events) and events[-1] == "file ends", "no file, no error"
    return "read"


def forms() -> Target:
    """multipart/form-data."""
    end = b"--AaB03x--\r\n"
    seeds = (
        _part("key", b"a/${filename}") + _part("file", b"data\r\n--AaB0\r\ndata", '; filename="C:\\a\\b.txt"') + end,
        _part("policy", b"eyJ9") + _part("success_action_status", b"201") + _part("file", b"\r\n\r\n--AaB03") + end,
        b"preamble\r\n" + _part("Key", "ä".encode()) + _part("file", b"x" * 500) + _part("submit", b"Upload") + end,
        _part("key", b"k") + b"--AaB03x \t\r\ncontent-disposition:form-data;name=file;filename*=utf-8''%e2%82%ac\r\n"
        b"Content-Type: text/plain\r\n\r\nabc\r\n" + end)
    return Target(_check_forms, seeds, (
        b"--AaB03x", b"\r\n--AaB03x", b"--AaB03x--", b"--AaB03x\r\n", b"\r\n--AaB03x \t ", b"\r\n--AaB03x-",
        b"form-data",
        b'; name="', b"; name=file", b"name*=", b"filename*=", b"Content-Disposition:", b"\r\n\r\n", b'\\"', b" " * 64))
