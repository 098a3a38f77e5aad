"""Applies the lifecycle rules of buckets: removes what has expired.

Any number of processes may do it at once.  An object is removed only if it still is what was judged: one that was
replaced, or got other tags, in the meantime stays for the next turn.
"""

import logging
from collections.abc import AsyncIterator, Callable

from nova import exception
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import errors, lifecycle, listing, multipart, objects, versions
from nova.objectstore.lifecycle import Rule
from nova.objectstore.models import Bucket, Object, Upload, object_id
from nova.objectstore.storage import Storage

log = logging.getLogger(__name__)

DEFINE_integer("objects_lifecycle_interval", 3600, "seconds between two times that the lifecycle rules of buckets are "
               "applied", lower_bound=1)
DEFINE_integer("objects_upload_days", 0, "days after which a multipart upload that is not completed is aborted, "
               "whatever the bucket's lifecycle says; 0: never", lower_bound=0, upper_bound=36500)

#: how many records are looked at before others get their turn
_BATCH = 500


class _Changed(Exception):
    """An object is not what was judged."""


async def apply(store: Store, files: Storage, clock: Callable[[], float]) -> int:
    """Remove what has expired in all buckets; returns how many objects and uploads that were.

    :param clock: tells the time, in seconds since 1970
    :raises DatastoreUnavailable:
    """
    removed = 0
    for bucket in await store.all(Bucket):
        rules = lifecycle.rules_of(bucket)
        if FLAGS.objects_upload_days:
            rules.append(Rule("", upload_days=FLAGS.objects_upload_days))
        if any(rule.upload_days is not None for rule in rules):
            removed += await _abort_uploads(store, files, bucket, rules, clock())
        if any(rule.days is not None or rule.date is not None for rule in rules):
            removed += await _expire_objects(store, files, bucket, rules, clock())
        if rules and bucket.versioning:
            removed += await _expire_versions(store, files, bucket, rules, clock())
    return removed


async def _expire_objects(store: Store, files: Storage, bucket: Bucket, rules: list[Rule], now: float) -> int:
    removed = 0
    async for members in _batches(store, bucket.keys_key):
        for found in await objects.read_many(store, bucket, members):
            chosen = lifecycle.expiration(rules, found)
            if chosen is None or chosen[0] > now:
                continue
            try:
                await objects.delete(store, files, bucket, found.key, check=_unchanged(found))
            except (_Changed, errors.NoSuchBucket):
                continue
            log.info("%s/%s has expired by the rule %s", bucket.id, found.key, chosen[1].id)
            removed += 1
    return removed


async def _expire_versions(store: Store, files: Storage, bucket: Bucket, rules: list[Rule], now: float) -> int:
    """Remove versions that are not current, and delete markers that are all that is left of their keys."""
    removed = 0
    async for record in _over(store, bucket, rules, now):
        version = versions.shown(record)
        try:
            await objects.delete(store, files, bucket, record.key, version, _unchanged_version(record))
        except (_Changed, errors.NoSuchBucket):
            continue
        log.info("the version %s of %s/%s has expired", version, bucket.id, record.key)
        removed += 1
    return removed


async def _over(store: Store, bucket: Bucket, rules: list[Rule], now: float) -> AsyncIterator[Object]:
    """The versions and delete markers whose time is over, read in bounded batches."""
    last = ""
    above: Object | None = None  # the next newer version of the key
    newer = 0
    marker: Object | None = None  # of which nothing older has been seen yet
    async for members in _batches(store, bucket.versions_key):
        named = [versions.read_member(member) for member in members]
        current = {key: object_id(bucket.id, key) for key, _ in named}
        found = {record.id: record for record in await store.get_many(Object, [
            *current.values(), *(versions.record_id(current[key], version) for key, version in named)])}
        for key, version in named:
            if key != last:
                if marker and lifecycle.marker_is_over(rules, marker, now):
                    yield marker
                last, above, newer, marker = key, found.get(current[key]), 0, None
                if above and above.is_marker and versions.shown(above) == version:
                    marker = above
                    continue
            marker = None
            record = found.get(versions.record_id(current[key], version))
            if record is None or above is None:
                continue  # it has changed since the index was read
            if lifecycle.version_is_over(rules, record, above.modified, newer, now):
                yield record
            above, newer = record, newer + 1
    if marker and lifecycle.marker_is_over(rules, marker, now):
        yield marker


def _unchanged_version(judged: Object) -> objects.Check:
    """The null version may be replaced; the others have ids that nothing else gets."""
    def check(now: Object | None) -> None:
        if (now.file if now else "") != judged.file:
            raise _Changed
    return check


def _unchanged(judged: Object) -> objects.Check:
    def check(now: Object | None) -> None:
        if now is None or (now.version, now.file) != (judged.version, judged.file):
            raise _Changed
    return check


async def _abort_uploads(store: Store, files: Storage, bucket: Bucket, rules: list[Rule], now: float) -> int:
    removed = 0
    async for members in _batches(store, bucket.uploads_key):
        for upload in await store.get_many(Upload, [m.rpartition(b"\0")[2].decode() for m in members]):
            due = lifecycle.upload_due(rules, upload.key, upload.initiated)
            if due is None or due > now:
                continue
            try:
                await multipart.abort(store, files, bucket, upload)
            except errors.NoSuchUpload:
                continue
            log.info("the upload %s of %s/%s was aborted, its time is over", upload.id, bucket.id, upload.key)
            removed += 1
    return removed


async def _batches(store: Store, key: str) -> AsyncIterator[list[bytes]]:
    """The members of a sorted set, in bounded batches, however many there are."""
    fetch = listing.index(store, key)
    start = b"-"
    while members := await fetch(start, b"+", _BATCH):
        yield members
        start = b"(" + members[-1]


async def once(store: Store, files: Storage, clock: Callable[[], float]) -> None:
    """:func:`apply`; what keeps it from its work is logged, and the next turn tries again."""
    try:
        await apply(store, files, clock)
    except (exception.NovaError, OSError) as error:
        log.warning("the lifecycle rules could not be applied: %s", error)
