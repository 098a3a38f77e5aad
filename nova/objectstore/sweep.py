"""Removes the files that no record names: what a crash left between publishing a file and committing its record, or
between committing a change and removing the file that it made needless."""

import logging

from nova import exception, process
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import multipart, versions
from nova.objectstore.files import Files, owner_of
from nova.objectstore.models import Object, Part, Upload

log = logging.getLogger(__name__)

DEFINE_integer("objects_orphan_age", 3600, "seconds after which a file that no record names is removed", lower_bound=0)
DEFINE_integer("objects_sweep_interval", 3600, "seconds between two searches for such files", lower_bound=1)
_BATCH = 500


async def sweep(store: Store, files: Files) -> int:
    """Remove the files that are older than --objects_orphan_age and named by no record; returns how many.

    :raises DatastoreUnavailable: nothing can be said of the files
    """
    names = files.names(FLAGS.objects_orphan_age)

    def next_batch() -> list[str]:
        return [name for name, _ in zip(names, range(_BATCH), strict=False)]
    removed = 0
    while batch := await process.wait(files.pool.run(next_batch)):
        orphans = await _orphans(store, batch)
        for name in orphans:
            log.info("removing %s, which no record names", name)
            await process.wait(files.pool.run(files.remove, name))
        removed += len(orphans)
    return removed


async def _orphans(store: Store, batch: list[str]) -> list[str]:
    owners = {name: owner_of(name) for name in batch}
    ids = {id for name, (letter, owner) in owners.items() if letter == "o" for id in _records(owner, name)}
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
    return [name for name in batch if name not in named]


def _records(owner: str, name: str) -> list[str]:
    """The ids of all records that may name a file: of the current version, of this one and of the null version."""
    return [owner, *(versions.record_id(owner, id) for id in (name.rpartition("-")[2], versions.NULL))]


async def _forget(store: Store, part: Part) -> None:
    tx = store.transaction()
    multipart.forget_part(tx, part)
    try:
        await tx.commit()
    except (exception.NotFound, exception.Conflict):
        log.info("part %s was removed by somebody else", part.id)
