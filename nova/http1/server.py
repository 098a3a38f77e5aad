"""Connections: requests go to a Tornado application, or to whatever is one to its interfaces, and answers back.

An application gets Tornado's HTTPServerConnectionDelegate and HTTPMessageDelegate calls, one request of a connection
after the other, and answers through Tornado's HTTPConnection.  A delegate's ``finish`` may be a coroutine function
besides, and may answer through :meth:`Connection.answer`, or ``start``, ``send`` and ``drain``, which cost less.

Nobody is read from faster than the application takes it, nor written to faster than they take it.  A client that
neither sends what it owes nor takes what it is sent is cut off after a while.
"""

import asyncio
import inspect
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from email.utils import formatdate
from http.client import responses
from typing import Any

from tornado import httputil
from tornado.iostream import StreamClosedError

from nova.http1.reading import End, Event, Head, Reader, Refused

log = logging.getLogger(__name__)

#: bytes read at a time, and kept for the application at most
_READ = 256 << 10
#: seconds and bytes for which somebody is heard out who was answered before all was sent
_LINGER, _LINGER_SIZE = 5.0, 64 << 20
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSED = StreamClosedError()

#: makes the headers and the body of the answer to a request that cannot be read, of its status
Refusal = Callable[[int], tuple[dict[str, str], bytes]]


def _plain(status: int) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "text/plain"}, f"{responses[status]}\n".encode()


_date: tuple[int, str] = (0, "")


def date() -> str:
    """The time, as a Date header has it."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = now, formatdate(now, usegmt=True)
    return _date[1]


class Context:
    """What is known of a request before it is read: as Tornado's own server tells it."""

    def __init__(self, remote_ip: str):
        self.remote_ip, self.protocol = remote_ip, "http"


