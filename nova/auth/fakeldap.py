"""The directory of a cloud that has no LDAP server: the same tree, kept in Redis.

Searches read filters as LDAP writes them, entries obey the schema that slapd gets, changes are atomic.  Secret keys are
stored encrypted, with a key that only the hosts of the cloud have.
"""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nova import exception
from nova.auth import schema
from nova.auth.directory import Change, ChangeKind, Directory, Entry, Scope, split_dn
from nova.auth.filters import And, Equal, Filter, Like, Not, Or, Present, equalities, parse
from nova.auth.sealing import Sealer, load_key
from nova.datastore import PREFIX, Record, Store, record
from nova.process import in_thread, wait

#: attributes whose values are encrypted, and never matched by a filter
_SEALED = frozenset({"secretKey", "userPassword"})
#: attributes of which no two entries may have the same value, as slap.sh tells slapd (slapo-unique)
_UNIQUE = ("accessKey",)
_CSN, _CREATED = "entryCSN", "createTimestamp"
_KEY_MARK = PREFIX + "ldap:key"


@record("ldap_entry", indexes=("parent", "access_key"))
@dataclass(frozen=True)
class _Stored(Record):
    """An entry; the id is the normal form of its DN, `parent` that of the entry above.

    `birth` tells an entry from another of the same name that was there before it, whose versions are the same numbers.
    `created` is when it was made, as LDAP writes times; empty where nobody noted it.
    """

    dn: str
    parent: str
    birth: str = ""
    access_key: str = ""
    created: str = ""
    attributes: dict[str, list[str]] = field(default_factory=dict)


@record("ldap_value", listed=False)
@dataclass(frozen=True)
class _Value(Record):
    """Holds a value that must be unique; the id is ``<attribute>:<value>``, or ``birth:<value>`` for a birth."""

    owner: str


