"""Changes of records, pools, counters and sorted sets that are made all together or not at all."""

import functools
import json
import secrets
import typing
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from nova import exception
from nova.datastore.records import PREFIX, R, Record, Schema, changed, schema_of

#: how many numbers a record's version may begin at
_FIRST_VERSIONS = 1 << 40


class Scripts(Protocol):
    """What runs a script in Redis."""

    def script(self, source: str, args: list[bytes]) -> Awaitable[Any]:
        """:raises exception.DatastoreUnavailable:"""
        ...


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

    def __init__(self, scripts: Scripts):
        self._scripts = scripts
        self._operations: list[dict[str, Any]] = []
        self._takes = 0
        self._named: dict[str, tuple[str, str]] = {}

    def create(self, obj: R, ttl: int | None = None, version: int = 0) -> R:
        """Add a record that must not exist; returns what it will be.

        :param ttl: seconds after which it expires
        :param version: what its version begins at, where a record that was lost is brought back
        """
        schema = schema_of(type(obj))
        new = changed(obj, version=version or secrets.randbelow(_FIRST_VERSIONS) + 1)
        self._add("create", new, schema, fields=_encode(schema, _fields(new)), ttl=ttl, indexes=_indexes(schema),
                  set=schema.all_key if schema.listed else None)
        return new

    def update(self, obj: R, ttl: int | None = None, **changes: Any) -> R:
        """Change fields of a record that must still have the version of `obj`; returns what it will be.

        A field whose change is a :class:`Taken` has no value in what is returned; read the record again for it.
        """
        schema = schema_of(type(obj))
        new = changed(obj, **{k: v for k, v in changes.items() if not isinstance(v, Taken)}, version=obj.version + 1)
        drop = [name for name, value in changes.items() if value is None]
        fields = {name: value for name, value in changes.items() if value is not None}
        self._add("update", obj, schema, version=str(obj.version), ttl=ttl, drop=drop, indexes=_indexes(schema),
                  fields=_encode(schema, {**fields, "version": new.version}))
        return new

    def delete(self, obj: Record) -> None:
        """Remove a record that must still have this version."""
        schema = schema_of(type(obj))
        self._add("delete", obj, schema, version=str(obj.version), indexes=_indexes(schema),
                  set=schema.all_key if schema.listed else None)

    def expect(self, obj: Record) -> None:
        """The record must still have this version."""
        self._add("expect", obj, schema_of(type(obj)), version=str(obj.version))

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
        answer = await self._scripts.script(_commit_source(), [_dump_operations(self._operations)])
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

    def _add(self, op: str, obj: Record, schema: Schema, **rest: Any) -> None:
        key = schema.key(obj.id)
        self._named[key] = (schema.kind, obj.id)
        self._operations.append({"op": op, "key": key, "id": obj.id,
                                 **{k: v for k, v in rest.items() if v is not None}})

    def _require(self, op: str, cls: type[Record], id: str) -> None:
        schema = schema_of(cls)
        self._named[schema.key(id)] = (schema.kind, id)
        self._operations.append({"op": op, "key": schema.key(id)})


def _indexes(schema: Schema) -> list[list[str]]:
    return [[name, schema.index_prefix(name), "many" if name in schema.many else "one"] for name in schema.indexes]


def _fields(obj: Record) -> dict[str, Any]:
    return {name: value for name, value in vars(obj).items() if value is not None}


def _encode(schema: Schema, values: dict[str, Any]) -> dict[str, Any]:
    encoders = schema.encoders
    return {name: {"take": value.index} if isinstance(value, Taken) else encoders[name](value)
            for name, value in values.items()}


def _dump_operations(operations: list[dict[str, Any]]) -> bytes:
    """JSON for commit.lua.  Members that are bytes travel as Latin-1 escapes, which cjson turns into UTF-8: so bytes
    beyond ASCII are put in as they are, by surrogates."""
    return _encode_json(operations).encode("utf-8", "surrogateescape")


def _text_of_bytes(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    raise TypeError(f"cannot store {value!r}")


_encode_json = json.JSONEncoder(default=_text_of_bytes, separators=(",", ":"), ensure_ascii=False,
                                check_circular=False).encode


@functools.cache
def _commit_source() -> str:
    return resources.files("nova.datastore").joinpath("commit.lua").read_text()
