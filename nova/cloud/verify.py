"""Whether the cloud's state agrees with itself.

Records are compared with their indexes, pools with their owners, claims and limits with what is there.  Nothing stops
meanwhile, and what is read one after the other may differ for a moment: so everything is looked at twice, and only what
differs the same way both times is told.  A repair is atomic and does nothing where the difference is gone; what could
not be repaired without guessing has none.
"""

import asyncio
import functools
import ipaddress
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from nova import datastore, exception
from nova.auth import quota
from nova.auth.manager import AuthManager
from nova.cloud.public_keys import PublicKeys
from nova.compute.models import Instance, claims, claims_key
from nova.compute.models import holdings as compute_holdings
from nova.datastore import PREFIX, Pool, Record, Store
from nova.image.models import Image
from nova.network.models import ALLOTMENTS, Network
from nova.objectstore import captures, versions
from nova.objectstore import images as object_images
from nova.objectstore.holdings import holdings as object_holdings
from nova.objectstore.models import Bucket, Object, object_id

Repair = Callable[[], Awaitable[object]]
R = TypeVar("R", bound=Record)
T = TypeVar("T")

#: seconds between the two looks
PAUSE = 1.0
_BATCH = 1000
#: everything that counts towards limits
HOLDINGS = (compute_holdings, object_holdings)

#: brings one set's entry of a record in line: ARGV is the record's key, the field that the set is an index of or '' for
#: the set of all, the value that it is an index by, the set's key, the entry, 'many' where the field is a list
_REPAIR_ENTRY = """
local there
if ARGV[2] == '' then there = redis.call('EXISTS', ARGV[1]) == 1
elseif ARGV[6] ~= 'many' then there = redis.call('HGET', ARGV[1], ARGV[2]) == ARGV[3]
else
  there = false
  for _, member in ipairs(cjson.decode(redis.call('HGET', ARGV[1], ARGV[2]) or '[]')) do
    there = there or member == ARGV[3]
  end
end
if there then redis.call('SADD', ARGV[4], ARGV[5])
else redis.call('SREM', ARGV[4], ARGV[5]) end
return 1
"""

#: removes a member of a bucket's index for which there is no version: ARGV is the key of the current version's record,
#: of the record that the version has as an older one, the version's id as clients have it ('' for whatever is live and
#: current), the index, the member
_REPAIR_LISTING = """
local current = redis.call('EXISTS', ARGV[1]) == 1
local marker = redis.call('HGET', ARGV[1], 'is_marker') == '1'
local id = redis.call('HGET', ARGV[1], 'version_id')
if not id or id == '' then id = 'null' end
local there
if ARGV[3] == '' then there = current and not marker
else there = redis.call('EXISTS', ARGV[2]) == 1 or marker and id == ARGV[3] end
if not there then redis.call('ZREM', ARGV[4], ARGV[5]) end
return 1
"""

#: sets a counter that still has the value that was found: ARGV is the hash, the field, that value, the right one
_REPAIR_COUNTER = """
if (redis.call('HGET', ARGV[1], ARGV[2]) or '0') == ARGV[3] then redis.call('HSET', ARGV[1], ARGV[2], ARGV[4]) end
return 1
"""


@dataclass(frozen=True)
class Difference:
    """One disagreement.

    `check` is what was compared, `about` the key or id; `repair` corrects it, where that is safe.
    """

    check: str
    about: str
    what: str
    repair: Repair | None = field(default=None, compare=False)


async def verify(store: Store, auth: AuthManager, pause: float = PAUSE) -> list[Difference]:
    """Everything that disagrees.

    :param pause: seconds between the two looks
    """
    first = await _all(store, auth)
    if not first:
        return []
    await asyncio.sleep(pause)
    again = await _all(store, auth)
    return [difference for difference in again if difference in first]


async def repair(differences: Iterable[Difference]) -> list[Difference]:
    """Repair what can be; tells which had a repair."""
    repaired = []
    for difference in differences:
        if difference.repair is not None:
            await difference.repair()
            repaired.append(difference)
    return repaired


async def _all(store: Store, auth: AuthManager) -> list[Difference]:
    keys = await _keys(store)
    networks, instances = await _records(store, Network, keys), await _records(store, Instance, keys)
    buckets, images = await _records(store, Bucket, keys), await _records(store, Image, keys)
    found = [difference async for difference in _indexes(store, keys)]
    indexes_agree = not found
    for check in (_buckets(store, [*buckets, object_images.BUCKET, captures.BUCKET]), _allotments(store, networks),
                  _addresses(store, networks, instances), _claims(store, instances, keys),
                  _owners(auth, instances, images, buckets), _public_keys(PublicKeys(store, auth))):
        found += [difference async for difference in check]
    if indexes_agree:  # what counts towards limits is found by the indexes
        found += [difference async for difference in _limits(store)]
    return found


async def _records(store: Store, cls: type[R], keys: list[str]) -> list[R]:
    """All records of a kind, found by their keys: the indexes may be wrong."""
    prefix = next(kind.prefix for kind in datastore.kinds() if kind.cls is cls)
    ids = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    return [record for batch in _batches(ids) for record in await store.get_many(cls, batch)]