class FakeLdap(Directory):
    """A directory in Redis.

    :param roots: entries that are made, with those above them, when they are not there: what slap.sh does for slapd
    :param key_path: file of the key; made when there is none
    """

    def __init__(self, store: Store, roots: Sequence[str], key_path: str):
        self._store, self._roots, self._key_path = store, roots, key_path
        self._sealer: Sealer | None = None

    async def start(self) -> None:
        """Read the key and make the tree."""
        if self._sealer is None:
            sealer = Sealer(await wait(in_thread(load_key, os.path.abspath(self._key_path))))
            redis = self._store.redis
            await self._store.attempt(redis.set(_KEY_MARK, sealer.mark, nx=True))
            mark = await self._store.attempt(redis.get(_KEY_MARK))
            if mark is not None and mark.decode() != sealer.mark:
                raise exception.NovaError(f"the directory was encrypted with another key than the one in "
                                          f"{self._key_path}: copy that of the other hosts there")
            for root in self._roots:
                await self._make_root(root)
            self._sealer = sealer

    async def stop(self) -> None:
        """Nothing is held."""

    async def _make_root(self, dn: str) -> None:
        """Make an entry and those above it."""
        name = schema.normal_dn(dn)
        if await self._store.get(_Stored, name) is not None:
            return
        above = schema.parent(name)
        if above:
            await self._make_root(above)
        attribute, value = split_dn(dn)[0]
        classes = {"ou": ["organizationalUnit"], "o": ["organization"], "dc": ["dcObject", "organization"]}
        attributes = {"objectClass": classes.get(attribute.lower(), ["organizationalUnit"]), attribute: [value]}
        if attribute.lower() == "dc":
            attributes["o"] = [value]
        birth = secrets.token_hex(8)
        tx = self._store.transaction()
        tx.create(_Stored(name, dn=dn, parent=above, birth=birth, created=_now(),
                          attributes=schema.check(dn, attributes)))
        tx.create(_Value(f"birth:{birth}", owner=name))
        try:
            await tx.commit()
        except exception.Exists:
            return  # another process was faster

    async def _ready(self) -> Sealer:
        await self.start()
        if self._sealer is None:
            raise exception.Unavailable()
        return self._sealer

    # -- searching ---------------------------------------------------------------------------------------------------

    async def _search(self, base: str, scope: Scope, filter: Filter, attributes: tuple[str, ...]) -> list[Entry]:
        sealer = await self._ready()
        condition = parse(str(filter))
        try:
            candidates = await self._candidates(schema.normal_dn(base), scope, condition)
        except exception.InvalidParameterValue:
            return []  # slapd does not know such a name either
        return [self._entry(stored, attributes, sealer) for stored in candidates if _matches(stored, condition)]

    async def _candidates(self, base: str, scope: Scope, condition: Filter) -> list[_Stored]:
        """The entries in a scope, or the few of them that an index leaves."""
        if scope is Scope.BASE:
            return await self._store.get_many(_Stored, [base])
        if scope is Scope.ONE:
            return await self._store.find(_Stored, parent=base)
        for equal in equalities(condition):
            if equal.attribute.lower() == "accesskey":
                found = await self._store.find(_Stored, access_key=schema.normal("accessKey", equal.value))
                return [stored for stored in found if stored.id == base or stored.id.endswith("," + base)]
        level = await self._store.get_many(_Stored, [base])
        every = list(level)
        while level:
            pipeline = self._store.redis.pipeline(transaction=False)
            for stored in level:
                pipeline.smembers(_children_key(stored.id))
            answers = await self._store.attempt(pipeline.execute())
            level = await self._store.get_many(_Stored, [name.decode() for names in answers for name in names])
            every += level
        return every

    def _entry(self, stored: _Stored, asked: tuple[str, ...], sealer: Sealer) -> Entry:
        found: dict[str, list[str]] = {}
        for name in stored.attributes if "*" in asked else ():
            found[name] = stored.attributes[name]
        for name in asked:
            if name.lower() == _CSN.lower():
                found[name] = [_csn(stored)]
            elif name.lower() == _CREATED.lower():
                found[name] = [stored.created] if stored.created else []
            elif schema.knows(name):
                values = stored.attributes.get(schema.attribute(name).name)
                if values:
                    found[name] = values
        return Entry(stored.dn, {name: [sealer.open(v, _place(stored.id, name)) for v in values]
                                 if _is_sealed(name) else list(values) for name, values in found.items()})

    # -- changing ----------------------------------------------------------------------------------------------------

    async def _add(self, dn: str, attributes: dict[str, list[str]]) -> None:
        sealer = await self._ready()
        name = schema.normal_dn(dn)
        above = schema.parent(name)
        rdn, value = split_dn(dn)[0]
        if not any(given.lower() == rdn.lower() for given in attributes):
            attributes = {**attributes, rdn: [value]}  # slapd adds it, too
        stored = self._stored(name, dn, schema.check(dn, attributes), sealer, {}, secrets.token_hex(8))
        stored = replace(stored, created=_now())
        tx = self._store.transaction()
        tx.require_exists(_Stored, above)
        tx.create(stored)
        for id in _held_ids(stored):
            tx.create(_Value(id, owner=name))
        try:
            await tx.commit()
        except exception.Exists as error:
            raise exception.Exists("entry" if error.id == name else "value in", dn) from error
        except exception.NotFound as error:
            raise exception.NotFound(kind="entry", id=above) from error

    async def _modify(self, dn: str, changes: Sequence[Change], condition: Filter | None) -> None:
        sealer = await self._ready()
        name = schema.normal_dn(dn)
        while True:
            before = await self._must_get(name, dn, condition)
            attributes = self._entry(before, ("*",), sealer).attributes
            for change in changes:
                _apply(attributes, change, dn)
            after = self._stored(name, before.dn, schema.check(dn, attributes), sealer, before.attributes, before.birth)
            tx = self._store.transaction()
            tx.require_exists(_Value, f"birth:{before.birth}")
            tx.update(before, attributes=after.attributes, access_key=after.access_key)
            had, has = _held_ids(before), _held_ids(after)
            try:
                for value in await self._store.get_many(_Value, had - has):
                    tx.delete(value)
                for id in has - had:
                    tx.create(_Value(id, owner=name))
                await tx.commit()
                return
            except exception.Conflict:
                continue  # changed in between; look again
            except exception.NotFound:
                continue
            except exception.Exists as error:
                raise exception.Exists("value in", dn) from error

    async def _delete(self, dn: str, condition: Filter | None) -> None:
        await self._ready()
        name = schema.normal_dn(dn)
        while True:
            stored = await self._must_get(name, dn, condition)
            if await self._store.ids(_Stored, parent=name):
                raise exception.Conflict(kind="entry", id=dn)
            tx = self._store.transaction()
            tx.delete(stored)
            tx.require_empty(_children_key(name))
            for value in await self._store.get_many(_Value, _held_ids(stored)):
                tx.delete(value)
            tx.require_exists(_Value, f"birth:{stored.birth}")
            try:
                await tx.commit()
                return
            except (exception.Conflict, exception.NotFound):
                continue

    async def _must_get(self, name: str, dn: str, condition: Filter | None) -> _Stored:
        stored = await self._store.get(_Stored, name)
        if stored is None:
            raise exception.NotFound(kind="entry", id=dn)
        if condition is not None and not _matches(stored, parse(str(condition))):
            raise exception.Conflict(kind="entry", id=dn)
        return stored

    @staticmethod
    def _stored(name: str, dn: str, attributes: dict[str, list[str]], sealer: Sealer,
                before: Mapping[str, list[str]], birth: str) -> _Stored:
        """The record of an entry, secrets encrypted; those that did not change keep their text."""
        kept = {}
        for attribute, values in attributes.items():
            place = _place(name, attribute)
            if _is_sealed(attribute):
                same = before.get(attribute, [])
                if [sealer.open(v, place) for v in same] == values:
                    values = same
                else:
                    values = [sealer.seal(v, place) for v in values]
            kept[attribute] = values
        access_key = schema.normal("accessKey", attributes["accessKey"][0]) if "accessKey" in attributes else ""
        return _Stored(name, dn=dn, parent=schema.parent(name), birth=birth, access_key=access_key, attributes=kept)


