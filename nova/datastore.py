"""Records in Redis: typed fields, indexes, and changes that are atomic however many keys they touch.

A record class is a dataclass marked with :func:`record`.  The record ``nova:<kind>:<id>`` is a hash; ``nova:<kind>s``
is the set of all ids and ``nova:<kind>s:by-<field>:<value>`` the set of the ids that have this value.  A
:class:`Transaction` collects changes and commits all or none of them in one Lua script (``commit.lua``), so that
uniqueness, pools and counters are decided by Redis.  A list is read in two round trips, whatever its length.
"""

import asyncio
import dataclasses
import functools
import json
import secrets
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nova import exception

PREFIX = "nova:"
#: how many numbers a record's version may begin at
_FIRST_VERSIONS = 1 << 40


@dataclass(frozen=True)
class Record:
    """Base of all records: an id that is unique within its kind, and a version that each change raises by one.

    The version begins at a random number, so that a copy of a record that was removed is not taken for one of the
    record that has its id now.
    """

    id: str
    version: int = field(default=0, kw_only=True)


R = TypeVar("R", bound=Record)
R2 = TypeVar("R2", bound=Record)


@dataclass(frozen=True)
class _Schema:
    kind: str
    indexes: tuple[str, ...]
    listed: bool
    codecs: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]]
    defaults: dict[str, Callable[[], Any]]

    @functools.cached_property
    def decoders(self) -> dict[bytes, tuple[str, Callable[[str], Any]]]:
        return {name.encode(): (name, decode) for name, (_, decode) in self.codecs.items()}

    def key(self, id: str) -> str:
        return f"{PREFIX}{self.kind}:{id}"

    @property
    def all_key(self) -> str:
        return f"{PREFIX}{self.kind}s"

    def index_prefix(self, name: str) -> str:
        return f"{PREFIX}{self.kind}s:by-{name}:"

    def index_list(self) -> list[list[str]]:
        return [[name, self.index_prefix(name)] for name in self.indexes]


_schemas: dict[type, _Schema] = {}


def _defaults(cls: type["Record"]) -> dict[str, Callable[[], Any]]:
    """What makes the default of each field that has one."""
    made: dict[str, Callable[[], Any]] = {}
    for f in dataclasses.fields(cls):
        if f.default_factory is not dataclasses.MISSING:
            made[f.name] = f.default_factory
        elif f.default is not dataclasses.MISSING:
            made[f.name] = functools.partial(_identity, f.default)
    return made


def record(kind: str, indexes: tuple[str, ...] = (), listed: bool = True) -> Callable[[type[R]], type[R]]:
    """Declare a dataclass a record.

    :param kind: the word for it in keys, in the singular
    :param indexes: fields by which records are looked up; an empty value is not indexed
    :param listed: keep the set of all ids (leave out for records that expire by themselves)
    """
    def decorate(cls: type[R]) -> type[R]:
        hints = typing.get_type_hints(cls)
        codecs = {f.name: _codec(hints[f.name]) for f in dataclasses.fields(cls)}
        _schemas[cls] = _Schema(kind, indexes, listed, codecs, _defaults(cls))
        return cls
    return decorate


@dataclass(frozen=True)
class Kind:
    """How records of a class are kept: the word in their keys, their indexes, and whether all ids are kept in a set."""

    cls: type[Record]
    word: str
    indexes: tuple[str, ...]
    listed: bool

    @property
    def prefix(self) -> str:
        """What the key of a record begins with."""
        return _schemas[self.cls].key("")

    @property
    def all_key(self) -> str:
        """The set of all ids."""
        return _schemas[self.cls].all_key

    def index_prefix(self, name: str) -> str:
        """What the keys of an index begin with."""
        return _schemas[self.cls].index_prefix(name)


def kinds() -> list[Kind]:
    """All kinds of records that this process knows."""
    return [Kind(cls, schema.kind, schema.indexes, schema.listed) for cls, schema in _schemas.items()]


