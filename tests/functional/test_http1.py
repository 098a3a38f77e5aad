"""The HTTP server, by clients that write bytes to a socket."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator

import pytest
from tornado import httputil, netutil, web

from nova.http1.server import Server

HOST = b"Host: x\r\n"
MIB = 1 << 20


class Echo(httputil.HTTPMessageDelegate):
    """Answers with what it got; the path says how."""

    def __init__(self, app: "App", connection):
        self.app, self.connection, self.body = app, connection, b""

    async def headers_received(self, start_line, headers):
        self.line, self.headers = start_line, headers
        self.connection.set_close_callback(self.on_connection_close)
        if start_line.path == "/early":
            self.connection.answer(403, {}, b"no")
        if start_line.path == "/limit":
            self.connection.set_max_body_size(10)
        if start_line.path == "/broken":
            raise RuntimeError("broken")

    async def data_received(self, chunk):
        self.app.taken += len(chunk)
        if self.line.path == "/blocked":
            await self.app.released.wait()
        if self.line.path == "/late" and self.app.taken >= MIB:
            self.connection.answer(403, {}, b"no")
        self.body += chunk[:100]

    async def finish(self):
        path, connection = self.line.path, self.connection
        if path == "/slow":
            self.app.reached.set()
            await self.app.released.wait()
        if path in ("/stream", "/length"):
            connection.start(200, {"Content-Length": str(64 * MIB)} if path == "/length" else {})
            for _ in range(64):
                connection.send(bytes(MIB))
                self.app.given += MIB
                await connection.drain()
            connection.finish()
        elif path == "/header":
            with pytest.raises(ValueError):
                connection.answer(200, {"X": "a\r\nY: b"}, b"")
            connection.answer(200, {"X": "\xfc"}, b"")
        elif path == "/short":
            connection.start(200, {"Content-Length": "10"})
            connection.send(b"short")
            connection.finish()
        else:
            connection.answer(200, {"X-Path": path}, self.body)

    def on_connection_close(self):
        self.app.gone.append(self.line.path)


class App(httputil.HTTPServerConnectionDelegate):
    def __init__(self):
        self.released, self.reached = asyncio.Event(), asyncio.Event()
        self.gone: list[str] = []
        self.taken = self.given = 0

    def start_request(self, server_conn, request_conn):
        return Echo(self, request_conn)


@contextlib.asynccontextmanager
async def serving(app, **options) -> AsyncIterator[Server]:
    server = Server(app, **options)
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server.port = sockets[0].getsockname()[1]
    server.add_sockets(sockets)
    try:
        yield server
    finally:
        server.stop()
        await server.close_all_connections()
        assert not server.connections


@pytest.fixture(name="app")
async def app_fixture() -> App:
    return App()


@pytest.fixture(name="server")
async def server_fixture(app) -> AsyncIterator[Server]:
    async with serving(app, max_body=64 * MIB) as server:
        yield server


class Client:
    """A socket; what it reads is in time or not at all."""

    @classmethod
    async def to(cls, server: Server, data: bytes = b"") -> "Client":
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", server.port)
        self.send(data)
        return self

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, httputil.HTTPHeaders, bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        line, _, rest = head.decode("latin-1").partition("\r\n")
        headers = httputil.HTTPHeaders.parse(rest)
        return int(line.split()[1]), headers, await self.exactly(int(headers.get("Content-Length", 0)))

    async def exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), 20)

    async def rest(self) -> bytes:
        """Up to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(-1), 20)

    def close(self) -> None:
        self.writer.close()


