"""Removes what no record names: files that a crash left between publishing them and committing their record, or between
committing a change and removing what it made needless; descriptions of buckets and uploads that are gone.

Nothing is removed where the datastore is not the one that knew the directory (it was lost, or replaced by an older
one): then its records are rebuilt first, ``nova-manage objectstore reindex``.
"""

import logging
import time
import uuid

from nova import exception, process
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import description, multipart, objects
from nova.objectstore.files import Files, owner_of
from nova.objectstore.models import Bucket, Object, Part, Upload

log = logging.getLogger(__name__)

DEFINE_integer("objects_orphan_age", 3600, "seconds after which a file that no record names is removed", lower_bound=0)
DEFINE_integer("objects_sweep_interval", 3600, "seconds between two searches for such files", lower_bound=1)
_BATCH = 500
#: the set of the directories whose files the datastore knows, by what their file `id` says
_KNOWN = f"{PREFIX}object-directories"


async def is_known(store: Store, files: Files) -> bool:
    """Whether the datastore has the records of the files; a new directory becomes known to it.

    :raises DatastoreUnavailable:
    """
    there = await process.wait(files.pool.run(files.id))
    if there:
        return bool(await store.attempt(store.redis.sismember(_KNOWN, there)))
    id = uuid.uuid4().hex
    await store.attempt(store.redis.sadd(_KNOWN, id))  # first: a directory with an id that nobody knows is a lost one
    await process.wait(files.pool.run(files.set_id, id))
    return True


async def make_known(store: Store, files: Files) -> None:
    """The datastore has the records of the files now."""
    if not await is_known(store, files):
        await store.attempt(store.redis.sadd(_KNOWN, await process.wait(files.pool.run(files.id))))


async def sweep(store: Store, files: Files) -> int:
    """Remove the files that are older than --objects_orphan_age and named by no record; returns how many.

    :raises DatastoreUnavailable: nothing can be said of the files
    """
    if not await is_known(store, files):
        log.error("Redis does not know the objects in %s: it is not the one that they were put with. Nothing is "
                  "removed; 'nova-manage objectstore reindex' rebuilds its records", files.root)
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


async def _descriptions(store: Store, files: Files) -> None:
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


async def _forget_description(store: Store, files: Files, register: description.Register,
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
