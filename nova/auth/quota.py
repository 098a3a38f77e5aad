"""Limits of what users and projects may have.

:data:`LIMITS` names them.  Each has a default by flag for users and one for projects (``--user_instances``,
``--project_instances``, ...), which an override that is stored for one user or project replaces (:class:`Quota`).  What
is in use is counted in Redis, in the hash ``nova:usage:<account>`` of each account, ``user:<name>`` or
``project:<name>``.  A counter changes in the transaction that makes or removes the thing itself, and Redis refuses a
transaction that would take it past its limit: so requests at the same time do not exceed a limit, and nothing that
fails is counted.

Who makes things asks for the :class:`Allowance` of user and project, claims with it in the transaction
(:meth:`Allowance.claim`), and gives back with :func:`give`.  A new kind of thing adds a line to :data:`LIMITS`.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nova import events, exception, flags
from nova.compute.types import GIB, TYPES
from nova.context import Context
from nova.datastore import PREFIX, Record, Store, Transaction, key_of, read, record
from nova.flags import FLAGS, DEFINE_integer, DEFINE_list

#: what has limits of its own
SCOPES = ("user", "project")
INSTANCES, OBJECT_GB = "instances", "object_gb"


@dataclass(frozen=True)
class Limit:
    """One limit: what it counts in words, its defaults for a user and for a project, the error where it is passed.

    `unit` is what one of the limit stands for in the counter: bytes in a GiB, where bytes are counted.
    """

    what: str
    user: int
    project: int
    error: type[exception.NovaError]
    unit: int = 1


LIMITS: Mapping[str, Limit] = {
    INSTANCES: Limit("instances", 100, 100, exception.InstanceLimitExceeded),
    "volumes": Limit("volumes", 50, 50, exception.VolumeLimitExceeded),
    "volume_gb": Limit("GiB in one volume", 1000, 1000, exception.VolumeLimitExceeded),
    "total_volume_gb": Limit("GiB in volumes", 5000, 5000, exception.VolumeLimitExceeded),
    OBJECT_GB: Limit("GiB of object storage", 1000, 1000, exception.QuotaExceeded, unit=GIB),
    "addresses": Limit("public addresses", 10, 10, exception.AddressLimitExceeded),
}


def _types_are_known(words: list[str]) -> bool:
    return all(name in TYPES and number.removeprefix("-").isdecimal()
               for name, _, number in (word.partition("=") for word in words))


for _scope in SCOPES:
    for _name, _limit in LIMITS.items():
        DEFINE_integer(f"{_scope}_{_name}", getattr(_limit, _scope),
                       f"{_limit.what} that a {_scope} may have, unless an override says otherwise; -1: no limit",
                       lower_bound=-1)
    DEFINE_list(f"{_scope}_instances_of_type", [],
                f"TYPE=NUMBER,...: instances of single types that a {_scope} may have, within --{_scope}_instances")
    flags.check(f"{_scope}_instances_of_type", _types_are_known, f"it must be TYPE=NUMBER,... with {', '.join(TYPES)}")


def of_type(instance_type: str) -> str:
    """The name of the limit of instances of one type."""
    return f"{INSTANCES}:{instance_type}"


#: the names of all limits
NAMES = (*LIMITS, *map(of_type, TYPES))


def _describe(name: str) -> tuple[str, Limit]:
    """What a limit counts, in words, and the limit."""
    kind, _, instance_type = name.partition(":")
    limit = LIMITS[kind]
    return (f"{instance_type} {limit.what}" if instance_type else limit.what), limit


@record("quota")
@dataclass(frozen=True)
class Quota(Record):
    """The overrides of one account: the limits that differ from the defaults, by name; -1 is no limit."""

    values: dict[str, int] = field(default_factory=dict)


def account(scope: str, name: str) -> str:
    """The account of a user or a project."""
    return f"{scope}:{name}"


def _accounts(project_id: str, user_id: str) -> list[str]:
    return [account(scope, name) for scope, name in (("project", project_id), ("user", user_id)) if name]


def _key(of: str) -> str:
    return f"usage:{of}"


def _default(of: str, name: str) -> int:
    scope = of.partition(":")[0]
    kind, _, instance_type = name.partition(":")
    if not instance_type:
        return FLAGS[f"{scope}_{kind}"].value
    listed = dict(word.split("=", 1) for word in FLAGS[f"{scope}_instances_of_type"].value)
    return int(listed.get(instance_type, -1))


@dataclass(frozen=True)
class Figure:
    """What one account may have (None: any number) and has of one thing, in the unit of the limit."""

    account: str
    name: str
    limit: int | None
    used: float


class Allowance:
    """What a user may have in a project, and what the two have: a snapshot, which a commit finds outdated or not."""

    def __init__(self, overrides: Mapping[str, Mapping[str, int]], used: Mapping[str, Mapping[str, int]]):
        self._overrides, self._used = overrides, used

    def maximum(self, of: str, name: str) -> int | None:
        """How far an account's counter may go; None for any number."""
        limit = self._overrides[of].get(name, _default(of, name))
        return None if limit < 0 else limit * _describe(name)[1].unit

    def room(self, *names: str) -> int | None:
        """How many more all of these limits let the user have; None for any number."""
        rooms = [max(0, maximum - self._used[of].get(name, 0)) for of in self._used for name in names
                 if (maximum := self.maximum(of, name)) is not None]
        return min(rooms, default=None)

    def check(self, wanted: Mapping[str, int]) -> None:
        """Refuse what would pass a limit, as far as this snapshot tells.

        :param wanted: what is to be had in addition, by the limit's name
        :raises exception.NovaError: the error of the first limit that is passed, with the figures in its text
        """
        for of, used in self._used.items():
            for name, more in wanted.items():
                maximum, now = self.maximum(of, name), used.get(name, 0)
                if maximum is not None and more > 0 and now + more > maximum:
                    raise _refusal(of, name, more, now, maximum)

    def claim(self, tx: Transaction, wanted: Mapping[str, int]) -> None:
        """Count things in the transaction that makes them; the commit raises Exhausted where there are too many.

        Claims come after the operations that a repeated commit is known by, so that it is not taken for another one.
        """
        for of in self._used:
            for name, more in wanted.items():
                tx.add(_key(of), name, more, self.maximum(of, name) if more > 0 else None)

    def figures(self) -> list[Figure]:
        """Every limit of user and project and what is in use."""
        return [_figure(of, name, self.maximum(of, name), self._used[of].get(name, 0))
                for of in self._used for name in NAMES]