def _identity(value: Any) -> Any:
    return value


def _decode_bool(value: str) -> bool:
    return value == "1"


def _encode_bool(value: bool) -> str:
    return "1" if value else "0"


def _loads(value: str) -> Any:
    return {} if value == "{}" else [] if value == "[]" else json.loads(value)


_dumps = functools.partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
_CODECS: dict[Any, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    str: (_identity, _identity), int: (str, int), float: (repr, float), bool: (_encode_bool, _decode_bool),
    dict: (_dumps, _loads), list: (_dumps, _loads),
}


def _codec(hint: Any) -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        [hint] = [h for h in typing.get_args(hint) if h is not type(None)]
        origin = typing.get_origin(hint)
    return _CODECS[origin or hint]


@dataclass(frozen=True)
class Taken:
    """Stands for an item that a `take` of the same transaction takes, as the value of a string field."""

    index: int


@dataclass(frozen=True)
class Pool:
    """A pool of items, such as the free addresses of a network.

    The list `key` has the free ones, first returned first taken; the hash `owners_key` says who has which.
    """

    name: str

    @property
    def key(self) -> str:
        return f"{PREFIX}pool:{self.name}"

    @property
    def owners_key(self) -> str:
        return f"{PREFIX}pool:{self.name}:owners"

    @property
    def seeded_key(self) -> str:
        return f"{PREFIX}pool:{self.name}:seeded"


