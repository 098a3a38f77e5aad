"""Messages between the daemons, over AMQP (kombu).

A topic exchange ``nova`` carries messages to the queue ``<topic>`` (any host that serves the topic) or
``<topic>.<host>`` (this one); a fanout exchange ``<topic>_fanout`` reaches all.  :meth:`Bus.call` asks and waits for
the answer, :meth:`Bus.cast` and :meth:`Bus.fanout` only wake somebody up.  A message is JSON: method, args,
request_id, id, reply_to and deadline; it is acknowledged after the work, and one that is past its deadline is dropped.

kombu blocks, so it has threads of its own: one that consumes and one that publishes.  Both reconnect by themselves
for as long as the bus is open; answers and requests enter the event loop by `call_soon_threadsafe`.  Nothing polls:
the consuming thread sleeps in `select` on the server's socket and on a socket pair that wakes it, also for kombu's
in-memory transport, which would look into its queues again and again.
"""

import asyncio
import logging
import queue
import select
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import kombu
import kombu.transport
from kombu import Connection, Consumer, Exchange, Queue
from kombu.transport import memory
from twisted.internet.defer import Deferred

from nova import exception, flags, process
from nova.context import request_id_var
from nova.flags import FLAGS, DEFINE_float, DEFINE_integer, DEFINE_string

DEFINE_string("amqp_url", "memory://", "URL of the message bus: memory:// within one process, or amqp://USER:PASSWORD@HOST:PORT/VHOST")
DEFINE_float("rpc_timeout", 10.0, "seconds to wait for the answer to a question on the bus", lower_bound=0.1)
DEFINE_integer("rpc_prefetch", 32, "messages that one daemon works on at the same time", lower_bound=1)


def _is_known(url: str) -> bool:
    try:
        return "://" in url and Connection(url).get_transport_cls() is not None
    except (KeyError, ValueError):  # no such transport, no such port
        return False


flags.check("amqp_url", _is_known, "it must be memory:// or amqp://USER:PASSWORD@HOST:PORT/VHOST")

LOG = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[Any]]

#: seconds between two tries to reach the message server: the first, and the most
_RETRY_FIRST, _RETRY_MOST = 0.1, 2.0
#: errors of kombu, its transports and the socket below them that a new connection can mend
_CONNECTION_ERRORS = (OSError, kombu.exceptions.OperationalError)


class _MemoryChannel(memory.Channel):
    """kombu's in-memory channel, which tells the buses of this process when a message has come."""

    buses: "weakref.WeakSet[Bus]" = weakref.WeakSet()

    def _put(self, *args: Any, **kwargs: Any) -> None:
        super()._put(*args, **kwargs)
        self._wake_all()

    def _put_fanout(self, *args: Any, **kwargs: Any) -> None:
        super()._put_fanout(*args, **kwargs)
        self._wake_all()

    def _wake_all(self) -> None:
        for bus in list(self.buses):
            bus.wake()


class MemoryTransport(memory.Transport):
    """kombu's in-memory transport with :class:`_MemoryChannel`."""

    Channel = _MemoryChannel


kombu.transport.TRANSPORT_ALIASES["memory"] = "nova.rpc:MemoryTransport"


@dataclass
class _Outgoing:
    exchange: str
    routing_key: str
    body: dict[str, Any]
    durable: bool
    done: Callable[[BaseException | None], None]
    deadline: float = field(default=0.0)


