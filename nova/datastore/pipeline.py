"""The connection to Redis that commands share.

What is asked within one turn of the event loop goes out in one piece; Redis answers in the order in which it was asked,
and each answer goes to who asked for it, or nowhere, if they have gone away.  redis-py connects, authenticates and
encrypts; then the connection is read and written here, which takes a tenth of the time that redis-py takes for a
command.

Every question has its limit of time.  A connection on which one was not answered in time gets no further questions; who
asked before may still get an answer from it.  Nothing that was sent is sent again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis.asyncio
import redis.exceptions

#: seconds that one answer of Redis may take: at first, and once the event loop has looked at what came meanwhile.  A
#: loop that was busy for longer than the limit finds the answer and the end of the time at once; the second wait lets
#: it take the answer, so that only Redis itself can be too slow.
PATIENCE = (1.2, 0.3)

#: what stands for an answer that has not come to its end
_MORE = object()


class Broken(redis.exceptions.ConnectionError):
    """The connection ended before the answer came: the command may have been carried out."""


class _Question:
    """Commands in Redis' own format and their number, when they were asked, and who waits for the answers."""

    __slots__ = ("answers", "asked", "commands", "future", "number")

    def __init__(self, commands: bytes, number: int, asked: float, future: "asyncio.Future[list[Any]]"):
        self.commands, self.number, self.asked, self.future = commands, number, asked, future
        self.answers: list[Any] = []

    def fail(self, error: Exception) -> None:
        """Tell who waits, if they still do."""
        if not self.future.done():
            self.future.set_exception(error)


def _closed() -> Exception:
    return redis.exceptions.ConnectionError("the store was closed")


class Pipeline:
    """Asks Redis; connects when first used, and again when the connection was lost.

    :param pool: where connections come from
    """

    def __init__(self, pool: "redis.asyncio.ConnectionPool"):
        self._pool = pool
        self._unsent: list[_Question] = []
        self._line: _Line | None = None
        self._lines: set[_Line] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def ask(self, *commands: tuple[bytes, ...]) -> "asyncio.Future[list[Any]]":
        """Send commands, one after the other and with the others of this turn.

        :returns: their answers; an error that is Redis' answer is a :class:`hiredis.ReplyError` among them
        :raises redis.exceptions.ConnectionError: (in the future) Redis cannot be reached
        :raises Broken: (in the future) the connection was lost
        :raises TimeoutError: (in the future) the answers do not come
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if not self._unsent:
            loop.call_soon(self._send)
        packed = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
        self._unsent.append(_Question(packed, len(commands), loop.time(), future))
        return future

    def renew(self) -> None:
        """What is asked from now on goes over a new connection."""
        if self._line is not None:
            self._line.retire()

    def _send(self) -> None:
        if self._line is not None and not self._line.is_closing:
            questions, self._unsent = self._unsent, []
            self._line.send([question for question in questions if not question.future.done()])
        elif self._connecting is None and self._unsent:
            self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(sum(PATIENCE)):
                connection = await self._pool.get_connection()
            self._line = _Line(connection, self._retire, self._lost)
            self._lines.add(self._line)
        except Exception as error:  # whoever asked gets it
            questions, self._unsent = self._unsent, []
            for question in questions:
                question.fail(error)
        finally:
            self._connecting = None
        if self._unsent:
            self._send()

    def _retire(self, line: "_Line") -> None:
        """A line is asked nothing more."""
        if self._line is line:
            self._line = None

    def _lost(self, line: "_Line") -> None:
        """A line has ended."""
        self._retire(line)
        self._lines.discard(line)
        task = asyncio.ensure_future(self._give_back(line))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _give_back(self, line: "_Line") -> None:
        await line.connection.disconnect(nowait=True)
        await self._pool.release(line.connection)

    async def close(self) -> None:
        """Close the connections; who still waits is told so."""
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        questions, self._unsent = self._unsent, []
        for question in questions:
            question.fail(_closed())
        lines = list(self._lines)
        for line in lines:
            line.close()
        for line in lines:
            await line.over
        if self._closing:
            await asyncio.wait(self._closing)


class _Line(asyncio.Protocol):
    """A connection that redis-py has made.

    :param retired: is told when it must not be asked any more
    :param lost: is told when it has ended
    """

    def __init__(self, connection: "redis.asyncio.Connection", retired: Callable[["_Line"], None],
                 lost: Callable[["_Line"], None]):
        self.connection, self._retired, self._lost = connection, retired, lost
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._asked: deque[_Question] = deque()
        self._is_retired = False
        self._timer: asyncio.TimerHandle | None = None
        self._late: _Question | None = None
        # redis-py has no public way to its transport; the reader that it has for itself hears of the end
        self._transport = cast(asyncio.Transport, connection._writer.transport)  # type: ignore[union-attr]
        self._stream = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def send(self, questions: list[_Question]) -> None:
        """Ask all of these."""
        self._asked.extend(questions)
        self._transport.write(b"".join([question.commands for question in questions]))
        if self._timer is None and self._asked:
            self._timer = self._loop.call_later(PATIENCE[0], self._look)

    @property
    def is_closing(self) -> bool:
        """Whether it has ended, or will at once."""
        return self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Answers have come, in the order of the questions."""
        self._reader.feed(data)
        asked = self._asked
        try:
            while (answer := self._reader.gets()) is not _MORE:
                if isinstance(answer, hiredis.PushNotification):
                    continue
                question = asked[0]
                question.answers.append(answer)
                if len(question.answers) == question.number:
                    asked.popleft()
                    if not question.future.done():
                        question.future.set_result(question.answers)
        except (hiredis.ProtocolError, IndexError):
            self._transport.abort()  # whatever it is that answers
        if self._is_retired:
            self._close_if_idle()

    def connection_lost(self, error: Exception | None) -> None:
        """What was asked is not answered any more."""
        self._stream.connection_lost(error)
        if self._timer is not None:
            self._timer.cancel()
        self._is_retired = True
        for question in self._asked:
            question.fail(Broken("Redis closed the connection before it answered"))
        self._asked.clear()
        self._lost(self)
        self.over.set_result(None)

    def retire(self) -> None:
        """Be asked nothing more; end when who waits has been answered."""
        self._is_retired = True
        self._retired(self)
        self._close_if_idle()

    def close(self) -> None:
        """End at once."""
        for question in self._asked:
            question.fail(_closed())
        self._transport.abort()

    def _close_if_idle(self) -> None:
        if all(question.future.done() for question in self._asked):
            self._transport.abort()

    def _look(self) -> None:
        """Look whether the oldest question waits for too long."""
        self._timer = None
        oldest = next((question for question in self._asked if not question.future.done()), None)
        if oldest is None:
            if not self._asked:
                return
            oldest = self._asked[0]  # all who asked have gone away, and Redis may hang all the same
        now = self._loop.time()
        left = oldest.asked + PATIENCE[0] - now
        if left <= 0 and oldest is self._late:
            for question in self._asked:
                if now - question.asked >= sum(PATIENCE):
                    question.fail(TimeoutError("Redis does not answer"))
            self._late = None
            self.retire()
            left = PATIENCE[1]
        elif left <= 0:
            self._late, left = oldest, PATIENCE[1]
        if self._asked and not self.is_closing:
            self._timer = self._loop.call_later(left, self._look)