def _figure(of: str, name: str, maximum: int | None, used: int) -> Figure:
    unit = _describe(name)[1].unit
    return Figure(of, name, None if maximum is None else maximum // unit, used if unit == 1 else used / unit)


def _refusal(of: str, name: str, more: int, used: int, maximum: int) -> exception.NovaError:
    what, limit = _describe(name)
    scope, _, owner = of.partition(":")

    def shown(number: int) -> str:
        return str(number) if limit.unit == 1 else f"{number / limit.unit:.6g}"
    return limit.error(f"You have requested {shown(used + more - maximum)} more {what} than the limit of "
                       f"{shown(maximum)} of {scope} {owner} allows; {shown(used)} are in use.")


async def allowance(store: Store, project_id: str, user_id: str) -> Allowance:
    """What a user may have in a project.

    :param user_id: "" for what belongs to no user: only the project's limits count; project_id likewise
    """
    return allowance_of(project_id, user_id, await store.hashes(allowance_keys(project_id, user_id)))


def allowance_keys(project_id: str, user_id: str) -> list[str]:
    """The hashes that tell an allowance, for who reads them together with others; arguments as :func:`allowance`."""
    accounts = _accounts(project_id, user_id)
    return [*(key_of(Quota, of) for of in accounts), *(PREFIX + _key(of) for of in accounts)]


def allowance_of(project_id: str, user_id: str, rows: Sequence[Mapping[bytes, bytes]]) -> Allowance:
    """What the hashes of :func:`allowance_keys` tell."""
    accounts = _accounts(project_id, user_id)
    overrides, used = rows[:len(accounts)], rows[len(accounts):]
    return Allowance({of: read(Quota, row).values if row else {} for of, row in zip(accounts, overrides, strict=True)},
                     {of: _counts(row) for of, row in zip(accounts, used, strict=True)})


async def _counters(store: Store, accounts: Iterable[str]) -> dict[str, dict[str, int]]:
    names = list(accounts)
    pipeline = store.redis.pipeline(transaction=False)
    for of in names:
        pipeline.hgetall(PREFIX + _key(of))
    rows = await store.attempt(pipeline.execute()) if names else []
    return {of: _counts(row) for of, row in zip(names, rows, strict=True)}


def _counts(row: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in row.items()}


def is_limit(error: exception.Exhausted) -> bool:
    """Whether a commit was refused for the sake of a limit, and not of a pool or another counter."""
    return error.name.startswith(_key(""))


def give(tx: Transaction, project_id: str, user_id: str, given: Mapping[str, int]) -> None:
    """Stop counting things, in the transaction that removes them."""
    for of in _accounts(project_id, user_id):
        for name, number in given.items():
            tx.add(_key(of), name, -number)


async def usage(store: Store, project_id: str, user_id: str = "") -> list[Figure]:
    """What a project, and a user in addition, may have and has."""
    return (await allowance(store, project_id, user_id)).figures()


async def of_user(store: Store, user_id: str) -> list[Figure]:
    """What a user may have and has, in all projects together."""
    return (await allowance(store, "", user_id)).figures()


async def override(store: Store, context: Context | None, of: str, **changes: int | None) -> dict[str, int]:
    """Store limits for one account in place of the defaults.

    :param context: the request that asks for it; None for the operator of this host
    :param of: the :func:`account`
    :param changes: the limits by name (``instances:m1.tiny`` by ``**{...}``); None goes back to the default
    :returns: all that is stored for the account now
    :raises exception.InvalidParameterValue: there is no such limit, or it is no number
    """
    for name, value in changes.items():
        if name not in NAMES:
            raise exception.InvalidParameterValue(f"There is no limit '{name[:64]}'; there are {', '.join(NAMES)}")
        if value is not None and not -1 <= value <= 10**9:
            raise exception.InvalidParameterValue(f"The limit {name} must be -1 (none) or a number up to {10**9}")
    while True:
        now = await store.get(Quota, of)
        merged = {**(now.values if now else {}), **changes}
        values = {name: value for name, value in merged.items() if value is not None}
        tx = store.transaction()
        if now is None:
            tx.create(Quota(of, values=values))
        else:
            tx.update(now, values=values)
        await events.record(tx, context, "quota.set", target=of, limits=changes)
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound):
            continue  # somebody else changed it just now
        return values