class Transaction:
    """Changes that are made all together or not at all, in the order in which they are given."""

    def __init__(self, store: "Store"):
        self._store = store
        self._operations: list[dict[str, Any]] = []
        self._takes = 0
        self._named: dict[str, tuple[str, str]] = {}

    def create(self, obj: R, ttl: int | None = None, version: int = 0) -> R:
        """Add a record that must not exist; returns what it will be.

        :param ttl: seconds after which it expires
        :param version: what its version begins at, where a record that was lost is brought back
        """
        schema = _schemas[type(obj)]
        new = dataclasses.replace(obj, version=version or secrets.randbelow(_FIRST_VERSIONS) + 1)
        self._add("create", new, schema, fields=_encode(schema, _fields(new)), ttl=ttl, indexes=schema.index_list(),
                  set=schema.all_key if schema.listed else None)
        return new

    def update(self, obj: R, ttl: int | None = None, **changes: Any) -> R:
        """Change fields of a record that must still have the version of `obj`; returns what it will be.

        A field whose change is a :class:`Taken` has no value in what is returned; read the record again for it.
        """
        schema = _schemas[type(obj)]
        new = dataclasses.replace(obj, version=obj.version + 1,
                                  **{k: v for k, v in changes.items() if not isinstance(v, Taken)})
        drop = [name for name, value in changes.items() if value is None]
        fields = {name: value for name, value in changes.items() if value is not None}
        self._add("update", obj, schema, version=str(obj.version), ttl=ttl, drop=drop, indexes=schema.index_list(),
                  fields=_encode(schema, {**fields, "version": new.version}))
        return new

    def delete(self, obj: Record) -> None:
        """Remove a record that must still have this version."""
        schema = _schemas[type(obj)]
        self._add("delete", obj, schema, version=str(obj.version), indexes=schema.index_list(),
                  set=schema.all_key if schema.listed else None)

    def expect(self, obj: Record) -> None:
        """The record must still have this version."""
        self._add("expect", obj, _schemas[type(obj)], version=str(obj.version))

    def require_exists(self, cls: type[Record], id: str) -> None:
        """A record must exist, whatever its version."""
        self._require("require_exists", cls, id)

    def require_missing(self, cls: type[Record], id: str) -> None:
        """A record must not exist."""
        self._require("require_missing", cls, id)

    def require_empty(self, key: str) -> None:
        """A set, sorted set or list must have no members; else the commit raises :class:`exception.Conflict`."""
        self._operations.append({"op": "require_empty", "key": key})

    def take(self, pool: Pool, owner: str) -> str:
        """Take the first free item of a pool for `owner`; Exhausted where there is none.

        :returns: what stands for the item (a :class:`Taken`) where a string field of this transaction gets it
        """
        self._operations.append({"op": "take", "pool": pool.key, "owners": pool.owners_key, "owner": owner,
                                 "name": pool.name})
        self._takes += 1
        return typing.cast(str, Taken(self._takes))

    def give(self, pool: Pool, owner: str, item: str) -> None:
        """Give an item back; nothing happens when `owner` does not have it."""
        self._operations.append({"op": "give", "pool": pool.key, "owners": pool.owners_key, "owner": owner,
                                 "item": item})

    def fill(self, pool: Pool, items: list[str]) -> None:
        """Put free items into a pool."""
        self._operations.append({"op": "fill", "pool": pool.key, "items": items})

    def drop(self, pool: Pool) -> None:
        """Remove a pool."""
        self._operations.append({"op": "drop", "keys": [pool.key, pool.owners_key, pool.seeded_key]})

    def add(self, key: str, name: str, by: int, maximum: int | None = None) -> None:
        """Change a counter in a hash by `by`; Exhausted where it would pass `maximum`."""
        operation = {"op": "add", "key": PREFIX + key, "field": name, "by": by, "name": f"{key} {name}"}
        if maximum is not None:
            operation["max"] = maximum
        self._operations.append(operation)

    def zadd_lex(self, key: str, member: bytes) -> None:
        """Put a member into a sorted set that is read in byte order."""
        self._operations.append({"op": "zadd", "key": key, "member": member})

    def zrem(self, key: str, member: bytes) -> None:
        """Take a member out of a sorted set."""
        self._operations.append({"op": "zrem", "key": key, "member": member})

    def event(self, stream: str, maximum: int, **fields: str) -> None:
        """Append to a stream that keeps about the last `maximum` entries."""
        self._operations.append({"op": "xadd", "key": PREFIX + stream, "maxlen": maximum, "fields": fields})

    async def commit(self) -> list[str]:
        """Make the changes.

        :returns: what the `take`s took, in their order
        :raises exception.Exists: a record to be created exists
        :raises exception.NotFound: a record to be changed does not
        :raises exception.Conflict: a record has another version, or what must be empty is not
        :raises exception.Exhausted: a pool is empty or a counter at its limit
        :raises exception.DatastoreUnavailable:
        """
        answer = await self._store.script(_commit_source(), [_dump_operations(self._operations)])
        words = [w.decode() for w in answer]
        if words[0] == "ok":
            return words[1:]
        failure, name = words[1], words[2]
        kind, id = self._named.get(name, ("key", name))
        if failure == "exists":
            raise exception.Exists(kind, id)
        if failure == "missing":
            raise exception.NotFound(kind=kind, id=id)
        if failure == "exhausted":
            raise exception.Exhausted(name)
        raise exception.Conflict(kind=kind, id=id)

    def _add(self, op: str, obj: Record, schema: _Schema, **rest: Any) -> None:
        key = schema.key(obj.id)
        self._named[key] = (schema.kind, obj.id)
        self._operations.append({"op": op, "key": key, "id": obj.id,
                                 **{k: v for k, v in rest.items() if v is not None}})

    def _require(self, op: str, cls: type[Record], id: str) -> None:
        schema = _schemas[cls]
        self._named[schema.key(id)] = (schema.kind, id)
        self._operations.append({"op": op, "key": schema.key(id)})


def _fields(obj: Record) -> dict[str, Any]:
    return {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj) if getattr(obj, f.name) is not None}


def _encode(schema: _Schema, values: dict[str, Any]) -> dict[str, Any]:
    return {name: {"take": value.index} if isinstance(value, Taken) else schema.codecs[name][0](value)
            for name, value in values.items()}


