"""Requests taken apart: heads, bodies, and what is refused."""

import pytest

from nova.http1.reading import END, Head, Headers, Reader, Refused, read_head

HOST = "Host: x\r\n"


def read(data: bytes, size: int = 1 << 20) -> list:
    """The events of some bytes that come `size` at a time, pieces of a body put together."""
    reader, events = Reader(1000), []
    for start in range(0, len(data), size):
        for event in reader.feed(memoryview(data[start:start + size])):
            if isinstance(event, bytes) and isinstance(events[-1], bytes):
                events[-1] += event
            else:
                events.append(event)
    return events


def bodies(events: list) -> list:
    return [event for event in events if isinstance(event, bytes)]


def refused(data: bytes) -> int:
    with pytest.raises(Refused) as error:
        read(data)
    return error.value.status


def test_a_head():
    head = read_head("PUT /a%20b?c HTTP/1.1\r\nhost: x:1\r\nx-amz-meta-a: 1\r\nX-Amz-Meta-A:  2 \t\r\n"
                     "Content-length: 5\r\nEmpty:\r\nLatin: \xfc\r\n")
    assert (head.method, head.target, head.version, head.length) == ("PUT", "/a%20b?c", "HTTP/1.1", 5)
    assert head.headers["X-AMZ-Meta-a"] == "1,2" and head.headers.get_list("x-amz-meta-a") == ["1", "2"]
    assert head.headers.get("Empty") == "" and head.headers["latin"] == "\xfc"
    assert list(head.headers.get_all())[:2] == [("Host", "x:1"), ("X-Amz-Meta-A", "1")]
    assert "nothing" not in head.headers and head.headers.get("nothing", "else") == "else"


def test_headers_can_be_changed_as_tornados_can():
    headers = Headers([("a", "1"), ("B", "2"), ("A", "3")])
    headers["b"] = "4"
    headers.add("c", "5")
    del headers["A"]
    assert dict(headers) == {"B": "4", "C": "5"} and len(headers) == 2
    assert headers.copy() == headers and Headers(headers.pairs).pairs == [("b", "4"), ("c", "5")]


@pytest.mark.parametrize("line, connection, keeps", [
    ("GET / HTTP/1.1", "", True), ("GET / HTTP/1.1", "close", False), ("GET / HTTP/1.1", "Keep-Alive, Close", False),
    ("GET / HTTP/1.0", "", False), ("GET / HTTP/1.0", "Keep-Alive", True)])
def test_who_expects_to_send_more(line, connection, keeps):
    head = read_head(f"{line}\r\n{HOST}" + (f"Connection: {connection}\r\n" if connection else ""))
    assert head.keeps_alive is keeps


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_requests_are_the_same_however_they_come(size):
    data = (b"\r\nPUT /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world"
            b"PUT /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n006 \r\n\r\n0\r\n\r\r\n"
            b"0\r\nTrailer: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n")
    events = read(data, size)
    assert [event.target for event in events if isinstance(event, Head)] == ["/1", "/2", "/3"]
    assert bodies(events) == [b"hello world", b"hello\r\n0\r\n\r"]
    assert events.count(END) == 3 and events[-1] is END


@pytest.mark.parametrize("head, status", [
    ("GET / HTTP/1.1\r\n", 400), ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: x,y\r\n", 400), ("GET / HTTP/1.1\r\nHost: x y\r\n", 400),
    (f"GET / HTTP/1.2\r\n{HOST}", 505), (f"GET / HTTP/2.0\r\n{HOST}", 505), (f"GET /\r\n{HOST}", 400),
    (f"GET  / HTTP/1.1\r\n{HOST}", 400), (f"GET /a b HTTP/1.1\r\n{HOST}", 400), (f"GET / HTTP/1.1 \r\n{HOST}", 400),
    (f"G(T / HTTP/1.1\r\n{HOST}", 400), (f"GET /\x7f HTTP/1.1\r\n{HOST}", 400),
    (f"GET / HTTP/1.1\r\n{HOST} folded\r\n", 400), (f"GET / HTTP/1.1\r\n{HOST}A: b\r\n\tc\r\n", 400),
    (f"GET / HTTP/1.1\r\n{HOST}A : b\r\n", 400), (f"GET / HTTP/1.1\r\n{HOST}: b\r\n", 400),
    (f"GET / HTTP/1.1\r\n{HOST}no colon\r\n", 400), (f"GET / HTTP/1.1\r\n{HOST}A: b\x00\r\n", 400),
    (f"GET / HTTP/1.1\r\n{HOST}A: b\rC: d\r\n", 400), (f"GET / HTTP/1.1\n{HOST}", 400),
    (f"GET / HTTP/1.1\r\n{HOST}A: b\nC: d\r\n", 400)])
def test_what_is_no_head(head, status):
    with pytest.raises(Refused) as error:
        read_head(head)
    assert error.value.status == status


@pytest.mark.parametrize("fields, status", [
    ("Content-Length: 5\r\nContent-Length: 5\r\n", 400), ("Content-Length: 5, 5\r\n", 400),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400), ("Content-Length: +5\r\n", 400),
    ("Content-Length: -5\r\n", 400), ("Content-Length: 0x5\r\n", 400), ("Content-Length: 5 5\r\n", 400),
    ("Content-Length:\r\n", 400), ("Content-Length: 9999999999999999999\r\n", 400),
    ("Content-Length: \u00b2\r\n", 400), ("Transfer-Encoding: gzip, chunked\r\n", 501),
    ("Transfer-Encoding: chunked, identity\r\n", 501), ("Transfer-Encoding: identity\r\n", 501),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501), ("Transfer-Encoding: xchunked\r\n", 501),
    ("Transfer-Encoding:\x0bchunked\r\n", 400), ("Transfer-Encoding:\r\n", 501)])
def test_a_body_whose_length_others_may_read_differently(fields, status):
    with pytest.raises(Refused) as error:
        read_head(f"PUT / HTTP/1.1\r\n{HOST}{fields}")
    assert error.value.status == status


def test_chunks_are_not_known_in_http_1_0():
    with pytest.raises(Refused):
        read_head("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n")


@pytest.mark.parametrize("chunks", [
    b"5\r\nhello!\r\n0\r\n\r\n", b"5\r\nhell\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"\r\n",
    b"5\nhello\r\n", b"5 5\r\nhello\r\n", b"1" * 16 + b"\r\n", b"5;\x00\r\nhello\r\n", b"5" * 5000,
    b"0\r\nno field\r\n\r\n",
    b"0\r\n" + b"a: b\r\n" * 1000, b"0\r\na: " + b"b" * 2000])
def test_chunks_that_are_none(chunks):
    assert refused(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) == 400


def test_a_head_that_is_too_large():
    long = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1000
    assert refused(long) == refused(long + b"\r\n\r\n") == 431
    assert refused(b"\r\n" * 100) == 400
    assert read(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 900 + b"\r\n\r\n", 1)[-1] is END


def test_what_comes_before_what_is_refused_counts():
    reader, events = Reader(1000), []
    with pytest.raises(Refused):
        for event in reader.feed(memoryview(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\njunk\r\n\r\n")):
            events.append(event)
    assert [type(event) for event in events] == [Head, type(END)]