async def forget(tx: Transaction, store: Store, of: str) -> None:
    """Remove an account's overrides, in the transaction that removes the user or the project."""
    found = await store.get(Quota, of)
    if found is not None:
        tx.delete(found)


# -- counting anew ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Holding:
    """Something that is there: whose it is and what it counts for."""

    project_id: str
    user_id: str
    counts: Mapping[str, int]


#: tells everything of some kind that is there
Holdings = Callable[[Store], AsyncIterator[Holding]]


@dataclass(frozen=True)
class Difference:
    """A counter that does not say what is there."""

    account: str
    name: str
    counted: int
    there: int


async def recount(store: Store, kinds: Iterable[Holdings], repair: bool = False) -> list[Difference]:
    """Compare the counters with what is there.

    Changes that happen meanwhile make no difference: one is only told if it is the same twice, with the same counter.

    :param kinds: one for each kind of thing that has limits
    :param repair: correct the counters, too
    """
    kinds = list(kinds)
    found = await _differences(store, kinds)
    if found:
        again = await _differences(store, kinds)
        found = [difference for difference in found if difference in again]
    if repair and found:
        tx = store.transaction()
        for d in found:
            tx.add(_key(d.account), d.name, d.there - d.counted)
        await tx.commit()
    return found


async def _differences(store: Store, kinds: Iterable[Holdings]) -> list[Difference]:
    before = await _all_counters(store)
    there: dict[tuple[str, str], int] = {}
    for holdings in kinds:
        async for holding in holdings(store):
            for of in _accounts(holding.project_id, holding.user_id):
                for name, number in holding.counts.items():
                    there[of, name] = there.get((of, name), 0) + number
    after = await _all_counters(store)
    return [Difference(of, name, after.get((of, name), 0), there.get((of, name), 0))
            for of, name in sorted(there.keys() | after.keys())
            if before.get((of, name), 0) == after.get((of, name), 0) != there.get((of, name), 0)]


async def _all_counters(store: Store) -> dict[tuple[str, str], int]:
    start = PREFIX + _key("")
    accounts: list[str] = []
    cursor = 0
    while True:
        cursor, keys = await store.attempt(store.redis.scan(cursor, match=start + "*", count=1000))
        accounts += [key.decode().removeprefix(start) for key in keys]
        if not cursor:
            break
    counters = await _counters(store, dict.fromkeys(accounts))
    return {(of, name): value for of, row in counters.items() for name, value in row.items()}