# -- records and indexes ----------------------------------------------------------------------------------------------

async def _indexes(store: Store, keys: list[str]) -> AsyncIterator[Difference]:
    for kind in datastore.kinds():
        if not kind.listed and not kind.indexes:
            continue
        ids = [key.removeprefix(kind.prefix) for key in keys if key.startswith(kind.prefix)]
        values = await _values(store, kind, ids)
        if kind.listed:
            listed = await _members(store, kind.all_key)
            for id in sorted(listed ^ set(ids)):
                what = "there is no such record" if id in listed else "the record is not in the list of all"
                yield Difference("index", kind.prefix + id, what, _entry(store, kind, id, "", "", kind.all_key))
        for name in kind.indexes:
            async for difference in _index(store, kind, name, values, keys):
                yield difference


async def _index(store: Store, kind: datastore.Kind, name: str, values: dict[str, dict[str, str]],
                 keys: list[str]) -> AsyncIterator[Difference]:
    prefix = kind.index_prefix(name)
    wanted = {(value, id) for id, row in values.items() if row.get(name)
              for value in (json.loads(row[name]) if name in kind.many else [row[name]])}
    there = set()
    for key in keys:
        if key.startswith(prefix):
            there |= {(key.removeprefix(prefix), id) for id in await _members(store, key)}
    for value, id in sorted(wanted ^ there):
        how = "not indexed" if (value, id) in wanted else "wrongly indexed"
        yield Difference("index", kind.prefix + id, f"it is {how} by {name}={value}",
                         _entry(store, kind, id, name, value, prefix + value))


def _entry(store: Store, kind: datastore.Kind, id: str, name: str, value: str, key: str) -> Repair:
    arguments = [text.encode() for text in (kind.prefix + id, name, value, key, id,
                                            "many" if name in kind.many else "one")]
    return lambda: store.script(_REPAIR_ENTRY, arguments)


async def _keys(store: Store) -> list[str]:
    """All keys of Nova, sorted."""
    found: set[str] = set()
    cursor = 0
    while True:
        cursor, batch = await store.attempt(store.redis.scan(cursor, match=PREFIX + "*", count=_BATCH))
        found.update(key.decode(errors="replace") for key in batch)
        if not cursor:
            return sorted(found)


async def _members(store: Store, key: str) -> set[str]:
    return {member.decode() for member in await store.attempt(store.redis.smembers(key))}


async def _values(store: Store, kind: datastore.Kind, ids: list[str]) -> dict[str, dict[str, str]]:
    """The indexed fields of records, as they are stored."""
    rows: dict[str, dict[str, str]] = {}
    for batch in _batches(ids) if kind.indexes else ():
        pipeline = store.redis.pipeline(transaction=False)
        for id in batch:
            pipeline.hmget(kind.prefix + id, list(kind.indexes))
        for id, row in zip(batch, await store.attempt(pipeline.execute()), strict=True):
            rows[id] = {name: value.decode() for name, value in zip(kind.indexes, row, strict=True)
                        if value is not None}
    return rows


def _batches(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start:start + _BATCH]


async def _buckets(store: Store, buckets: list[Bucket]) -> AsyncIterator[Difference]:
    for bucket in buckets:
        for index in (bucket.keys_key, bucket.versions_key):
            members = await store.attempt(store.redis.zrange(index, 0, -1))
            for batch in _batches(members):
                wanted = [(member, *_listed(bucket, index, member)) for member in batch]
                ids = {id for _, key, version in wanted for id in _places(bucket, key, version)}
                there = {}
                for record in await store.get_many(Object, ids, at_once=True):
                    there[record.id] = (versions.shown(record), record.is_marker)
                for member, key, version in wanted:
                    if not _is_listed_rightly(bucket, there, key, version):
                        yield Difference(
                            "bucket", f"{bucket.id}/{key}", "it is listed, and there is no such object" if not version
                            else f"its version {version} is listed, and there is none",
                            _unlist(store, bucket, index, member, key, version))


def _listed(bucket: Bucket, index: str, member: bytes) -> tuple[str, str]:
    """Key and version that a member of an index stands for; the version is '' for the live current one."""
    return versions.read_member(member) if index == bucket.versions_key else (member.decode(), "")


def _places(bucket: Bucket, key: str, version: str) -> list[str]:
    """The ids of the records that the version may have."""
    id = object_id(bucket.id, key)
    return [id, versions.record_id(id, version)] if version else [id]


def _is_listed_rightly(bucket: Bucket, there: dict[str, tuple[str, bool]], key: str, version: str) -> bool:
    id = object_id(bucket.id, key)
    if not version:
        return id in there and not there[id][1]
    return versions.record_id(id, version) in there or there.get(id) == (version, True)


def _unlist(store: Store, bucket: Bucket, index: str, member: bytes, key: str, version: str) -> Repair:
    prefix = next(kind.prefix for kind in datastore.kinds() if kind.cls is Object)
    places = [prefix + id for id in _places(bucket, key, version)]
    arguments = [text.encode() for text in (places[0], places[-1], version, index)]
    return lambda: store.script(_REPAIR_LISTING, [*arguments, member])


