"""A target that is what comes over a connection."""

from tornado import httputil

from nova.http1.reading import End, Head, Reader, Refused
from tests.fuzz.bodies import pieces
from tests.fuzz.run import Target

_MAX_HEAD = 2000


def _read(cut: list[bytes]) -> tuple[list, int]:
    """What a reader makes of it, the data of each body put together, and the status that it is refused with, or 0."""
    reader, found = Reader(_MAX_HEAD), []
    for piece in cut:
        try:
            for event in reader.feed(memoryview(piece)):
                if isinstance(event, bytes) and isinstance(found[-1], bytes):
                    found[-1] += event
                else:
                    found.append(event)
        except Refused as refused:
            return found, refused.status
    return found, 0


def _seen(events: list) -> list:
    return [(e.method, e.target, e.version, e.headers.pairs, e.length) if isinstance(e, Head) else e for e in events]


def _check(data: bytes) -> str:
    """It is read in the same way however it is cut, and what Nova takes for a head, Tornado takes for the same."""
    events, status = _read([data])
    again, status_again = _read(list(pieces(data)))
    if not status and not status_again:  # what is refused is refused sooner or later
        assert _seen(events) == _seen(again), "another result when it is cut in another way"
    assert bool(status) == bool(status_again), "refused only when it is cut in another way"
    head = None
    for event in events:
        if isinstance(event, Head):
            head = event
            text = "".join(f"{name}: {value}\r\n" for name, value in event.headers.pairs)
            assert httputil.HTTPHeaders.parse(text) == httputil.HTTPHeaders(event.headers), "other headers than Tornado"
            httputil.parse_request_start_line(f"{event.method} {event.target} {event.version}")
        elif isinstance(event, bytes):
            assert head and (head.length is None or len(event) <= head.length), "more than the length says"
    return f"refused: {status}" if status else "whole" if events and isinstance(events[-1], End) else "not at its end"


def requests() -> Target:
    """Requests on a connection, one after the other."""
    host = b"Host: a.b:80\r\n"
    return Target(_check, (
        b"GET /a%20b?c=d HTTP/1.1\r\n" + host + b"x-amz-date: 20260101T000000Z\r\nA:\r\nB:  c \t\r\n\r\n",
        b"PUT / HTTP/1.1\r\n" + host + b"Content-Length: 5\r\n\r\nhelloGET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;a=b\r\nhello\r\n"
        b"10\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\nHEAD /x HTTP/1.1\r\n" + host + b"\r\n",
        b"\r\nDELETE /\xc3\xbc HTTP/1.1\r\n" + host + b"Connection: close\r\nX: \xfc\r\nX: y\r\n\r\n"), (
        b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
        host, b"\n", b"\r", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\x00", b"0\r\n\r\n", b"0000000000000005\r\n",
        b"5 \r\n", b"-1\r\n", b"0x5\r\n", b"A" * 3000, b" HTTP/1.1\r\n", b" HTTP/1.2\r\n", b" HTTP/2.0\r\n",
        b";" * 5000))
