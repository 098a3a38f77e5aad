"""The contract of a directory: entries in a tree, at the level of LDAP's own operations (RFC 4511).

nova.auth.ldapdriver talks to a real LDAP server, nova.auth.fakeldap keeps the tree in Redis; one test suite runs
against both.  What users and projects are made of is nova.auth.tree's matter.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from nova import exception
from nova.auth.filters import ANY, Filter

#: how often a change is tried again when others keep changing the same
TRIES = 50
#: bytes that a DN may have; OpenLDAP's own limit (SLAP_LDAPDN_MAXLEN)
MAX_DN = 8192
#: bytes that one element of a DN may have, as it is written and in normal form together: back-mdb keeps both in one
#: LMDB value of 511 bytes
MAX_RDN = 480
#: bytes that one value may have
MAX_VALUE = 65536


class SchemaViolation(exception.InvalidParameterValue):
    """An entry would lack what its classes require, or have what they do not allow."""

    message = "The directory's schema does not allow this."


class Scope(Enum):
    """What a search looks at: the entry itself, its children, or all below and itself."""

    BASE = "base"
    ONE = "one"
    SUBTREE = "subtree"


@dataclass(frozen=True)
class Entry:
    """One entry: its DN, and the values of its attributes, named as they were asked for."""

    dn: str
    attributes: dict[str, list[str]]

    def values(self, name: str) -> list[str]:
        """All values of an attribute."""
        return self.attributes.get(name, [])

    def value(self, name: str, default: str = "") -> str:
        """The first value of an attribute."""
        return next(iter(self.values(name)), default)


class ChangeKind(Enum):
    """How a change works: values are added, taken away (all, when it names none), or put in the place of all."""

    ADD = "add"
    DELETE = "delete"
    REPLACE = "replace"


@dataclass(frozen=True)
class Change:
    """One change of an entry's attribute."""

    kind: ChangeKind
    attribute: str
    values: tuple[str, ...] = ()


def add_values(attribute: str, *values: str) -> Change:
    """Add values, none of which may be there."""
    return Change(ChangeKind.ADD, attribute, values)


def delete_values(attribute: str, *values: str) -> Change:
    """Take values away, all of which must be there; without values, the attribute."""
    return Change(ChangeKind.DELETE, attribute, values)


def replace_values(attribute: str, *values: str) -> Change:
    """Put values in the place of those that are there, if any."""
    return Change(ChangeKind.REPLACE, attribute, values)


# -- names ------------------------------------------------------------------------------------------------------------

def escape_rdn(value: str) -> str:
    """A value as it stands in a DN (RFC 4514, section 2.4)."""
    text = "".join(f"\\{c}" if c in '\\,+"<>;=' else c for c in value).replace("\0", "\\00")
    if text.startswith(("#", " ")):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text


def child(parent: str, attribute: str, value: str) -> str:
    """The DN of the entry below `parent` that is named `attribute`=`value`."""
    return f"{attribute}={escape_rdn(value)},{parent}"


def split_dn(dn: str) -> list[tuple[str, str]]:
    """The (attribute, value) pairs of a DN, lowest first.

    :raises exception.InvalidParameterValue: it is no DN, or names an entry by several attributes, which Nova never does
    """
    pairs: list[tuple[str, str]] = []
    at = 0
    while at <= len(dn):
        equals = dn.find("=", at)
        attribute = dn[at:equals].strip() if equals >= 0 else ""
        if not attribute or not attribute.replace("-", "").isalnum():
            raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name")
        value, at = _read_value(dn, equals + 1)
        pairs.append((attribute, value))
        if at == len(dn):
            return pairs
        at += 1
    raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name")


