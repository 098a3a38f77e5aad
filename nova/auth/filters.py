"""LDAP search filters made of typed pieces, their text (RFC 4515), and reading that text back.

A filter is never pasted together from input: values go into pieces, and only :func:`str` makes text of them, with
everything that means something to LDAP escaped.  The fake directory reads the same text that a real one gets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ldap3.utils.conv import escape_filter_chars

_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class FilterError(ValueError):
    """A text is no filter, or of a kind that Nova does not use."""


class Filter:
    """Base of the pieces.  ``&``, ``|`` and ``~`` combine them."""

    def __and__(self, other: "Filter") -> "Filter":
        return And((self, other))

    def __or__(self, other: "Filter") -> "Filter":
        return Or((self, other))

    def __invert__(self) -> "Filter":
        return Not(self)


def _escape(value: str) -> str:
    return escape_filter_chars(value, "utf-8")


def _check_attribute(name: str) -> None:
    if not _ATTRIBUTE.fullmatch(name):
        raise FilterError(f"{name!r} is no attribute")


@dataclass(frozen=True)
class Equal(Filter):
    """The attribute has the value."""

    attribute: str
    value: str

    def __post_init__(self) -> None:
        _check_attribute(self.attribute)

    def __str__(self) -> str:
        return f"({self.attribute}={_escape(self.value)})"


@dataclass(frozen=True)
class Present(Filter):
    """The attribute has any value."""

    attribute: str

    def __post_init__(self) -> None:
        _check_attribute(self.attribute)

    def __str__(self) -> str:
        return f"({self.attribute}=*)"


@dataclass(frozen=True)
class Like(Filter):
    """The attribute has a value that begins with `initial`, ends with `final` and has `middle`, in order, between."""

    attribute: str
    initial: str = ""
    middle: tuple[str, ...] = ()
    final: str = ""

    def __post_init__(self) -> None:
        _check_attribute(self.attribute)
        if not (self.initial or self.final or self.middle) or not all(self.middle):
            raise FilterError("a substring is empty")

    def __str__(self) -> str:
        return f"({self.attribute}={'*'.join(map(_escape, (self.initial, *self.middle, self.final)))})"


@dataclass(frozen=True)
class And(Filter):
    """All of the parts."""

    parts: tuple[Filter, ...]

    def __str__(self) -> str:
        return f"(&{''.join(map(str, self.parts))})"


@dataclass(frozen=True)
class Or(Filter):
    """Any of the parts."""

    parts: tuple[Filter, ...]

    def __str__(self) -> str:
        return f"(|{''.join(map(str, self.parts))})"


@dataclass(frozen=True)
class Not(Filter):
    """Not the part."""

    part: Filter

    def __str__(self) -> str:
        return f"(!{self.part})"


#: what every entry has
ANY = Present("objectClass")


def parse(text: str) -> Filter:
    """The filter that a text stands for; :raises FilterError:"""
    piece, rest = _parse(text, 0, 0)
    if rest != len(text):
        raise FilterError(f"something follows the filter: {text[rest:rest + 40]!r}")
    return piece


def equalities(piece: Filter) -> Iterator[Equal]:
    """The equalities without which nothing can match."""
    if isinstance(piece, Equal):
        yield piece
    elif isinstance(piece, And):
        for part in piece.parts:
            yield from equalities(part)


def _parse(text: str, at: int, depth: int) -> tuple[Filter, int]:
    if depth > 50 or text[at:at + 1] != "(":
        raise FilterError(f"a filter must begin at {text[at:at + 40]!r}")
    at += 1
    kind = text[at:at + 1]
    if kind and kind in "&|!":
        parts, at = [], at + 1
        while text[at:at + 1] == "(":
            part, at = _parse(text, at, depth + 1)
            parts.append(part)
        piece: Filter
        if kind == "!":
            if len(parts) != 1:
                raise FilterError("'not' takes one filter")
            piece = Not(parts[0])
        else:
            piece = (And if kind == "&" else Or)(tuple(parts))
        end = at
    else:
        end = text.find(")", at)
        if end < 0:
            raise FilterError("a parenthesis is not closed")
        piece = _parse_item(text[at:end])
    if text[end:end + 1] != ")":
        raise FilterError("a parenthesis is not closed")
    return piece, end + 1


def _parse_item(item: str) -> Filter:
    attribute, equals, value = item.partition("=")
    if not equals or not _ATTRIBUTE.fullmatch(attribute):
        raise FilterError(f"not attribute=value: {item[:40]!r}")
    if "(" in value:
        raise FilterError("a parenthesis is not escaped")
    if value == "*":
        return Present(attribute)
    parts = [_unescape(part) for part in value.split("*")]
    if len(parts) == 1:
        return Equal(attribute, parts[0])
    return Like(attribute, parts[0], tuple(parts[1:-1]), parts[-1])


def _unescape(text: str) -> str:
    """RFC 4515: a backslash and two hexadecimal digits stand for one byte of the value's UTF-8."""
    head, *escaped = text.split("\\")
    data = head.encode()
    for part in escaped:
        if not re.match(r"[0-9A-Fa-f]{2}", part):
            raise FilterError("a backslash without two hexadecimal digits")
        data += bytes([int(part[:2], 16)]) + part[2:].encode()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FilterError("the value is not UTF-8") from error