def _is_sealed(name: str) -> bool:
    return schema.knows(name) and schema.attribute(name).name in _SEALED


def _place(entry: str, attribute: str) -> str:
    return f"{entry} {schema.attribute(attribute).name}"


def _children_key(name: str) -> str:
    """The set of the entries below one, which the index by parent is."""
    return f"{PREFIX}ldap_entrys:by-parent:{name}"


def _held_ids(stored: _Stored) -> set[str]:
    """The ids of the records that hold what is unique in an entry."""
    return {f"birth:{stored.birth}", *(f"{name}:{schema.normal(name, value)}" for name in _UNIQUE
                                       for value in stored.attributes.get(name, []))}


def _now() -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime())


def _csn(stored: _Stored) -> str:
    return f"{stored.birth}-{stored.version}"


def _apply(attributes: dict[str, list[str]], change: Change, dn: str) -> None:
    """Change the attributes as LDAP's modify does (RFC 4511, section 4.6)."""
    name = schema.attribute(change.attribute).name
    values = attributes.get(name, [])
    has = {schema.normal(name, value) for value in values}
    given = [schema.normal(name, value) for value in change.values]
    if change.kind is ChangeKind.REPLACE:
        attributes[name] = list(change.values)
    elif change.kind is ChangeKind.ADD:
        if has & set(given):
            raise exception.Exists("value in", dn)
        attributes[name] = [*values, *change.values]
    else:
        if not values or set(given) - has:
            raise exception.NotFound(kind="value in", id=dn)
        attributes[name] = [value for value in values if given and schema.normal(name, value) not in given]
    if not attributes[name]:
        del attributes[name]


def _matches(stored: _Stored, condition: Filter) -> bool:
    """Whether an entry matches; what cannot be told, for want of such an attribute, does not, negated or not."""
    return _truth(stored, condition) is True


def _truth(stored: _Stored, condition: Filter) -> bool | None:
    """RFC 4511, section 4.5.1.7: true, false or undefined."""
    if isinstance(condition, Not):
        inner = _truth(stored, condition.part)
        return None if inner is None else not inner
    if isinstance(condition, And | Or):
        decisive = isinstance(condition, Or)
        parts = [_truth(stored, part) for part in condition.parts]
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if isinstance(condition, Equal | Present | Like):
        return _holds(stored, condition)
    return None


def _holds(stored: _Stored, condition: Equal | Present | Like) -> bool | None:
    if condition.attribute.lower() == _CSN.lower():
        return not isinstance(condition, Equal) or condition.value == _csn(stored)
    if condition.attribute.lower() == _CREATED.lower() and not isinstance(condition, Like):
        return bool(stored.created) if isinstance(condition, Present) else condition.value == stored.created
    if not schema.knows(condition.attribute):
        return None
    name = schema.attribute(condition.attribute).name
    values = stored.attributes.get(name, [])
    if isinstance(condition, Present):
        return bool(values)
    if _is_sealed(name):
        return None
    if isinstance(condition, Equal):
        wanted = schema.normal(name, condition.value)
        return any(schema.normal(name, value) == wanted for value in values)
    if schema.attribute(name).matching != "caseIgnoreMatch":
        return None  # the schema has no rule for substrings
    return any(_is_like(schema.normal(name, value), condition) for value in values)


def _is_like(value: str, condition: Like) -> bool:
    parts = [part.casefold() for part in (condition.initial, *condition.middle, condition.final)]
    at = len(parts[0])
    if not value.startswith(parts[0]):
        return False
    for part in parts[1:-1]:
        at = value.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return len(value) - len(parts[-1]) >= at and value.endswith(parts[-1])
