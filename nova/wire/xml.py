"""Writing answers: output shapes of the model compiled to closures that append XML to a list.

A result is a dictionary with the model's member names.  Members that are None are left out, members whose
names begin with an underscore are a controller's own and never written; any other name that the model does
not know is a mistake in the controller and raises.
"""

import base64
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from botocore.model import Shape

Put = Callable[[str], None]
Writer = Callable[[Any, Put], None]
#: a member of a structure: its start tag, how a scalar reads, how anything else is written, its end tag
Field = tuple[str, Callable[[Any], str] | None, Writer | None, str]

#: markup, and what XML 1.0 has no place for (section 2.2); a bare carriage return would be read as a newline
_SPECIAL = re.compile("[&<>\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}


def escape(text: str) -> str:
    """Text as the content of an element; characters that XML cannot carry become U+FFFD."""
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match[0], "\ufffd"), text)


def timestamp(value: datetime | float | str) -> str:
    """A moment as EC2 writes it, UTC with milliseconds.

    :param value: a datetime (a naive one is UTC), seconds since the epoch, or text in this form
    """
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    seconds, milliseconds = divmod(round(value * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def boolean(value: Any) -> str:
    """``true`` or ``false``."""
    return "true" if value else "false"


def string(value: Any) -> str:
    """A string as it is, a boolean as XML has it, anything else as Python writes it."""
    if isinstance(value, str):
        return value
    return boolean(value) if isinstance(value, bool) else str(value)


def _blob(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _integer(value: Any) -> str:
    return str(int(value))


def _float(value: Any) -> str:
    return repr(float(value))


def _string(value: Any) -> str:
    return escape(value if type(value) is str else string(value))


def _timestamp(value: Any) -> str:
    return escape(timestamp(value))


_SCALARS: dict[str, Callable[[Any], str]] = {
    "string": _string, "character": _string, "boolean": boolean, "integer": _integer, "long": _integer,
    "float": _float, "double": _float, "timestamp": _timestamp, "blob": _blob,
}


def scalar_text(shape: Shape | None) -> Callable[[Any], str]:
    """How a scalar of this shape reads, unescaped; the general rule without a shape."""
    if shape is None or shape.type_name in ("string", "character"):
        return string
    return timestamp if shape.type_name == "timestamp" else _SCALARS.get(shape.type_name, string)


class StructureWriter:
    """Writes the members of a structure; its fields are compiled when first used."""

    def __init__(self, shape: Any, compiler: "Compiler"):
        self._shape = shape
        self._compiler = compiler

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The members by name; what the model puts into headers is not among them."""
        return {name: self._compiler.field(name, member) for name, member in self._shape.members.items()
                if "location" not in member.serialization}

    def __call__(self, value: dict[str, Any], put: Put) -> None:
        fields = self.fields
        for name, content in value.items():
            if content is None:
                continue
            field = fields.get(name)
            if field is None:
                if name.startswith("_"):
                    continue
                raise ValueError(f"{self._shape.name} has no member {name}")
            start, text, writer, end = field
            if text is not None:
                put(start + text(content) + end)
            elif writer is not None:
                put(start)
                writer(content, put)
                put(end)


class Compiler:
    """Compiles output shapes; a shape that occurs in many places is compiled once.

    :param element: the name of a list's members where the model gives none
    """

    #: how scalars read, by the type of their shape
    scalars = _SCALARS

    def __init__(self, element: str = "item") -> None:
        self._element = element
        self._structures: dict[str, StructureWriter] = {}

    def compile(self, shape: Any) -> Writer:
        """The writer of a shape's content."""
        if shape.type_name == "structure":
            if shape.name not in self._structures:
                self._structures[shape.name] = StructureWriter(shape, self)
            return self._structures[shape.name]
        if shape.type_name == "list":
            return self._list(shape)
        text = self.scalars[shape.type_name]
        return lambda value, put: put(text(value))

    def field(self, name: str, shape: Any) -> Field:
        """The member `name` of a structure."""
        tag = shape.serialization.get("name", name)
        text = self.scalars.get(shape.type_name)
        return f"<{tag}>", text, None if text else self.compile(shape), f"</{tag}>"

    def _list(self, shape: Any) -> Writer:
        return self.items(shape.member.serialization.get("name", self._element), shape.member)

    def items(self, tag: str, shape: Any) -> Writer:
        """The writer of values of this shape, each in an element of its own."""
        start, end = f"<{tag}>", f"</{tag}>"
        text = self.scalars.get(shape.type_name)
        if text is not None:
            return lambda values, put: put("".join([start + text(value) + end for value in values]))
        write_member = self.compile(shape)

        def write(values: Any, put: Put) -> None:
            for value in values:
                put(start)
                write_member(value, put)
                put(end)
        return write
