"""How records are kept: which hash and indexes a class of records has, and what its fields are as text."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

PREFIX = "nova:"


@dataclass(frozen=True)
class Record:
    """Base of all records: an id that is unique within its kind, and a version that each change raises by one.

    The version begins at a random number, so that a copy of a record that was removed is not taken for one of the
    record that has its id now.
    """

    id: str
    version: int = field(default=0, kw_only=True)


R = TypeVar("R", bound=Record)
#: makes text of a value, and the value of the bytes of its text
Codec = tuple[Callable[[Any], str], Callable[[bytes], Any]]


@dataclass(frozen=True)
class Schema:
    """How records of a class are kept.

    `kind` is the word in their keys, `indexes` are fields by which they are looked up, `many` those of them that are
    lists; `listed`: all ids are in a set.
    """

    cls: type[Record]
    kind: str
    indexes: tuple[str, ...]
    many: frozenset[str]
    listed: bool
    codecs: dict[str, Codec]
    defaults: dict[str, Callable[[], Any]]

    @functools.cached_property
    def _decoders(self) -> dict[bytes, tuple[str, Callable[[bytes], Any]]]:
        return {name.encode(): (name, decode) for name, (_, decode) in self.codecs.items()}

    @functools.cached_property
    def encoders(self) -> dict[str, Callable[[Any], str]]:
        """What makes text of the value of each field."""
        return {name: encode for name, (encode, _) in self.codecs.items()}

    def key(self, id: str) -> str:
        """The hash of a record."""
        return f"{PREFIX}{self.kind}:{id}"

    @property
    def all_key(self) -> str:
        """The set of all ids."""
        return f"{PREFIX}{self.kind}s"

    def index_prefix(self, name: str) -> str:
        """What the keys of an index begin with."""
        return f"{PREFIX}{self.kind}s:by-{name}:"

    def decode(self, row: Mapping[bytes, bytes]) -> Any:
        """The record of a hash; fields that are not declared are left out."""
        decoders = self._decoders
        values: dict[str, Any] = {}
        for name, value in row.items():
            found = decoders.get(name)
            if found is not None:
                values[found[0]] = found[1](value)
        if len(values) < len(decoders):
            return self.cls(**values)  # which knows the defaults
        return _made(self.cls, values)

    def columns(self, names: Sequence[str]) -> "Columns":
        """What reads some of the fields."""
        return Columns([(self.codecs[name][1], self.defaults.get(name)) for name in names])


class Columns:
    """Reads some fields of records.

    :param columns: for each, what makes a value of its text, and what makes its default, if it has one
    """

    def __init__(self, columns: Sequence[tuple[Callable[[bytes], Any], Callable[[], Any] | None]]):
        self._columns = columns

    def decode(self, row: Sequence[bytes | None]) -> tuple[Any, ...] | None:
        """The values of a record; None if one is not there and has no default."""
        values = []
        for value, (decode, default) in zip(row, self._columns, strict=True):
            if value is not None:
                values.append(decode(value))
            elif default is not None:
                values.append(default())
            else:
                return None
        return tuple(values)


_schemas: dict[type, Schema] = {}


def schema_of(cls: type[Record]) -> Schema:
    """How records of a class are kept."""
    return _schemas[cls]


def key_of(cls: type[Record], id: str) -> str:
    """The hash of a record, for who reads it together with others (:meth:`nova.datastore.Store.hashes`)."""
    return _schemas[cls].key(id)


def read(cls: type[R], row: Mapping[bytes, bytes]) -> R:
    """The record of a hash that is not empty."""
    found: R = _schemas[cls].decode(row)
    return found


def changed(obj: R, **changes: Any) -> R:
    """A copy of a record with other values, as dataclasses.replace makes it, which takes ten times as long."""
    return _made(type(obj), {**vars(obj), **changes})


def _made(cls: type[R], values: dict[str, Any]) -> R:
    """A record with a value of every field; its constructor would set them one by one."""
    made = object.__new__(cls)
    vars(made).update(values)
    return made


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
    :param indexes: fields by which records are looked up; an empty value is not indexed, a list is by each of its
        members, which are texts
    :param listed: keep the set of all ids (leave out for records that expire by themselves)
    """
    def decorate(cls: type[R]) -> type[R]:
        if hasattr(cls, "__post_init__"):
            raise TypeError(f"{cls.__name__} has a __post_init__, and records are made without a call of it")
        hints = typing.get_type_hints(cls)
        codecs = {f.name: _codec(hints[f.name]) for f in dataclasses.fields(cls)}
        many = frozenset(name for name in indexes if typing.get_origin(hints[name]) is list)
        _schemas[cls] = Schema(cls, kind, indexes, many, listed, codecs, _defaults(cls))
        return cls
    return decorate


@dataclass(frozen=True)
class Kind:
    """How records of a class are kept: the word in their keys, their indexes, which of these are of lists, and whether
    all ids are kept in a set."""

    cls: type[Record]
    word: str
    indexes: tuple[str, ...]
    many: frozenset[str]
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
    return [Kind(cls, schema.kind, schema.indexes, schema.many, schema.listed) for cls, schema in _schemas.items()]


def _identity(value: Any) -> Any:
    return value


def _decode_bool(value: bytes) -> bool:
    return value == b"1"


def _encode_bool(value: bool) -> str:
    return "1" if value else "0"


def _loads(value: bytes) -> Any:
    return {} if value == b"{}" else [] if value == b"[]" else json.loads(value)


def _dumps(value: Any) -> str:
    return _encode_json(value) if value else "{}" if isinstance(value, dict) else "[]"


_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_CODECS: dict[Any, Codec] = {
    str: (_identity, bytes.decode), int: (str, int), float: (repr, float), bool: (_encode_bool, _decode_bool),
    dict: (_dumps, _loads), list: (_dumps, _loads),
}


def _codec(hint: Any) -> Codec:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        [hint] = [h for h in typing.get_args(hint) if h is not type(None)]
        origin = typing.get_origin(hint)
    return _CODECS[origin or hint]