class Bus:
    """One process's place on the bus.

    :param url: kombu URL of the message server
    :param host: name of this host, which `<topic>.<host>` reaches
    """

    def __init__(self, url: str, host: str):
        self._url, self._host = url, host
        self._handlers: dict[str, dict[str, Handler]] = {}
        self._waiting: dict[str, asyncio.Future] = {}
        self._outgoing: queue.Queue[_Outgoing | None] = queue.Queue()
        self._reply_queue = f"reply.{host}.{uuid.uuid4().hex}"
        self._exchange = Exchange("nova", type="topic", durable=True)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acknowledgements: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task] = set()

    def serve(self, topic: str, handlers: dict[str, Handler]) -> None:
        """Answer the messages of a topic; to be called before :meth:`start`.

        :param handlers: coroutine function per method name; each is idempotent or only reads
        """
        self._handlers.setdefault(topic, {}).update(handlers)

    def start(self) -> None:
        """Connect, in the background."""
        self._loop = asyncio.get_running_loop()
        _MemoryChannel.buses.add(self)
        for target, name in ((self._consume_forever, "bus-consume"), (self._publish_forever, "bus-publish")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    async def connected(self, timeout: float = 10.0) -> bool:
        """Wait until the queues are being consumed; False where they are not in time."""
        return await asyncio.to_thread(self._ready.wait, timeout)

    async def stop(self) -> None:
        """Finish the messages being worked on, then disconnect; questions still open fail."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=3)
        self._stop.set()
        self._outgoing.put(None)
        self.wake()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 3)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(exception.RpcTimeout("the bus was closed"))
        self._waiting.clear()
        _MemoryChannel.buses.discard(self)
        self._wake_read.close()
        self._wake_write.close()

    def wake(self) -> None:
        """Let the consuming thread look: there is a message, or one to be acknowledged."""
        try:
            self._wake_write.send(b".")
        except BlockingIOError:
            return  # the socket is full of wake-ups already
        except OSError as error:
            LOG.debug("the bus is closed: %s", error)

    def call(self, topic: str, method: str, timeout: float | None = None, **args: Any) -> Deferred:
        """Ask.

        :param topic: ``<topic>`` or ``<topic>.<host>``
        :param timeout: seconds; the flag --rpc_timeout when None
        :returns: a Deferred of the answer
        :raises exception.RpcTimeout: (in the Deferred) nobody answered
        :raises exception.RemoteError: (in the Deferred) the other side raised
        """
        return process.deferred(self._call(topic, method, timeout or FLAGS.rpc_timeout, args))

    async def _call(self, topic: str, method: str, timeout: float, args: dict[str, Any]) -> Any:
        id = uuid.uuid4().hex
        future: asyncio.Future = self._loop.create_future()
        self._waiting[id] = future
        try:
            self._send("nova", topic, method, args, id=id, reply_to=self._reply_queue, timeout=timeout)
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise exception.RpcTimeout(topic=topic, method=method, timeout=timeout) from None
        finally:
            self._waiting.pop(id, None)

    def cast(self, topic: str, method: str, **args: Any) -> Deferred:
        """Wake somebody up; the Deferred fires when the message server has the message."""
        return self._send("nova", topic, method, args)

    def fanout(self, topic: str, method: str, **args: Any) -> Deferred:
        """Wake all hosts of a topic up."""
        return self._send(f"{topic}_fanout", "", method, args)

    def _send(self, exchange: str, routing_key: str, method: str, args: dict[str, Any], id: str | None = None,
              reply_to: str | None = None, timeout: float = 60.0) -> Deferred:
        deadline = time.time() + timeout
        body = {"method": method, "args": args, "request_id": request_id_var.get(), "id": id or uuid.uuid4().hex,
                "reply_to": reply_to, "deadline": deadline}
        return self._queue_out(exchange, routing_key, body, durable=reply_to is None, deadline=deadline)

    def _queue_out(self, exchange: str, routing_key: str, body: dict[str, Any], durable: bool,
                   deadline: float) -> Deferred:
        sent: asyncio.Future = self._loop.create_future()
        sent.add_done_callback(lambda f: f.cancelled() or f.exception())  # an unread failure is the log's business

        def done(error: BaseException | None) -> None:
            def finish() -> None:
                if sent.done():
                    return
                if error is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(error)
            self._in_loop(finish)
        self._outgoing.put(_Outgoing(exchange, routing_key, body, durable, done, deadline))
        return Deferred.fromFuture(sent)

    def _in_loop(self, function: Callable[..., Any], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    # -- the publishing thread ------------------------------------------------------------------------------------

    def _publish_forever(self) -> None:
        message: _Outgoing | None = self._outgoing.get()
        pause = _RETRY_FIRST
        while message is not None:
            connection = self._connection()
            try:
                connection.ensure_connection(max_retries=1, timeout=5)
                producer = connection.Producer()
                while message is not None:
                    self._publish(producer, message)
                    pause = _RETRY_FIRST
                    message.done(None)
                    message = self._outgoing.get()
            except (*_CONNECTION_ERRORS, *connection.connection_errors, *connection.channel_errors) as error:
                if self._stop.is_set():
                    return
                LOG.warning("cannot send to the message server (%s); trying again", error)
                self._stop.wait(pause)
                pause = min(pause * 2, _RETRY_MOST)
            finally:
                self._close(connection)
            while message is not None and time.time() > message.deadline:
                LOG.warning("dropped a message to %s: the message server was away until its deadline",
                            message.routing_key or message.exchange)
                message.done(exception.RpcTimeout("the message server was away until the message's deadline"))
                message = self._outgoing.get()

    def _publish(self, producer: kombu.Producer, message: _Outgoing) -> None:
        declare: list[Exchange] = []
        if message.exchange.endswith("_fanout"):
            declare = [Exchange(message.exchange, type="fanout", durable=True)]
        elif message.exchange:
            declare = [self._exchange]
        producer.publish(message.body, exchange=message.exchange, routing_key=message.routing_key, serializer="json",
                         declare=declare, delivery_mode=2 if message.durable else 1,
                         expiration=max(0.001, message.deadline - time.time()), confirm_timeout=5)

    @staticmethod
    def _close(connection: Connection) -> None:
        try:
            connection.release()
        except (*_CONNECTION_ERRORS, *connection.connection_errors, *connection.channel_errors) as error:
            LOG.debug("closing a broken connection: %s", error)

    # -- the consuming thread -------------------------------------------------------------------------------------

    def _consume_forever(self) -> None:
        pause = _RETRY_FIRST
        while not self._stop.is_set():
            connection = self._connection()
            try:
                connection.ensure_connection(max_retries=1, timeout=5)
                self._consume(connection)
                pause = _RETRY_FIRST
            except (*_CONNECTION_ERRORS, *connection.connection_errors, *connection.channel_errors) as error:
                self._ready.clear()
                if not self._stop.is_set():
                    LOG.warning("lost the message server (%s); trying again", error)
                    self._stop.wait(pause)
                    pause = min(pause * 2, _RETRY_MOST)
            finally:
                self._close(connection)

    def _connection(self) -> Connection:
        return Connection(self._url, heartbeat=10, connect_timeout=3,
                          transport_options={"confirm_publish": True})

    def _queues(self) -> list[Queue]:
        queues = [Queue(self._reply_queue, exchange=Exchange(""), routing_key=self._reply_queue, auto_delete=True,
                        durable=False, exclusive=False, expires=60.0)]
        for topic in self._handlers:
            queues.append(Queue(topic, exchange=self._exchange, routing_key=topic, durable=True))
            queues.append(Queue(f"{topic}.{self._host}", exchange=self._exchange, routing_key=f"{topic}.{self._host}",
                                durable=True))
            queues.append(Queue(f"{topic}_fanout.{self._host}", exchange=Exchange(f"{topic}_fanout", type="fanout"),
                                durable=True))
        return queues

    def _consume(self, connection: Connection) -> None:
        with connection.channel() as channel:
            consumer = Consumer(channel, self._queues(), callbacks=[self._arrived], accept=["json"],
                                prefetch_count=FLAGS.rpc_prefetch)
            with consumer:
                self._ready.set()
                while not self._stop.is_set():
                    self._drain(connection)
                    self._sleep(connection)
                self._acknowledge()

    def _drain(self, connection: Connection) -> None:
        """Take what has come and acknowledge what is done, without waiting."""
        while not self._stop.is_set():
            self._acknowledge()
            try:
                connection.drain_events(timeout=0)
            except TimeoutError:
                return

    def _sleep(self, connection: Connection) -> None:
        sources: list[Any] = [self._wake_read]
        server = getattr(connection.connection, "sock", None)
        if server is not None:
            sources.append(server)
        select.select(sources, [], [], 2)
        try:
            while self._wake_read.recv(4096):
                pass
        except BlockingIOError:
            pass
        if connection.supports_heartbeats:
            connection.heartbeat_check()

    def _acknowledge(self) -> None:
        while True:
            try:
                acknowledge = self._acknowledgements.get_nowait()
            except queue.Empty:
                return
            acknowledge()

    def _arrived(self, body: Any, message: Any) -> None:
        self._in_loop(self._dispatch, body, message)

    # -- in the event loop ----------------------------------------------------------------------------------------

    def _dispatch(self, body: dict[str, Any], message: Any) -> None:
        if "method" not in body:
            self._answered(body)
            self._done(message)
            return
        task = asyncio.ensure_future(self._work(body, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answered(self, body: dict[str, Any]) -> None:
        future = self._waiting.get(body.get("id", ""))
        if future is None or future.done():
            return
        if "error" in body:
            future.set_exception(exception.RemoteError(body["error"]))
        else:
            future.set_result(body.get("result"))

    async def _work(self, body: dict[str, Any], message: Any) -> None:
        try:
            if time.time() > body["deadline"]:
                LOG.info("dropped %s: past its deadline", body["method"])
                return
            request_id_var.set(body.get("request_id") or "-")
            answer: dict[str, Any] = {"id": body["id"]}
            try:
                answer["result"] = await self._handler(body["method"])(**body["args"])
            except exception.NovaError as error:
                LOG.warning("%s: %s", body["method"], error)
                answer["error"] = error.message
            except Exception as error:  # a bug in one method must not end the bus; it is logged and told to the caller
                LOG.exception("%s failed", body["method"])
                answer["error"] = f"{type(error).__name__}: {error}"
            if body["reply_to"]:
                self._queue_out("", body["reply_to"], answer, durable=False, deadline=body["deadline"])
        finally:
            self._done(message)

    def _done(self, message: Any) -> None:
        self._acknowledgements.put(message.ack)
        self.wake()

    def _handler(self, method: str) -> Handler:
        for handlers in self._handlers.values():
            if method in handlers:
                return handlers[method]
        raise exception.NovaError(f"no method {method}")