def _dump_operations(operations: list[dict[str, Any]]) -> bytes:
    """JSON for commit.lua.  Members that are bytes travel as Latin-1 escapes, which cjson turns into UTF-8: so bytes
    beyond ASCII are put in as they are, by surrogates."""
    def default(value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        raise TypeError(f"cannot store {value!r}")
    return json.dumps(operations, default=default, ensure_ascii=False).encode("utf-8", "surrogateescape")


@functools.cache
def _commit_source() -> str:
    return resources.files("nova").joinpath("commit.lua").read_text()


class Store:
    """The cloud's state.  `redis` is the raw client, for what is no record (its answers are bytes)."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self.redis = client
        self._scripts: dict[str, Any] = {}

    async def get(self, cls: type[R], id: str) -> R | None:
        """One record, or None."""
        found = await self.get_many(cls, [id])
        return found[0] if found else None

    async def get_many(self, cls: type[R], ids: Iterable[str], at_once: bool = False) -> list[R]:
        """Records in the order of their ids, as :meth:`hashes` reads them; those that do not exist are left out.

        :param at_once: they are as they were at one moment, for records that move from one id to another
        """
        schema = _schemas[cls]
        rows = await self.hashes([schema.key(id) for id in ids], at_once)
        return [_decode(cls, schema, row) for row in rows if row]

    async def hashes(self, keys: Sequence[str], at_once: bool = False) -> list[dict[bytes, bytes]]:
        """Hashes of any kind, 1,000 in a round trip; empty ones where there is none.

        :param at_once: they are as they were at one moment, and come in one round trip
        """
        if len(keys) == 1:
            return [await self._try(typing.cast(Awaitable[Any], self.redis.hgetall(keys[0])))]
        rows: list[dict[bytes, bytes]] = []
        step = max(len(keys), 1) if at_once else _HASHES_AT_A_TIME
        for start in range(0, len(keys), step):
            # one answer is read faster than many
            found = await self.script(_HASHES, [key.encode() for key in keys[start:start + step]])
            rows += [dict(zip(row[::2], row[1::2], strict=True)) for row in found]
        return rows

    async def get_two(self, cls: type[R], id: str, other: type[R2], other_id: str) -> tuple[R | None, R2 | None]:
        """Two records of any kinds, in one round trip; None for what does not exist."""
        first, second = await self.hashes([_schemas[cls].key(id), _schemas[other].key(other_id)])
        return (_decode(cls, _schemas[cls], first) if first else None,
                _decode(other, _schemas[other], second) if second else None)

    async def get_with(self, cls: type[R], ids: Sequence[str], keys: Sequence[str],
                       ) -> tuple[list[R], list[dict[bytes, bytes]]]:
        """Records, and hashes that are none, in one round trip."""
        schema = _schemas[cls]
        rows = await self.hashes([*map(schema.key, ids), *keys])
        return [_decode(cls, schema, row) for row in rows[:len(ids)] if row], rows[len(ids):]

    async def get_fields(self, cls: type[Record], ids: Iterable[str], names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Some fields of many records, 1,000 in a round trip; records that do not exist are left out.

        What a record lacks, because it was stored before the field was declared, has its default, as in :meth:`get`; a
        record that lacks a field without one is left out.
        """
        schema = _schemas[cls]
        keys = [schema.key(id).encode() for id in ids]
        head = [str(len(names)).encode(), *(name.encode() for name in names)]
        columns = [(schema.codecs[name][1], schema.defaults.get(name)) for name in names]
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _HASHES_AT_A_TIME):
            rows = await self.script(_FIELDS, [*head, *keys[start:start + _HASHES_AT_A_TIME]])
            found += [values for id, *row in rows if id is not None and (values := _decode_some(columns, row))]
        return found

    async def ids(self, cls: type[Record], **where: str) -> list[str]:
        """The ids of all records, or of those that have all of these values in indexed fields, sorted."""
        schema = _schemas[cls]
        for name in where:
            if name not in schema.indexes:
                raise ValueError(f"{schema.kind} has no index by {name}")
        keys = [schema.index_prefix(name) + schema.codecs[name][0](value) for name, value in where.items()]
        members = await self._try(typing.cast(Awaitable[Any], self.redis.sinter(keys or [schema.all_key])))
        return sorted(m.decode() for m in members)

    async def find(self, cls: type[R], **where: str) -> list[R]:
        """The records that have these values in indexed fields, sorted by id, in two round trips."""
        return await self.get_many(cls, await self.ids(cls, **where))

    async def all(self, cls: type[R]) -> list[R]:
        """All records of a kind, sorted by id, in two round trips."""
        return await self.find(cls)

    async def scan(self, cls: type[R]) -> AsyncIterator[R]:
        """All records of a kind, listed or not, in no order; it goes through every key that there is."""
        start = _schemas[cls].key("")
        cursor = 0
        seen: set[str] = set()
        while True:
            cursor, keys = await self._try(self.redis.scan(cursor, match=start + "*", count=1000))
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
                raise exception.NotFound(kind=_schemas[cls].kind, id=id)
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
        """Run a Lua script that touches the keys it is told of in its arguments."""
        script = self._scripts.get(source)
        if script is None:
            script = self._scripts[source] = self.redis.register_script(source)
        return await self._try(script(args=args))

    async def ping(self) -> None:
        """:raises exception.DatastoreUnavailable: Redis does not answer"""
        await self._try(typing.cast(Awaitable[Any], self.redis.ping()))

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    async def attempt(self, operation: Any) -> Any:
        """Await a command of the raw client, with its outages told as :class:`exception.DatastoreUnavailable`.

        :param operation: an awaitable, although redis-py declares the commands' own answers as well
        """
        return await self._try(operation)

    async def _try(self, operation: Awaitable[Any]) -> Any:
        try:
            return await _patiently(operation)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError,
                redis.exceptions.ReadOnlyError, TimeoutError, OSError) as error:
            raise exception.DatastoreUnavailable() from error


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

