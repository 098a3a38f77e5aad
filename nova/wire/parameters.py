"""Reading requests: input shapes of the model compiled to closures that turn parameters into Python values.

The protocol names a value by its path: ``BlockDeviceMapping.1.Ebs.VolumeSize=8``.  Clients of every age are
served, so lists may be numbered from 0 or 1, with gaps, or not at all when there is one member; a list's name
may be in the singular or in the plural; and a single value may be numbered ``.1``.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn, Union

from nova import exception
from nova.wire import overlay

Node = dict[str, Union["Node", str]]
#: turns what stands at a path into a value; gets the path for its errors
Converter = Callable[[Node | str, str], Any]

#: parts that the longest path of the model has, and then some
MAX_DEPTH = 16
#: the highest number that a list's member may have
MAX_INDEX = 9999
_INDEX = re.compile(r"[0-9]{1,9}", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?", re.ASCII)
_BLANK = re.compile(r"[ \t\r\n]+")
_INTEGER_BITS = {"integer": 31, "long": 63}


def shown(text: str) -> str:
    """A client's text as an error message quotes it: not longer than it is worth."""
    return text if len(text) <= 100 else text[:100] + "..."


def tree(params: Iterable[tuple[str, str]]) -> Node:
    """The parameters by their paths, without those of the protocol itself.

    :raises exception.InvalidParameterCombination: a path is given twice, or is a value and has members
    :raises exception.UnknownParameter: a path is longer than any of the model
    """
    root: Node = {}
    for name, value in params:
        if name in overlay.PROTOCOL_PARAMETERS or name.startswith(overlay.PROTOCOL_PREFIX):
            continue
        *parents, last = name.split(".", MAX_DEPTH)
        if len(parents) == MAX_DEPTH:
            raise exception.UnknownParameter(name=shown(name))
        node = root
        for part in parents:
            child = node.setdefault(part, {})
            if isinstance(child, str):
                _clash(name)
            node = child
        if last in node:
            _clash(name)
        node[last] = value
    return root


def _clash(name: str) -> NoReturn:
    raise exception.InvalidParameterCombination(
        f"The parameter {shown(name)} is given more than once or conflicts with another")


def _refuse(value: str, path: str, why: str = "") -> NoReturn:
    message = f"Value ({shown(value)}) for parameter {shown(path)} is invalid. {why}"
    raise exception.InvalidParameterValue(message.rstrip())


def _unknown(node: Node, path: str) -> NoReturn:
    raise exception.UnknownParameter(name=shown(f"{path}.{next(iter(node))}"))


class Structure:
    """Reads the members of a structure; its fields are compiled when first used."""

    def __init__(self, shape: Any, compiler: "Compiler", top: bool = False):
        self._shape = shape
        self._compiler = compiler
        self._top = top

    @cached_property
    def fields(self) -> dict[str, tuple[str, Converter]]:
        """Each spelling on the wire -> member name and how its value is read."""
        members = self._shape.members
        fields: dict[str, tuple[str, Converter]] = {}
        others: dict[str, set[str]] = {}
        for name, member in members.items():
            wire = self._compiler.wire_name(name, member)
            fields[wire] = (name, self._compiler.compile(member))
            for spelling in self._compiler.spellings(name, wire, member):
                others.setdefault(spelling, set()).add(wire)
        for spelling, meant in others.items():
            protocol = self._top and spelling in overlay.PROTOCOL_PARAMETERS
            if spelling not in fields and len(meant) == 1 and not protocol:
                fields[spelling] = fields[meant.pop()]
        return fields

    @cached_property
    def required(self) -> list[tuple[str, str]]:
        """Member name and name on the wire of each member that must be given."""
        members = self._shape.members
        return [(name, self._compiler.wire_name(name, members[name])) for name in self._shape.required_members
                if (self._shape.name, name) not in overlay.OPTIONAL]

    def __call__(self, node: Node | str, path: str) -> dict[str, Any]:
        if isinstance(node, str):
            _refuse(node, path, "It has members, which have to be given one by one.")
        fields = self.fields
        prefix = path + "." if path else ""
        values: dict[str, Any] = {}
        for name, child in node.items():
            field = fields.get(name)
            if field is None:
                raise exception.UnknownParameter(name=shown(prefix + name))
            member, convert = field
            if member in values:
                _clash(prefix + name)
            values[member] = convert(child, prefix + name)
        for member, wire in self.required:
            # A required name, id or list is not given by giving it empty.
            if member not in values or (self._top and values[member] in ("", b"", [])):
                raise exception.MissingParameter(name=prefix + wire)
        return values


def wire_name(member: str, shape: Any) -> str:
    """A member's name in requests, by the rules of the EC2 protocol."""
    names = shape.serialization
    if "queryName" in names:
        return names["queryName"]
    name = names.get("name", member)
    return name[0].upper() + name[1:]


def _spellings(member: str, wire: str, shape: Any) -> set[str]:
    """The other names under which clients send a member."""
    spellings = {member}
    if shape.type_name == "list":
        spellings.add(wire[:-1] if wire.endswith("s") else wire + "s")
    return spellings - {wire}


