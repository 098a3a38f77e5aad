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
#: makes text of a value, and the value of its text
Codec = tuple[Callable[[Any], str], Callable[[str], Any]]


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
    def _decoders(self) -> dict[bytes, tuple[str, Callable[[str], Any]]]:
        return {name.encode(): (name, decode) for name, (_, decode) in self.codecs.items()}

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

    def encode(self, name: str, value: Any) -> str:
        """The text of a field's value."""
        return self.codecs[name][0](value)

    def decode(self, row: Mapping[bytes, bytes]) -> Any:
        """The record of a hash; fields that are not declared are left out."""
        decoders = self._decoders
        values: dict[str, Any] = {}
        for name, value in row.items():
            found = decoders.get(name)
            if found is not None:
                text = value.decode()
                values[found[0]] = text if found[1] is _identity else found[1](text)
        return self.cls(**values)

    def columns(self, names: Sequence[str]) -> "Columns":
        """What reads some of the fields."""
        return Columns([(self.codecs[name][1], self.defaults.get(name)) for name in names])


class Columns:
    """Reads some fields of records.

    :param columns: for each, what makes a value of its text, and what makes its default, if it has one
    """

    def __init__(self, columns: Sequence[tuple[Callable[[str], Any], Callable[[], Any] | None]]):
        self._columns = columns

    def decode(self, row: Sequence[bytes | None]) -> tuple[Any, ...] | None:
        """The values of a record; None if one is not there and has no default."""
        values = []
        for value, (decode, default) in zip(row, self._columns, strict=True):
            if value is not None:
                values.append(decode(value.decode()))
            elif default is not None:
                values.append(default())
            else:
                return None
        return tuple(values)


_schemas: dict[type, Schema] = {}


def schema_of(cls: type[Record]) -> Schema:
    """How records of a class are kept."""
    return _schemas[cls]


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


def _decode_bool(value: str) -> bool:
    return value == "1"


def _encode_bool(value: bool) -> str:
    return "1" if value else "0"


def _loads(value: str) -> Any:
    return {} if value == "{}" else [] if value == "[]" else json.loads(value)


_dumps = functools.partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
_CODECS: dict[Any, Codec] = {
    str: (_identity, _identity), int: (str, int), float: (repr, float), bool: (_encode_bool, _decode_bool),
    dict: (_dumps, _loads), list: (_dumps, _loads),
}


def _codec(hint: Any) -> Codec:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        [hint] = [h for h in typing.get_args(hint) if h is not type(None)]
        origin = typing.get_origin(hint)
    return _CODECS[origin or hint]