#: seconds that one answer of Redis may take: at first, and once the event loop has looked at what came meanwhile
_PATIENCE = (1.2, 0.3)


async def _patiently(operation: Awaitable[Any]) -> Any:
    """Await an answer of Redis for a limited time.

    A loop that was busy for longer than the limit finds the answer and the end of the time at once; the second wait
    lets it take the answer, so that only Redis itself can be too slow.
    """
    task = asyncio.ensure_future(operation)
    try:
        for seconds in _PATIENCE:
            done, _ = await asyncio.wait([task], timeout=seconds)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def _decode(cls: type[R], schema: _Schema, row: dict[bytes, bytes]) -> R:
    decoders = schema.decoders
    values: dict[str, Any] = {}
    for name, value in row.items():
        found = decoders.get(name)
        if found is not None:
            text = value.decode()
            values[found[0]] = text if found[1] is _identity else found[1](text)
    return cls(**values)


def _decode_some(columns: Sequence[tuple[Callable[[str], Any], Callable[[], Any] | None]],
                 row: Sequence[bytes | None]) -> tuple[Any, ...] | None:
    """Some fields of a record; None if one is not there and has no default."""
    values = []
    for value, (decode, default) in zip(row, columns, strict=True):
        if value is not None:
            values.append(decode(value.decode()))
        elif default is not None:
            values.append(default())
        else:
            return None
    return tuple(values)


def open_store(url: str) -> Store:
    """A store on the Redis at `url` (``redis://HOST:PORT/DB`` or ``unix:///PATH``); connects when first used."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, socket_timeout=10, socket_connect_timeout=1,
                                                         max_connections=100, retry=Retry(NoBackoff(), 1))
    return Store(redis.asyncio.Redis(connection_pool=pool))