class Server:
    """Serves an application.

    :param application: gets the requests
    :param refusal: makes the answer to what cannot be read
    :param max_head: bytes that the headers of a request may have
    :param max_body: bytes that a body may have, unless the application says otherwise for a request
    :param patience: seconds for which nothing happens on a connection before it is closed
    """

    def __init__(self, application: httputil.HTTPServerConnectionDelegate, refusal: Refusal = _plain,
                 max_head: int = 64 << 10, max_body: int = 100 << 20, patience: float = 120):
        self.application, self.refusal, self.max_head, self.max_body = application, refusal, max_head, max_body
        self.is_stopping = False
        self.connections: set[Connection] = set()
        self.room = memoryview(bytearray(_READ))  # read into and taken from at once, by one connection at a time
        self._patience = patience
        self._listening: list[socket.socket] = []
        self._watch: asyncio.TimerHandle | None = None

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections at sockets that listen; they are closed by :meth:`stop`."""
        loop = asyncio.get_running_loop()
        for listening in sockets:
            listening.setblocking(False)
            self._listening.append(listening)
            loop.add_reader(listening, self._accept, listening)
        self._look_after()

    def _accept(self, listening: socket.socket) -> None:
        # one at a time: where several processes listen at a socket, whoever has nothing to do gets the next
        try:
            accepted, address = listening.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:  # out of descriptors, say
            log.error("cannot accept a connection: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            loop.call_later(1, self._accept_again, listening)
            return
        accepted.setblocking(False)
        connection = Connection(self, address[0] if isinstance(address, tuple) else "127.0.0.1")
        connection.begin(accepted)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _look_after(self) -> None:
        """Close the connections on which nothing happens."""
        late = time.monotonic() - self._patience
        for connection in tuple(self.connections):
            connection.look(late)
        self._watch = asyncio.get_running_loop().call_later(min(self._patience / 4, 10), self._look_after)

    def stop(self) -> None:
        """Listen no more, close the connections that have no request, and each other one when its request is over."""
        self.is_stopping = True
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._listening = []
        for connection in tuple(self.connections):
            connection.close_if_idle()

    async def close_all_connections(self) -> None:
        """Cut off everybody; returns when the applications have ended what they were at, or after two seconds."""
        if self._watch:
            self._watch.cancel()
        for connection in tuple(self.connections):
            connection.cut_off()
        tasks = [connection.task for connection in self.connections if connection.task]
        if tasks:
            await asyncio.wait(tasks, timeout=2)


class Connection(asyncio.BufferedProtocol, httputil.HTTPConnection):
    """One connection, and the request on it that is being served."""

    def __init__(self, server: Server, address: str):
        self.context = Context(address)
        self.task: asyncio.Task[None] | None = None
        self._server, self._reader = server, Reader(server.max_head)
        self._transport: Any = None
        self._loop = asyncio.get_running_loop()
        # what has come: to be taken by the task
        self._events: deque[Event | Refused] = deque()
        self._kept = 0  # bytes of bodies among it
        self._arrival: asyncio.Future[None] | None = None
        self._is_reading = True
        # the end of the connection
        self._is_lost = self._is_deaf = False
        self._heard_out = 0
        self._lost: asyncio.Future[None] = self._loop.create_future()
        # how long it waits, and for what
        self._waits_since = time.monotonic()
        self._waits_for_head, self._unsent = True, 0
        self._drained: asyncio.Future[None] | None = None
        self._is_full = False
        self._idle = True
        self._reset()

    def _reset(self) -> None:
        """Begin with the next request."""
        self.request: Head | None = None
        self._max_body = self._server.max_body
        self._complete = False  # all of it was taken
        self._close_callback: Callable[[], None] | None = None
        self._has_head = self._is_finished = self._closes = self._is_chunked = False
        self._remaining: int | None = None
        self._finished: asyncio.Future[None] | None = None

    # -- asyncio's side --

    def begin(self, accepted: socket.socket) -> None:
        """Serve the connection at a socket."""
        self._server.connections.add(self)
        self.task = self._loop.create_task(self._run(accepted))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.room

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_deaf:
            self._heard_out += nbytes
            if self._heard_out > _LINGER_SIZE:
                self._transport.abort()
            return
        if not self._waits_for_head:
            self._waits_since = time.monotonic()
        try:
            for event in self._reader.feed(self._server.room[:nbytes]):
                self._events.append(event)
                self._kept += len(event) if isinstance(event, bytes) else 1024
        except Refused as refused:
            self._events.append(refused)
            self._stop_reading()
        if self._kept >= _READ:
            self._stop_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False  # whoever closes one half does not wait for an answer

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._server.connections.discard(self)
        if not self._lost.done():
            self._lost.set_result(None)
        self._wake()
        self.resume_writing()
        if self._finished and not self._finished.done():
            self._finished.set_result(None)
        if self._complete:  # else the delegate is told by who reads
            callback, self._close_callback = self._close_callback, None
            if callback:
                callback()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        drained, self._drained = self._drained, None
        if drained and not drained.done():
            drained.set_result(None)

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival and not arrival.done():
            arrival.set_result(None)

    def _stop_reading(self) -> None:
        if self._is_reading and not self._transport.is_closing():
            self._is_reading = False
            self._transport.pause_reading()

    def _go_on_reading(self) -> None:
        if not self._is_reading and not self._transport.is_closing():
            self._is_reading = True
            self._transport.resume_reading()

    # -- the server's side --

    def look(self, late: float) -> None:
        """Close if nothing has happened since `late`."""
        if self._drained is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent, self._waits_since = unsent, time.monotonic()
        elif self._arrival is None:
            return  # the application works
        if self._waits_since < late:
            log.info("%s: nothing has happened for too long", self.context.remote_ip)
            self.cut_off()

    def close_if_idle(self) -> None:
        """Close if no request is there."""
        if self._idle and not self._events and self._reader.is_between and self._transport:
            self._transport.close()

    def cut_off(self) -> None:
        """Close without regard for what is unsent."""
        if self._transport:
            self._transport.abort()

    # -- the requests --

    async def _run(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self, accepted)
        except OSError as error:  # it has gone already
            log.info("%s: %s", self.context.remote_ip, error)
            self._server.connections.discard(self)
            accepted.close()
            return
        try:
            while await self._serve():
                self._reset()
                self._idle = True
        except StreamClosedError:
            pass
        finally:
            self._transport.close()

    async def _serve(self) -> bool:
        """Serve one request; whether there may be another."""
        self._waits_for_head, self._waits_since = True, time.monotonic()
        if self._server.is_stopping and not self._events and self._reader.is_between:
            return False
        try:
            head = await self._next()
        except Refused as refused:
            await self._refuse(refused)
            return False
        assert isinstance(head, Head)
        self._idle = self._waits_for_head = False
        self.request = head
        delegate: Any = self._server.application.start_request(self, self)
        try:
            await self._read(delegate, head)
        except StreamClosedError:
            delegate.on_connection_close()
            return False
        except Refused as refused:
            delegate.on_connection_close()
            await self._refuse(refused)
            return False
        except Exception:  # whatever it is, others are served
            log.exception("the application failed")
            delegate.on_connection_close()
            return False
        try:
            if not self._is_finished:
                await _awaited(delegate.finish())
            if not self._is_finished and not self._is_lost:
                self._finished = self._loop.create_future()
                await self._finished
            await self.drain()
        except StreamClosedError:
            return False
        except Exception:
            log.exception("the application failed")
            return False
        if not self._complete:
            return await self._hear_out()
        return not self._closes

    async def _read(self, delegate: Any, head: Head) -> None:
        """Give a request to its delegate, up to its end or until it is answered."""
        line = httputil.RequestStartLine(head.method, head.target, head.version)
        try:
            await _awaited(delegate.headers_received(line, head.headers))
        except httputil.HTTPInputError as error:
            raise Refused(400, str(error)) from error
        if self._is_finished:
            self._skip()
            return
        if (head.length or 0) > self._max_body:
            raise Refused(413, "the body is too large")
        if head.waits and head.length != 0 and not self._events:
            self._transport.write(_CONTINUE)
        size = 0
        while not isinstance(event := await self._next(), End):
            assert isinstance(event, bytes)
            size += len(event)
            if size > self._max_body:
                raise Refused(413, "the body is too large")
            await _awaited(delegate.data_received(event))
            if self._is_finished:
                self._skip()
                return
        self._complete = True

    def _skip(self) -> None:
        """Leave out what has come of the body of a request that is answered."""
        while self._events and not self._complete:
            event = self._events[0]
            if isinstance(event, Refused):
                return
            self._events.popleft()
            self._complete = isinstance(event, End)
        self._kept = 0

    async def _next(self) -> Event:
        """What comes next; :raises Refused, StreamClosedError:"""
        while not self._events:
            if self._is_lost:
                raise _CLOSED
            self._kept = 0
            self._go_on_reading()
            self._arrival = self._loop.create_future()
            await self._arrival
        event = self._events.popleft()
        if isinstance(event, Refused):
            raise event
        if not self._events:
            self._kept = 0
            self._go_on_reading()
        return event

    async def _refuse(self, refused: Refused) -> None:
        """Answer what cannot be read, and close."""
        log.info("%s: refused: %s", self.context.remote_ip, refused)
        if not self._has_head and not self._is_lost:
            headers, body = self._server.refusal(refused.status)
            self._closes = True
            self.answer(refused.status, {"Date": date(), **headers}, body)
        await self._hear_out()

    async def _hear_out(self) -> bool:
        """Close towards somebody who may still be writing, so that the answer is not lost.

        To close a connection on which something waits to be read takes away what the other has not read yet.
        """
        if self._is_lost or self._transport.is_closing():
            return False
        self._events.clear()
        self._is_deaf = True
        self._go_on_reading()
        self._transport.write_eof()
        await asyncio.wait([self._lost], timeout=_LINGER)
        return False

    # -- the answer --

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Give a whole answer; Content-Length is added.

        :param headers: names as they are to be spelled, values as Latin-1
        :raises ValueError: a header has a line end in it, or no Latin-1
        """
        fields = [f"{name}: {value}\r\n" for name, value in headers.items()]
        if "Content-Length" not in headers and status >= 200 and status not in (204, 304):
            fields.append(f"Content-Length: {len(body)}\r\n")
        self._send_head(status, "", fields, b"" if self.request and self.request.method == "HEAD" else body)
        self._remaining = None
        self.finish()

    def start(self, status: int, headers: Mapping[str, str], reason: str = "") -> None:
        """Begin an answer that :meth:`send` goes on with; without a Content-Length it goes out in chunks."""
        self.write_headers(httputil.ResponseStartLine("HTTP/1.1", status, reason), headers)  # type: ignore[arg-type]

    async def drain(self) -> None:
        """Return when there is room for more of the answer.

        :raises StreamClosedError: the client is gone
        """
        if self._is_lost or self._transport.is_closing():
            raise _CLOSED
        if self._is_full:
            if self._drained is None:
                self._unsent, self._waits_since = self._transport.get_write_buffer_size(), time.monotonic()
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)
            if self._is_lost:
                raise _CLOSED

    def abort(self) -> None:
        """Break the answer off: the client sees that it is not whole."""
        self.cut_off()

    def write_headers(self, start_line: Any, headers: httputil.HTTPHeaders,
                      chunk: bytes | None = None) -> "asyncio.Future[None]":
        """As Tornado has it."""
        status = start_line.code
        pairs = headers.get_all() if isinstance(headers, httputil.HTTPHeaders) else headers.items()
        head = self.request is not None and self.request.method == "HEAD"
        has_body = not head and status >= 200 and status not in (204, 304)
        length = headers.get("Content-Length")
        fields = [f"{name}: {value}\r\n" for name, value in pairs]
        if has_body and length is None:
            self._is_chunked = self.request is not None and self.request.version == "HTTP/1.1"
            if self._is_chunked:
                fields.append("Transfer-Encoding: chunked\r\n")
            else:
                self._closes = True
        self._remaining = 0 if not has_body else int(length) if length is not None else None
        self._send_head(status, start_line.reason, fields, b"")
        return self.write(chunk) if chunk else self._written()

    def _send_head(self, status: int, reason: str, fields: Sequence[str], body: bytes) -> None:
        request = self.request
        if request is None or not request.keeps_alive or self._server.is_stopping:
            self._closes = True
        fields = list(fields)
        said = next((field for field in fields if field[:11].lower() == "connection:"), "")
        if said:
            self._closes |= "close" in said.lower()
        elif self._closes:
            fields.append("Connection: close\r\n")
        elif request and request.version == "HTTP/1.0":
            fields.append("Connection: keep-alive\r\n")
        text = "".join(fields)
        if text.count("\n") != len(fields) or text.count("\r") != len(fields):
            raise ValueError("a header with a line end in it")
        self._has_head = True
        if not self._transport.is_closing():
            reason = reason or responses.get(status, "Unknown")
            self._transport.write(f"HTTP/1.1 {status} {reason}\r\n{text}\r\n".encode("latin-1") + body)

    def write(self, chunk: bytes) -> "asyncio.Future[None]":
        """As Tornado has it."""
        self.send(chunk)
        return self._written()

    def send(self, chunk: bytes) -> None:
        """Send a piece of the body; :meth:`drain` before the next."""
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self.cut_off()
                raise httputil.HTTPOutputError("more than the Content-Length says")
        if chunk and not self._transport.is_closing():
            if self._is_chunked:
                self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            else:
                self._transport.write(chunk)

    def _written(self) -> "asyncio.Future[None]":
        if self._is_full and not self._is_lost:
            return asyncio.ensure_future(self.drain())
        written: asyncio.Future[None] = self._loop.create_future()
        if self._is_lost or self._transport.is_closing():
            written.set_exception(StreamClosedError())
            written.exception()  # who does not look will hear otherwise
        else:
            written.set_result(None)
        return written

    def finish(self) -> None:
        """As Tornado has it."""
        if self._remaining and not self._transport.is_closing():
            self.cut_off()
            raise httputil.HTTPOutputError("less than the Content-Length says")
        if self._is_chunked and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        self._is_finished = True
        self._close_callback = None
        if self._finished and not self._finished.done():
            self._finished.set_result(None)

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """As Tornado has it: called when the client goes away after its request and before the answer."""
        self._close_callback = callback

    def set_max_body_size(self, max_body_size: int) -> None:
        """As Tornado has it: for the request that is being served."""
        self._max_body = max_body_size


async def _awaited(result: Awaitable[None] | None) -> None:
    if result is not None and inspect.isawaitable(result):
        await result