def _read_value(dn: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`, and where it ends: at a comma or at the end."""
    data = bytearray()
    kept = 0  # bytes that are not spaces at the end
    while at < len(dn) and dn[at] != ",":
        character = dn[at]
        if character == "\\":
            pair = dn[at + 1:at + 3]
            if len(pair) == 2 and all(c in "0123456789abcdefABCDEF" for c in pair):
                data.append(int(pair, 16))
                at += 3
            elif pair and pair[0] in '\\,+"<>;= #':
                data += pair[0].encode()
                at += 2
            else:
                raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name")
            kept = len(data)
            continue
        if character in '+"<>;\0':
            raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name of the kind that Nova uses")
        if character != " " or data:
            data += character.encode()
        if character != " ":
            kept = len(data)
        at += 1
    try:
        value = bytes(data[:kept]).decode()
    except UnicodeDecodeError as error:
        raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name") from error
    if not value:
        raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name")
    return value, at


def check_value(value: str, what: str = "value") -> None:
    """:raises exception.InvalidParameterValue: LDAP cannot hold the text as a value"""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise exception.InvalidParameterValue(f"The {what} is not valid Unicode.") from None
    if not value or "\0" in value or size > MAX_VALUE:
        raise exception.InvalidParameterValue(
            f"The directory cannot hold the {what}: it is empty, has a NUL or is longer than {MAX_VALUE} bytes.")


def check_dn(dn: str) -> None:
    """:raises exception.InvalidParameterValue: LDAP has no such name"""
    check_value(dn, "name")
    if len(dn.encode()) > MAX_DN:
        raise exception.InvalidParameterValue(f"The name is longer than the {MAX_DN} bytes that LDAP allows.")
    for attribute, value in split_dn(dn):
        check_value(value, "name")
        written = f"{attribute}={escape_rdn(value)}".replace("\\", "\\5")  # as slapd writes it, in hexadecimal
        if len(written.encode()) + len(unicodedata.normalize("NFKD", written).casefold().encode()) > MAX_RDN:
            raise exception.InvalidParameterValue(f"The name '{value[:40]}...' is too long for the directory.")


# -- the contract -----------------------------------------------------------------------------------------------------

class Directory(ABC):
    """A tree of entries.

    Every operation raises :class:`exception.Unavailable` while the server is away, and
    :class:`exception.InvalidParameterValue` for what LDAP cannot hold.  A `condition` is a filter that the entry must
    match at the moment of the change (RFC 4528); :class:`exception.Conflict` when it does not.
    """

    @abstractmethod
    async def start(self) -> None:
        """Get ready; a server that is away is no error.  May be called again."""

    @abstractmethod
    async def stop(self) -> None:
        """Let connections and threads go."""

    async def search(self, base: str, scope: Scope, filter: Filter = ANY,
                     attributes: Sequence[str] = ("*",)) -> list[Entry]:
        """The entries that match, in no order; none when there is no `base`.

        :param attributes: which attributes come along; ``*`` are all that users see; ``entryCSN`` changes whenever
            the entry does, ``createTimestamp`` is when it was made
        """
        try:
            check_dn(base)
            str(filter).encode()
        except (exception.InvalidParameterValue, UnicodeEncodeError):
            return []  # a name that cannot be is not there
        return await self._search(base, scope, filter, tuple(attributes))

    async def add(self, dn: str, attributes: Mapping[str, Sequence[str]]) -> None:
        """Add an entry.

        :raises exception.Exists: there is one, or another one has a value that must be unique
        :raises exception.NotFound: what it would be below is not there
        :raises SchemaViolation:
        """
        check_dn(dn)
        _check_values(attributes)
        await self._add(dn, {name: list(values) for name, values in attributes.items() if values})

    async def modify(self, dn: str, changes: Sequence[Change], condition: Filter | None = None) -> None:
        """Change an entry: all of the changes or none.

        :raises exception.NotFound: no such entry, or a value to take away is not there
        :raises exception.Exists: a value to add is there, or another entry has a value that must be unique
        :raises SchemaViolation, exception.Conflict:
        """
        check_dn(dn)
        for change in changes:
            _check_values({change.attribute: change.values})
        await self._modify(dn, changes, condition)

    async def delete(self, dn: str, condition: Filter | None = None) -> None:
        """Remove an entry that has none below it.

        :raises exception.NotFound: no such entry
        :raises exception.Conflict: there are some below it, or `condition` does not hold
        """
        check_dn(dn)
        await self._delete(dn, condition)

    @abstractmethod
    async def _search(self, base: str, scope: Scope, filter: Filter, attributes: tuple[str, ...]) -> list[Entry]: ...

    @abstractmethod
    async def _add(self, dn: str, attributes: dict[str, list[str]]) -> None: ...

    @abstractmethod
    async def _modify(self, dn: str, changes: Sequence[Change], condition: Filter | None) -> None: ...

    @abstractmethod
    async def _delete(self, dn: str, condition: Filter | None) -> None: ...


def _check_values(attributes: Mapping[str, Sequence[str]]) -> None:
    for name, values in attributes.items():
        for value in values:
            check_value(value, name)


async def retried(attempt: Callable[[], Awaitable[None]]) -> None:
    """Make an attempt again as long as somebody else is faster, which it tells by :class:`exception.Conflict`.

    :raises exception.Unavailable: somebody always is
    """
    for _ in range(TRIES):
        try:
            return await attempt()
        except exception.Conflict:
            continue
    raise exception.Unavailable()
