"""Reading records, and running scripts, with outages told as :class:`exception.DatastoreUnavailable`."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import hiredis
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nova import exception
from nova.datastore.pipeline import PATIENCE, Broken, Pipeline
from nova.datastore.records import R, Record, schema_of
from nova.datastore.transaction import Pool, Transaction

R2 = TypeVar("R2", bound=Record)


class Store:
    """The cloud's state.  `redis` is the raw client, for what is no record (its answers are bytes)."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self.redis = client
        self._small, self._large = Pipeline(client.connection_pool), Pipeline(client.connection_pool)
        self._digests: dict[str, bytes] = {}

    async def get(self, cls: type[R], id: str) -> R | None:
        """One record, or None."""
        schema = schema_of(cls)
        [row] = await self.hashes((schema.key(id),))
        return schema.decode(row) if row else None

    async def get_many(self, cls: type[R], ids: Iterable[str], at_once: bool = False) -> list[R]:
        """Records in the order of their ids, as :meth:`hashes` reads them; those that do not exist are left out.

        :param at_once: they are as they were at one moment, for records that move from one id to another
        """
        schema = schema_of(cls)
        rows = await self.hashes([schema.key(id) for id in ids], at_once)
        return [schema.decode(row) for row in rows if row]

    async def hashes(self, keys: Sequence[str], at_once: bool = False) -> list[dict[bytes, bytes]]:
        """Hashes of any kind, 1,000 in a round trip; empty ones where there is none.

        :param at_once: they are as they were at one moment, and come in one round trip
        """
        if not keys:
            return []
        if len(keys) == 1 or (len(keys) <= _FEW and not at_once):
            return [_mapping(answer) for answer in await self._ask(
                self._small, *((b"HGETALL", key.encode()) for key in keys), reads=True)]
        rows: list[dict[bytes, bytes]] = []
        step = len(keys) if at_once else _HASHES_AT_A_TIME
        for start in range(0, len(keys), step):
            # one answer is read faster than many
            found = await self._read(_HASHES, [key.encode() for key in keys[start:start + step]])
            rows += [dict(zip(row[::2], row[1::2], strict=True)) for row in found]
        return rows

    async def get_two(self, cls: type[R], id: str, other: type[R2], other_id: str) -> tuple[R | None, R2 | None]:
        """Two records of any kinds, in one round trip; None for what does not exist."""
        first, second = await self.hashes([schema_of(cls).key(id), schema_of(other).key(other_id)])
        return (schema_of(cls).decode(first) if first else None,
                schema_of(other).decode(second) if second else None)

    async def get_fields(self, cls: type[Record], ids: Iterable[str], names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Some fields of many records, 1,000 in a round trip; records that do not exist are left out.

        What a record lacks, because it was stored before the field was declared, has its default, as in :meth:`get`; a
        record that lacks a field without one is left out.
        """
        schema = schema_of(cls)
        keys = [schema.key(id).encode() for id in ids]
        head = [str(len(names)).encode(), *(name.encode() for name in names)]
        columns = schema.columns(names)
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _HASHES_AT_A_TIME):
            rows = await self._read(_FIELDS, [*head, *keys[start:start + _HASHES_AT_A_TIME]])
            found += [values for id, *row in rows if id is not None and (values := columns.decode(row))]
        return found

    async def ids(self, cls: type[Record], **where: Any) -> list[str]:
        """The ids of all records, or of those that have all of these values in indexed fields, sorted.

        :param where: of a field that is a list: one of its members
        """
        schema = schema_of(cls)
        for name in where:
            if name not in schema.indexes:
                raise ValueError(f"{schema.kind} has no index by {name}")
        keys = [schema.index_prefix(name) + (value if name in schema.many else schema.encoders[name](value))
                for name, value in where.items()]
        members: set[bytes] = await self.attempt(self.redis.sinter(keys or [schema.all_key]))
        return sorted(m.decode() for m in members)

    async def find(self, cls: type[R], **where: Any) -> list[R]:
        """The records that have these values in indexed fields, sorted by id, in two round trips."""
        return await self.get_many(cls, await self.ids(cls, **where))

    async def all(self, cls: type[R]) -> list[R]:
        """All records of a kind, sorted by id, in two round trips."""
        return await self.find(cls)

    async def scan(self, cls: type[R]) -> AsyncIterator[R]:
        """All records of a kind, listed or not, in no order; it goes through every key that there is."""
        start = schema_of(cls).key("")
        cursor = 0
        seen: set[str] = set()
        while True:
            cursor, keys = await self.attempt(self.redis.scan(cursor, match=start + "*", count=1000))
            ids = {key.decode().removeprefix(start) for key in keys} - seen  # Redis may tell a key more than once
            seen |= ids
            for found in await self.get_many(cls, ids):
                yield found
            if not cursor:
                return

    def transaction(self) -> Transaction:
        """Begin to collect changes."""
        return Transaction(self)

    async def create(self, obj: R, ttl: int | None = None) -> R:
        """Add one record; :raises exception.Exists:"""
        tx = self.transaction()
        new = tx.create(obj, ttl=ttl)
        await tx.commit()
        return new

    async def update(self, obj: R, **changes: Any) -> R:
        """Change one record that is still as `obj` says; :raises exception.Conflict: it is not"""
        tx = self.transaction()
        new = tx.update(obj, **changes)
        await tx.commit()
        return new

    async def delete(self, obj: Record) -> None:
        """Remove one record that is still as `obj` says; :raises exception.Conflict: it is not"""
        tx = self.transaction()
        tx.delete(obj)
        await tx.commit()

    async def modify(self, cls: type[R], id: str, change: Callable[[R], dict[str, Any] | None]) -> R:
        """Change a record by a function of what it is, tried again when somebody else was faster.

        :param change: gets the record, returns the fields to change, or nothing to leave it
        :raises exception.NotFound:
        """
        while True:
            obj = await self.get(cls, id)
            if obj is None:
                raise exception.NotFound(kind=schema_of(cls).kind, id=id)
            changes = change(obj)
            if not changes:
                return obj
            try:
                return await self.update(obj, **changes)
            except exception.Conflict:
                continue

    async def seed(self, pool: Pool, items: list[str]) -> None:
        """Fill a pool, unless it was filled before."""
        await self.script(_SEED, [pool.key.encode(), pool.seeded_key.encode(), json.dumps(items).encode()])

    async def script(self, source: str, args: list[bytes]) -> Any:
        """Run a Lua script that touches the keys it is told of in its arguments.

        If the connection to Redis is lost meanwhile, nobody knows whether it was carried out.

        :raises exception.DatastoreUnavailable:
        """
        return await self._script(self._small, source, args, False)

    async def _read(self, source: str, args: list[bytes]) -> Any:
        """Run a script that changes nothing."""
        return await self._script(self._large if len(args) > _FEW else self._small, source, args, True)

    async def _script(self, way: Pipeline, source: str, args: list[bytes], reads: bool) -> Any:
        digest = self._digests.get(source)
        if digest is None:
            digest = self._digests[source] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode()
        try:
            [answer] = await self._ask(way, (b"EVALSHA", digest, b"0", *args), reads=reads)
        except redis.exceptions.NoScriptError:  # Redis is a new one
            [answer] = await self._ask(way, (b"EVAL", source.encode(), b"0", *args), reads=reads)
        return answer

    async def ping(self) -> None:
        """:raises exception.DatastoreUnavailable: Redis does not answer"""
        await self._ask(self._small, (b"PING",), reads=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._small.close()
        await self._large.close()
        await self.redis.aclose()

    async def _ask(self, way: Pipeline, *commands: tuple[bytes, ...], reads: bool) -> list[Any]:
        """The answers to commands.

        :param way: large answers go another way than small ones, which they would hold up
        :param reads: they change nothing, so that they can be sent again when the connection was lost
        """
        try:
            try:
                answers = await way.ask(*commands)
            except Broken:
                if not reads:
                    raise
                answers = await way.ask(*commands)
        except _OUTAGES as error:
            raise exception.DatastoreUnavailable() from error
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                code = str(answer).partition(" ")[0]
                if code in _NOT_NOW:
                    way.renew()  # another Redis may be the right one by now
                    raise exception.DatastoreUnavailable()
                raise (redis.exceptions.NoScriptError if code == "NOSCRIPT" else
                       redis.exceptions.ResponseError)(str(answer))
        return answers

    async def attempt(self, operation: Any) -> Any:
        """Await a command of the raw client, on a connection of its own, with its outages told as
        :class:`exception.DatastoreUnavailable`.

        :param operation: an awaitable, although redis-py declares the commands' own answers as well
        """
        try:
            return await _patiently(operation)
        except _OUTAGES as error:
            raise exception.DatastoreUnavailable() from error


_OUTAGES = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError,
            redis.exceptions.ReadOnlyError, TimeoutError, OSError)
#: what a Redis answers that is there and of no use for now
_NOT_NOW = ("LOADING", "READONLY", "MASTERDOWN")


def _mapping(answer: Any) -> dict[bytes, bytes]:
    """A hash, which older versions of the protocol give as a list."""
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


#: so many hashes are a small answer
_FEW = 32
#: others wait while Redis runs a script, so that one does not read all instances of a cloud
_HASHES_AT_A_TIME = 1000
_HASHES = """
local rows = {}
for n, key in ipairs(ARGV) do rows[n] = redis.call('HGETALL', key) end
return rows
"""
_FIELDS = """
local names = {'id'}
for n = 1, tonumber(ARGV[1]) do names[n + 1] = ARGV[n + 1] end
local rows = {}
for n = #names + 1, #ARGV do rows[#rows + 1] = redis.call('HMGET', ARGV[n], unpack(names)) end
return rows
"""
_SEED = """
if redis.call('SETNX', ARGV[2], '1') == 1 then
  for _, item in ipairs(cjson.decode(ARGV[3])) do redis.call('RPUSH', ARGV[1], item) end
end
return 1
"""


async def _patiently(operation: Awaitable[Any]) -> Any:
    """Await an answer of Redis for a limited time."""
    task = asyncio.ensure_future(operation)
    try:
        for seconds in PATIENCE:
            done, _ = await asyncio.wait([task], timeout=seconds)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def open_store(url: str) -> Store:
    """A store on the Redis at `url` (``redis://HOST:PORT/DB`` or ``unix:///PATH``); connects when first used."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, socket_timeout=10, socket_connect_timeout=1,
                                                         max_connections=100, retry=Retry(NoBackoff(), 1))
    return Store(redis.asyncio.Redis(connection_pool=pool))