# -- pools and claims -------------------------------------------------------------------------------------------------

async def _allotments(store: Store, networks: list[Network]) -> AsyncIterator[Difference]:
    async for difference in _pool(store, ALLOTMENTS, {n.id: n.allotment for n in networks}, Network, None):
        yield difference


async def _addresses(store: Store, networks: list[Network], instances: list[Instance]) -> AsyncIterator[Difference]:
    for network in networks:
        if not network.seeded:
            continue
        held = {i.id: i.private_ip for i in instances if i.network_id == network.id and i.private_ip}
        items = [str(address) for address in ipaddress.ip_network(network.cidr)][3:-1]
        async for difference in _pool(store, network.addresses, held, Instance, items):
            yield difference


async def _pool(store: Store, pool: Pool, held: dict[str, str], cls: type[Record],
                items: list[str] | None) -> AsyncIterator[Difference]:
    """Compare a pool with what its owners hold.

    :param held: owner -> item, as the owners' records have it
    :param items: everything that should be in the pool, owned or free, if that is known
    """
    free = [item.decode() for item in await store.attempt(store.redis.lrange(pool.key, 0, -1))]
    owners = {item.decode(): owner.decode()
              for item, owner in (await store.attempt(store.redis.hgetall(pool.owners_key))).items()}
    for item, owner in sorted(owners.items()):
        if held.get(owner) != item:
            yield Difference("pool", pool.name, f"{item} is taken for {owner}, which does not have it",
                             _give_back(store, pool, owner, item, cls))
    for owner, item in sorted(held.items()):
        if owners.get(item) != owner:
            yield Difference("pool", pool.name, f"{owner} has {item}, which is not taken for it")
    for item, count in sorted(Counter(free).items()):
        if count > 1:
            yield Difference("pool", pool.name, f"{item} is free {count} times")
        if item in owners:
            yield Difference("pool", pool.name, f"{item} is free, and taken for {owners[item]}")
    for item in sorted(set(items or ()) - set(free) - set(owners)):
        yield Difference("pool", pool.name, f"{item} is neither free nor taken")


def _give_back(store: Store, pool: Pool, owner: str, item: str, cls: type[Record]) -> Repair:
    async def give() -> None:
        record = await store.get(cls, owner)
        if record is not None and item in (getattr(record, "allotment", ""), getattr(record, "private_ip", "")):
            return
        tx = store.transaction()
        if record is None:
            tx.require_missing(cls, owner)
        else:
            tx.expect(record)
        tx.give(pool, owner, item)
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound):
            return  # it changes at this moment; the next look tells
    return give


async def _claims(store: Store, instances: list[Instance], keys: list[str]) -> AsyncIterator[Difference]:
    prefix = PREFIX + claims_key("")
    hosts = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    sums: Counter[tuple[str, str]] = Counter()
    for instance in instances:
        if instance.private_ip:  # what is given back when nothing is left of it, together with its claims
            hosts.add(instance.host)
            sums[instance.host, "memory_mb"] += instance.memory_mb
            sums[instance.host, "vcpus"] += instance.vcpus
    found = await claims(store, sorted(hosts))
    for host in sorted(hosts):
        for name in ("memory_mb", "vcpus"):
            claimed, right = found[host].get(name, 0), sums[host, name]
            if claimed != right:
                yield Difference("claim", host, f"{claimed} {name} are claimed, its instances have {right}",
                                 _counter(store, host, name, claimed, right))


def _counter(store: Store, host: str, name: str, claimed: int, right: int) -> Repair:
    arguments = [text.encode() for text in (PREFIX + claims_key(host), name, str(claimed), str(right))]
    return lambda: store.script(_REPAIR_COUNTER, arguments)


async def _limits(store: Store) -> AsyncIterator[Difference]:
    for found in await quota.recount(store, HOLDINGS):
        yield Difference("limit", found.account, f"{found.counted} {found.name} are counted, there are {found.there}",
                         functools.partial(quota.recount, store, HOLDINGS, repair=True))


# -- owners -----------------------------------------------------------------------------------------------------------

async def _owners(auth: AuthManager, instances: list[Instance], images: list[Image],
                  buckets: list[Bucket]) -> AsyncIterator[Difference]:
    projects = {project.id for project in await auth.projects()}
    living = [instance for instance in instances if instance.state != "terminated"]
    owned: list[Instance | Image | Bucket] = [*living, *images, *buckets]
    for record in owned:
        if record.project_id not in projects:
            yield Difference("owner", f"{type(record).__name__.lower()} {record.id}",
                             f"its project {record.project_id} does not exist")


async def _public_keys(keys: PublicKeys) -> AsyncIterator[Difference]:
    missing, stale = await keys.differences()
    for pair in missing:
        yield Difference("directory", f"key pair {pair.id}", f"the directory has no copy of it below {pair.user_id}",
                         functools.partial(keys.make_up, pair))
    for key in stale:
        yield Difference("directory", f"key pair {key.key_pair_id}",
                         f"the directory has a copy below {key.user_id}, and there is no such key pair",
                         functools.partial(keys.withdraw, key))
