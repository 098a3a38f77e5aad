"""Removes what no record names: files that a crash left between publishing them and committing their record, or between
committing a change and removing what it made needless; descriptions of buckets and uploads that are gone.

Nothing is removed where the datastore is not the one that knew the directory (it was lost, or replaced by an older
one): then its records are rebuilt first, ``nova-manage objectstore reindex``.
"""

import asyncio
import contextlib
import logging
import time
import uuid

from nova import exception, process
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import description, multipart, objects
from nova.objectstore.models import Bucket, Object, Part, Upload
from nova.objectstore.storage import Register, Storage, owner_of

log = logging.getLogger(__name__)

DEFINE_integer("objects_orphan_age", 3600, "seconds after which a file that no record names is removed", lower_bound=0)
DEFINE_integer("objects_sweep_interval", 3600, "seconds between two searches for such files", lower_bound=1)
_BATCH = 500
#: the set of the directories whose files the datastore knows, by what their file `id` says
_KNOWN = f"{PREFIX}object-directories"
#: ARGV: key of the set, an id.  Adds it to an empty set; whether that could be.
_FIRST = """
if redis.call('SCARD', ARGV[1]) > 0 then return 0 end
return redis.call('SADD', ARGV[1], ARGV[2])
"""
#: how often, and after how many seconds, an id is looked for that another process is about to write
_TURNS, _PAUSE = 10, 0.2


class StrangeDirectory(exception.NovaError):
    """There is none of the objects in it that the datastore has."""

    message = ("{path} has no file 'id': it is not the directory of the objects that Redis knows. Is it mounted? If it "
               "is to take their place, run 'nova-manage objectstore reindex' first")


async def is_known(store: Store, files: Storage) -> bool:
    """Whether the datastore has the records of the files; the first directory of all becomes known to it.

    A directory without an id is not known where there is another: it is what the host has in place of the one that all
    share, say because that is not mounted.

    :raises DatastoreUnavailable:
    """
    there = await process.wait(files.pool.run(files.id))
    if there:
        return bool(await store.attempt(store.redis.sismember(_KNOWN, there)))
    id = uuid.uuid4().hex
    # first: a directory with an id that nobody knows is a lost one
    if not await store.script(_FIRST, [_KNOWN.encode(), id.encode()]):
        return False
    await process.wait(files.pool.run(files.set_id, id))
    return True


async def refuse_stranger(store: Store, files: Storage) -> None:
    """Refuse to work with a directory that is empty where the objects should be: what is put there, others do not
    find.

    :raises StrangeDirectory:
    """
    with contextlib.suppress(exception.Unavailable):  # then nobody is served; the sweep will tell
        for _ in range(_TURNS):
            if await is_known(store, files) or await process.wait(files.pool.run(files.id)):
                return
            await asyncio.sleep(_PAUSE)  # another process is just giving it an id
        raise StrangeDirectory(path=files.place)


async def make_known(store: Store, files: Storage) -> None:
    """The datastore has the records of the files now."""
    if not await is_known(store, files):
        await process.wait(files.pool.run(files.set_id, uuid.uuid4().hex))
        await store.attempt(store.redis.sadd(_KNOWN, await process.wait(files.pool.run(files.id))))


async def sweep(store: Store, files: Storage) -> int:
    """Remove the files that are older than --objects_orphan_age and named by no record; returns how many.

    :raises DatastoreUnavailable: nothing can be said of the files
    """
    if not await is_known(store, files):
        log.error("Redis does not know the objects in %s: it is not the one that they were put with. Nothing is "
                  "removed; 'nova-manage objectstore reindex' rebuilds its records", files.place)
        return 0
    names = files.names(FLAGS.objects_orphan_age)

    def next_batch() -> list[str]:
        return [name for name, _ in zip(names, range(_BATCH), strict=False)]
    removed = 0
    while batch := await process.wait(files.pool.run(next_batch)):
        orphans = await _orphans(store, batch)
        # Redis may have been emptied meanwhile, and even filled again: known in between, orphans before and after
        orphans = await _orphans(store, orphans) if orphans and await is_known(store, files) else []
        for name in orphans:
            log.info("removing %s, which no record names", name)
            await process.wait(files.pool.run(files.remove, name))
        removed += len(orphans)
    await process.wait(files.pool.run(files.remove_unfinished))
    await _descriptions(store, files)
    return removed


async def _orphans(store: Store, batch: list[str]) -> list[str]:
    owners = {name: owner_of(name) for name in batch}
    ids = {id for name, (letter, _) in owners.items() if letter == "o"
           for id in objects.may_name(name.removesuffix(description.ASIDE))}
    # at once: a version may be on its way from one record to the other
    found = await store.get_many(Object, ids, at_once=True)
    named = {record.file for record in found}
    parts = await store.get_many(Part, {id for letter, id in owners.values() if letter == "p"})
    uploads = {u.id for u in await store.get_many(Upload, {part.upload_id for part in parts})}
    for part in parts:
        if part.upload_id in uploads:
            named.add(part.file)
        else:
            await _forget(store, part)
    return [name for name in batch if name.removesuffix(description.ASIDE) not in named]


async def _forget(store: Store, part: Part) -> None:
    tx = store.transaction()
    multipart.forget_part(tx, part)
    try:
        await tx.commit()
    except (exception.NotFound, exception.Conflict):
        log.info("part %s was removed by somebody else", part.id)


async def _descriptions(store: Store, files: Storage) -> None:
    """Describe the buckets that are not; forget descriptions of buckets and uploads that are gone."""
    limit = time.time() - FLAGS.objects_orphan_age
    described = set(await process.wait(files.pool.run(files.buckets.ids)))
    for bucket in await store.all(Bucket):
        if bucket.id not in described:
            await process.wait(files.pool.run(files.buckets.put, bucket))
    for register, cls in ((files.buckets, Bucket), (files.uploads, Upload)):
        await process.wait(files.pool.run(register.remove_unfinished, limit))
        for id in await process.wait(files.pool.run(register.ids, limit)):
            await _forget_description(store, files, register, cls, id)


async def _forget_description(store: Store, files: Storage, register: Register,
                              cls: type[Bucket] | type[Upload], id: str) -> None:
    try:
        there = await process.wait(files.pool.run(register.get, id))
    except description.Unreadable as error:
        log.warning("the %s %s: %s", cls.__name__.lower(), id, error)
        return
    if (there is not None and await store.get(cls, id) is None and await is_known(store, files)
            and await store.get(cls, id) is None):
        log.info("removing the description of %s, which is gone", id)
        await process.wait(files.pool.run(register.remove, there))