class Compiler:
    """Compiles input shapes of the EC2 protocol; a shape that occurs in many places is compiled once."""

    def __init__(self) -> None:
        self._converters: dict[str, Converter] = {}

    def wire_name(self, member: str, shape: Any) -> str:
        """A member's name in requests."""
        return wire_name(member, shape)

    def spellings(self, member: str, wire: str, shape: Any) -> set[str]:
        """The other names under which clients send a member."""
        return _spellings(member, wire, shape)

    def compile(self, shape: Any) -> Converter:
        """How a value of this shape is read."""
        converter = self._converters.get(shape.name)
        if converter is None:
            converter = self._converters[shape.name] = self._make(shape)
        return converter

    def _make(self, shape: Any) -> Converter:
        if shape.type_name == "structure":
            return Structure(shape, self)
        if shape.type_name == "list":
            return self._list(shape)
        return _scalar(_READERS[shape.type_name](shape))

    def _list(self, shape: Any) -> Converter:
        return _list(self.compile(shape.member))


class PlainCompiler(Compiler):
    """Compiles input shapes of the plain query protocol, as IAM and STS have it.

    A list's members are below an element of their own (``Tags.member.1.Key``); names are taken as the model has them.
    """

    def wire_name(self, member: str, shape: Any) -> str:
        return shape.serialization.get("name", member)

    def spellings(self, member: str, wire: str, shape: Any) -> set[str]:
        return set()

    def _list(self, shape: Any) -> Converter:
        read = _list(self.compile(shape.member))
        if shape.serialization.get("flattened"):
            return read
        element = shape.member.serialization.get("name", "member")

        def read_wrapped(node: Node | str, path: str) -> list[Any]:
            if isinstance(node, str):
                return read(node, path)
            members = node.get(element, {})
            if len(node) > 1 or element not in node:
                _unknown({name: child for name, child in node.items() if name != element}, path)
            return read(members, f"{path}.{element}")
        return read_wrapped


def _list(convert: Converter) -> Converter:
    def read(node: Node | str, path: str) -> list[Any]:
        if isinstance(node, str):
            return [convert(node, path)] if node else []
        members: dict[int, tuple[Node | str, str]] = {}
        for name, child in node.items():
            where = f"{path}.{name}"
            if not _INDEX.fullmatch(name):
                if name.isdecimal():
                    _refuse(name, where, "The number is too high.")
                raise exception.UnknownParameter(name=shown(where))
            index = int(name)
            if index > MAX_INDEX:
                _refuse(name, where, "The number is too high.")
            if index in members:
                _clash(where)
            members[index] = (child, where)
        return [convert(*members[index]) for index in sorted(members)]
    return read


def _scalar(read: Callable[[str, str], Any]) -> Converter:
    def convert(node: Node | str, path: str) -> Any:
        if isinstance(node, str):
            return read(node, path)
        if not node.keys() <= {"0", "1"}:
            if all(_INDEX.fullmatch(name) for name in node):
                raise exception.InvalidParameterValue(f"The parameter {shown(path)} takes one value only")
            _unknown(node, path)
        if len(node) > 1:
            raise exception.InvalidParameterValue(f"The parameter {shown(path)} takes one value only")
        [(name, child)] = node.items()
        if not isinstance(child, str):
            _unknown(child, f"{path}.{name}")
        return read(child, path)
    return convert


def _read_string(shape: Any) -> Callable[[str, str], str]:
    if not shape.enum or shape.name in overlay.OPEN_ENUMS:
        return lambda text, path: text
    allowed = frozenset(shape.enum)
    valid = ", ".join(shape.enum) if len(shape.enum) <= 20 else ""

    def read(text: str, path: str) -> str:
        if text not in allowed:
            _refuse(text, path, f"Valid values: {valid}." if valid else "")
        return text
    return read


def _check_range(shape: Any, number: float, text: str, path: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and number < low:
        _refuse(text, path, f"Expecting a value greater than or equal to {low}.")
    if high is not None and number > high:
        _refuse(text, path, f"Expecting a value less than or equal to {high}.")


def _read_integer(shape: Any) -> Callable[[str, str], int]:
    limit = 1 << _INTEGER_BITS[shape.type_name]

    def read(text: str, path: str) -> int:
        if not _INTEGER.fullmatch(text) or not -limit <= int(text) < limit:
            _refuse(text, path, "Expecting an integer.")
        number = int(text)
        _check_range(shape, number, text, path)
        return number
    return read


def _read_float(shape: Any) -> Callable[[str, str], float]:
    def read(text: str, path: str) -> float:
        if not _FLOAT.fullmatch(text):
            _refuse(text, path, "Expecting a number.")
        number = float(text)
        _check_range(shape, number, text, path)
        return number
    return read


def _read_boolean(shape: Any) -> Callable[[str, str], bool]:
    words = {"true": True, "1": True, "false": False, "0": False}

    def read(text: str, path: str) -> bool:
        value = words.get(text.lower())
        if value is None:
            _refuse(text, path, "Expecting true or false.")
        return value
    return read


def _read_timestamp(shape: Any) -> Callable[[str, str], datetime]:
    def read(text: str, path: str) -> datetime:
        try:
            moment = datetime.fromisoformat(text)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            _refuse(text, path, "Expecting a time in ISO 8601 format.")
    return read


def _read_blob(shape: Any) -> Callable[[str, str], bytes]:
    def read(text: str, path: str) -> bytes:
        try:
            return base64.b64decode(_BLANK.sub("", text), validate=True)
        except (binascii.Error, ValueError):
            _refuse(text, path, "Expecting base64.")
    return read


_READERS: dict[str, Callable[[Any], Callable[[str, str], Any]]] = {
    "string": _read_string, "character": _read_string, "integer": _read_integer, "long": _read_integer,
    "float": _read_float, "double": _read_float, "boolean": _read_boolean, "timestamp": _read_timestamp,
    "blob": _read_blob,
}