async def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def settled(value) -> int:
    """What a number is that grew and stays the same for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.5:
        await asyncio.sleep(0.02)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


# -- requests ---------------------------------------------------------------------------------------------------------

async def test_one_connection_serves_many_requests(server):
    client = await Client.to(server)
    for n in range(3):
        client.send(b"PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d" % (n, n))
        status, headers, body = await client.answer()
        assert (status, headers["X-Path"], body, "Connection" in headers) == (200, f"/{n}", b"%02d" % n, False)
    client.send(b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await client.answer())[1]["Connection"] == "close"
    assert await client.rest() == b""


async def test_requests_that_come_at_once_are_answered_in_turn(server, app):
    client = await Client.to(server, b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n" + b"".join(
        b"PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % n for n in range(100)))
    await app.reached.wait()
    app.released.set()
    answers = [await client.answer() for _ in range(101)]
    assert [headers["X-Path"] for _, headers, _ in answers] == ["/slow", *(f"/{n}" for n in range(100))]


async def test_http_1_0(server):
    client = await Client.to(server, b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (await client.answer())[1]["Connection"] == "keep-alive"
    client.send(b"GET /stream HTTP/1.0\r\n\r\n")
    answer = await client.rest()
    assert b"chunked" not in answer and len(answer.partition(b"\r\n\r\n")[2]) == 64 * MIB


async def test_a_chunked_request(server):
    client = await Client.to(server, b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"5\r\nhel", b"lo\r", b"\n1", b"\r\n!\r\n", b"0\r\n", b"\r\n"):
        client.send(piece)
        await asyncio.sleep(0)
    assert (await client.answer())[2] == b"hello!"


async def test_head_has_no_body(server):
    client = await Client.to(server, b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n")
    data = await asyncio.wait_for(client.reader.readuntil(b"X-Path: /b"), 20)
    assert data.count(b"HTTP/1.1 200 OK") == 2


async def test_an_answer_in_chunks(server):
    client = await Client.to(server, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.answer())[1]["Transfer-Encoding"] == "chunked"
    for _ in range(64):
        assert await client.exactly(len(b"100000\r\n")) == b"100000\r\n"
        await client.exactly(MIB + 2)
    assert await client.exactly(5) == b"0\r\n\r\n"


async def test_leave_to_send_is_given_unless_the_request_is_refused(server):
    head = b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    client = await Client.to(server, head % b"/a")
    assert await client.exactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert (await client.answer())[2] == b"hello"
    client.send(head % b"/early")
    assert (await client.answer())[0] == 403 and await client.rest() == b""


async def test_header_values_are_bytes(server):
    client = await Client.to(server, b"GET /header HTTP/1.1\r\nHost: x\r\n\r\n")
    data = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 20)
    assert b"\r\nX: \xfc\r\n" in data and b"Y: b" not in data


# -- what is refused --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("request_, status", [
    (b"junk\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 30\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"PUT /limit HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000 + b"\r\n\r\n", 431)])
async def test_what_is_refused_is_answered_once_and_nothing_behind_it_served(server, request_, status):
    client = await Client.to(server, request_ + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.answer())[0] == status
    assert await client.rest() == b""


async def test_what_came_before_is_answered(server):
    client = await Client.to(server, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\njunk\r\n\r\n")
    assert [(await client.answer())[0] for _ in range(2)] == [200, 400]
    assert await client.rest() == b""


async def test_a_refusal_in_the_applications_words(app):
    async with serving(app, refusal=lambda status: ({"Content-Type": "a/b"}, b"<no/>")) as server:
        client = await Client.to(server, b"junk\r\n\r\n")
        status, headers, body = await client.answer()
        assert (status, headers["Content-Type"], body) == (400, "a/b", b"<no/>")
        assert "Date" in headers and headers["Connection"] == "close"


@pytest.mark.parametrize("path", [b"/early", b"/late"])
async def test_an_early_answer_reaches_who_still_sends(server, path):
    client = await Client.to(server, b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, 16 * MIB))
    for _ in range(16):
        client.send(bytes(MIB))
        await client.writer.drain()  # a connection that were reset would raise
    assert (await client.answer())[0] == 403
    assert await client.rest() == b""


async def test_after_an_early_answer_to_a_whole_request_the_connection_serves_on(server):
    client = await Client.to(server, b"PUT /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
                             b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [(await client.answer())[0] for _ in range(2)] == [403, 200]


# -- who is slow, and who goes ----------------------------------------------------------------------------------------

async def test_nobody_is_read_from_faster_than_it_is_taken(server, app):
    client = await Client.to(server, b"PUT /blocked HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (48 * MIB))
    client.send(bytes(48 * MIB))
    await until(lambda: app.taken)
    left = await settled(client.writer.transport.get_write_buffer_size)
    assert left > 24 * MIB and app.taken <= MIB  # the rest is in the two sockets
    app.released.set()
    assert (await client.answer())[0] == 200 and app.taken == 48 * MIB


async def test_nobody_is_written_to_faster_than_they_read(server, app):
    client = await Client.to(server, b"GET /length HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: app.given)
    assert await settled(lambda: app.given) < 40 * MIB
    assert len((await client.answer())[2]) == 64 * MIB


@pytest.mark.parametrize("request_, path", [
    (b"PUT /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe", "/body"),
    (b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", "/slow")])
async def test_an_application_is_told_who_has_gone(server, app, request_, path):
    client = await Client.to(server, request_)
    await until(lambda: app.taken or app.reached.is_set())
    client.close()
    await until(lambda: app.gone == [path])
    app.released.set()


async def test_an_answer_that_is_too_short_is_seen_to_be(server):
    client = await Client.to(server, b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await client.answer()


async def test_an_application_that_fails_takes_only_its_connection_along(server):
    client = await Client.to(server, b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await client.rest() == b""
    assert (await (await Client.to(server, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")).answer())[0] == 200


@pytest.mark.parametrize("request_", [
    b"", b"GET / HTTP/1.1\r\nHo", b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe",
    b"GET /length HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_who_does_nothing_is_cut_off(app, request_):
    async with serving(app, patience=0.5) as server:
        client = await Client.to(server, request_)
        await until(lambda: server.connections)
        if b"/length" in request_:
            client.writer.transport.pause_reading()
        await until(lambda: not server.connections)


async def test_who_waits_for_the_application_is_not_cut_off(app):
    async with serving(app, patience=0.3) as server:
        client = await Client.to(server, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.reached.wait()
        await asyncio.sleep(1)  # as long as it takes: nothing is to happen
        app.released.set()
        assert (await client.answer())[0] == 200


async def test_a_stop_lets_requests_end(server, app):
    idle, busy = await Client.to(server, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"), await Client.to(
        server, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await idle.answer())[0] == 200
    await app.reached.wait()
    server.stop()
    assert await idle.rest() == b""
    with pytest.raises(OSError):
        await Client.to(server)
    app.released.set()
    assert (await busy.answer())[1]["Connection"] == "close" and await busy.rest() == b""


# -- Tornado's own handlers -------------------------------------------------------------------------------------------

@web.stream_request_body
class Streaming(web.RequestHandler):
    def initialize(self):
        self.size = 0

    async def data_received(self, chunk):
        self.size += len(chunk)

    async def put(self):
        self.write(f"{self.size} ")
        await self.flush()
        self.write("bytes")


class Plain(web.RequestHandler):
    async def post(self):
        await asyncio.sleep(0)
        self.set_header("X-Who", self.request.remote_ip)
        self.write(self.request.body[::-1])


async def test_a_tornado_application():
    app = web.Application([("/plain", Plain), ("/stream", Streaming)], log_function=lambda handler: None)
    async with serving(app) as server:
        client = await Client.to(server, b"POST /plain HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        status, headers, body = await client.answer()
        assert (status, headers["X-Who"], body) == (200, "127.0.0.1", b"olleh")
        client.send(b"PUT /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(500000))
        assert (await client.answer())[1]["Transfer-Encoding"] == "chunked"
        assert re.fullmatch(rb"7\r\n500000 \r\n5\r\nbytes\r\n0\r\n\r\n", await client.exactly(27))
        client.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 404 Not Found\r\n")
