"""What can be done with multipart uploads, apart from HTTP.

An upload is a record, its parts are records and files.  Completing concatenates the parts into the object's file; the
object's record and the end of the upload with all its parts are one transaction, and the parts' files are removed after
it (or by the sweep).  The bytes of a part count among the limits of the bucket's user and project as long as there is a
record of it.  Rules: Amazon S3 API reference, CreateMultipartUpload to CompleteMultipartUpload.
"""

import hashlib
import logging
import time
import uuid
from dataclasses import dataclass

from nova import exception, failpoint, process
from nova.auth import quota
from nova.datastore import Store, Transaction, key_of, read
from nova.objectstore import checksums, errors, objects
from nova.objectstore.models import Bucket, Object, Part, Upload, object_id, part_id, upload_member
from nova.objectstore.storage import Storage, Undo, Writer, discard

log = logging.getLogger(__name__)

MAX_PARTS = 10000
MIN_PART = 5 << 20
MAX_OBJECT = 5 << 40

failpoint.declare("objectstore.upload.committed", "the upload is there, its description is not")
failpoint.declare("objectstore.part.published", "the part's file has its name, no record names it yet")
failpoint.declare("objectstore.upload.ended", "the upload is over, its description and parts' files still exist")
failpoint.declare("objectstore.complete.committed", "the object is there, the files of its parts still exist")


@dataclass(frozen=True)
class Listed:
    """A part as CompleteMultipartUpload lists it: its etag without quotes, its checksums base64 by algorithm."""

    number: int
    etag: str
    checksums: dict[str, str]


async def create(store: Store, files: Storage, bucket: Bucket, upload: Upload) -> None:
    """Begin an upload; :raises NoSuchBucket: somebody removed the bucket"""
    tx = store.transaction()
    tx.require_exists(Bucket, bucket.id)
    tx.create(upload)
    tx.zadd_lex(bucket.uploads_key, upload_member(upload.key, upload.id))
    try:
        await tx.commit()
    except exception.NotFound:
        raise errors.NoSuchBucket() from None
    except exception.Exists:
        log.info("the upload %s was made, the answer got lost", upload.id)  # its id is new
    failpoint.hit("objectstore.upload.committed")
    await process.wait(files.pool.run(files.uploads.put, upload))


async def get(store: Store, bucket: Bucket, key: str, upload_id: str) -> Upload:
    """An upload; :raises NoSuchUpload: there is none of this id for this key"""
    return of_key(await store.get(Upload, upload_id) if is_id(upload_id) else None, bucket, key)


def of_key(upload: Upload | None, bucket: Bucket, key: str) -> Upload:
    """An upload, if it is one for this key; :raises NoSuchUpload:"""
    if upload is None or (upload.bucket, upload.key) != (bucket.id, key):
        raise errors.NoSuchUpload()
    return upload


def is_id(text: str) -> bool:
    """Whether an upload may have such an id."""
    return len(text) == 32 and text.isalnum() and text.isascii()


async def put_part(store: Store, files: Storage, upload: Upload, part: Part) -> None:
    """Put a part whose file is published in place of what had its number.

    :raises NoSuchUpload: it is over
    :raises QuotaExceeded: the bucket's user or project may not have as much
    """
    failpoint.hit("objectstore.part.published")
    while True:
        row, *limits = await store.hashes([key_of(Part, part.id),
                                           *quota.allowance_keys(part.project_id, part.user_id)])
        old = read(Part, row) if row else None
        if old is not None and old.file == part.file:
            return  # an earlier turn did it, its answer got lost
        tx = store.transaction()
        tx.require_exists(Upload, upload.id)
        if old is None:
            tx.create(part)
        else:
            tx.update(old, file=part.file, size=part.size, md5=part.md5, modified=part.modified,
                      checksums=part.checksums)
        more = {quota.OBJECT_GB: part.size - (old.size if old else 0)}
        quota.allowance_of(part.project_id, part.user_id, limits).claim(tx, more)
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound) as error:
            _raise_if_over(error)
            continue
        except exception.Exhausted:
            (await quota.allowance(store, part.project_id, part.user_id)).check(more)
            continue
        break
    if old is not None:
        await files.remove_soon(old.file)


def _raise_if_over(error: exception.NovaError) -> None:
    """Raise unless it was a part that somebody else has changed, and trying again helps."""
    if error.values.get("kind") == "upload":
        raise errors.NoSuchUpload() from error


class _End:
    """The end of an upload; `parts` are those that the last transaction asked for it removes."""

    def __init__(self, store: Store, bucket: Bucket, upload: Upload):
        self._store, self._bucket, self._upload = store, bucket, upload
        self.parts: list[Part] = []

    async def __call__(self, tx: Transaction) -> int:
        """Remove the records of the upload and its parts; the bytes that the parts have counted for."""
        tx.delete(self._upload)
        tx.zrem(self._bucket.uploads_key, upload_member(self._upload.key, self._upload.id))
        self.parts = await parts_of(self._store, self._upload)
        for part in self.parts:
            tx.delete(part)
        return sum(part.size for part in self.parts)

    async def remove_files(self, files: Storage) -> None:
        """Remove the description first, then what the records named: parts are nothing without their upload."""
        failpoint.hit("objectstore.upload.ended")
        await process.wait(files.pool.run(files.uploads.remove, self._upload))
        await discard(files, *(part.file for part in self.parts))


async def parts_of(store: Store, upload: Upload) -> list[Part]:
    """The parts of an upload, by number."""
    return await store.find(Part, upload_id=upload.id)


def choose(parts: list[Part], listed: list[Listed], algorithm: str = "") -> list[Part]:
    """The parts that CompleteMultipartUpload lists.

    :param algorithm: whose checksum each must be listed with, '' if there need be none: where the object's is made of
        the parts', the client says which it means
    :raises InvalidRequest, InvalidPartOrder, InvalidPart, EntityTooSmall, EntityTooLarge:
    """
    numbers = [part.number for part in listed]
    if numbers != sorted(set(numbers)):
        raise errors.InvalidPartOrder()
    for one in listed if algorithm else ():
        if algorithm not in one.checksums:
            raise errors.InvalidRequest(
                reason=f"The upload was created using a {algorithm.lower()} checksum. The complete request must "
                       f"include the checksum for each part. It was missing for part {one.number} in the request.")
    by_number = {part.number: part for part in parts}
    chosen = []
    for wanted in listed:
        part = by_number.get(wanted.number)
        if part is None or part.md5 != wanted.etag:
            raise errors.InvalidPart()
        if any(part.checksums.get(name, value) != value for name, value in wanted.checksums.items()):
            raise errors.InvalidPart()
        chosen.append(part)
    if any(part.size < MIN_PART for part in chosen[:-1]):
        raise errors.EntityTooSmall()
    if sum(part.size for part in chosen) > MAX_OBJECT:
        raise errors.EntityTooLarge(limit=MAX_OBJECT)
    return chosen


async def complete(store: Store, files: Storage, bucket: Bucket, upload: Upload, chosen: list[Part],
                   given: dict[str, str], check: objects.Check | None = None) -> Object:
    """Make the object of an upload's parts.

    :param given: the checksums that the client says the object has, base64 by algorithm
    :raises NoSuchUpload: somebody completed or aborted it meanwhile
    :raises BadDigest: the object has another checksum
    """
    end = _End(store, bucket, upload)
    try:
        new = await process.wait(files.pool.run(_assemble, files, bucket, upload, chosen, given))
    except FileNotFoundError:
        raise errors.NoSuchUpload() from None
    async with Undo(files, new.file):
        new = await objects.put(store, files, bucket, new, check, end)
    failpoint.hit("objectstore.complete.committed")
    await end.remove_files(files)
    return new


@dataclass(frozen=True)
class _Whole:
    """What is known of the bytes of an object: hex digests, '' where nobody has read them, and checksums."""

    md5: str
    sha256: str
    checksums: dict[str, str]


def _assemble(files: Storage, bucket: Bucket, upload: Upload, chosen: list[Part], given: dict[str, str]) -> Object:
    """Make the object's file; runs in a thread."""
    id = object_id(upload.bucket, upload.key)
    size = sum(part.size for part in chosen)
    with files.new(f"o-{id}", size) as writer:
        whole = _joined(upload, chosen) if writer.append(chosen) else _concatenate(files, writer, upload, chosen)
        for name, value in given.items():
            if name in whole.checksums and whole.checksums[name].partition("-")[0] != value.partition("-")[0]:
                raise errors.BadDigest(name=name)
        etag = hashlib.md5(b"".join(bytes.fromhex(part.md5) for part in chosen), usedforsecurity=False).hexdigest()
        new = objects.planned(bucket, Object(
            id, bucket=upload.bucket, key=upload.key, project_id=upload.project_id, user_id=upload.user_id,
            file=writer.name, size=size, md5=whole.md5, sha256=whole.sha256, etag=f"{etag}-{len(chosen)}",
            modified=time.time(), headers=upload.headers, metadata=upload.metadata,
            storage_class=upload.storage_class, checksums=whole.checksums, part_sizes=[part.size for part in chosen],
            part_checksums=_part_checksums(upload.checksum_algorithm, chosen), tags=upload.tags, acl=upload.acl,
            checksum_type=upload.checksum_type or checksums.FULL_OBJECT, upload_id=upload.id))
        writer.publish(new)
    return new


def _joined(upload: Upload, chosen: list[Part]) -> _Whole:
    """What follows from what is known of the parts."""
    algorithm = upload.checksum_algorithm
    if upload.checksum_type != checksums.FULL_OBJECT or not _part_checksums(algorithm, chosen):
        return _Whole("", "", _composite(algorithm, chosen))
    combined = checksums.combined(algorithm, ((part.checksums[algorithm], part.size) for part in chosen))
    return _Whole("", "", {algorithm: combined})


def _concatenate(files: Storage, writer: Writer, upload: Upload, chosen: list[Part]) -> _Whole:
    """Write the parts' bytes one after the other; :raises InvalidPart: one is damaged"""
    algorithm = upload.checksum_algorithm
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    hashers: list[checksums.Hasher] = [md5, sha256]
    crc = checksums.hasher(algorithm) if algorithm and upload.checksum_type == checksums.FULL_OBJECT else None
    if crc:
        hashers.append(crc)
    for part in chosen:
        of_part = hashlib.md5(usedforsecurity=False)
        for block in files.read(part.file):
            for hasher in (of_part, *hashers):
                hasher.update(block)
            writer.write(block)
        if of_part.hexdigest() != part.md5:
            log.error("the part %s is damaged: its file %s is not what was put", part.id, part.file)
            raise errors.InvalidPart()
    sums = {algorithm: checksums.encode(crc.digest())} if crc else _composite(algorithm, chosen)
    return _Whole(md5.hexdigest(), sha256.hexdigest(), sums)


def _composite(algorithm: str, chosen: list[Part]) -> dict[str, str]:
    """The checksum of the parts' checksums, if all have one."""
    sums = _part_checksums(algorithm, chosen)
    return {algorithm: checksums.composite(algorithm, sums)} if sums else {}


def _part_checksums(algorithm: str, chosen: list[Part]) -> list[str]:
    """The checksum of each part, if the upload has an algorithm and every part such a checksum."""
    sums = [part.checksums[algorithm] for part in chosen if algorithm in part.checksums]
    return sums if len(sums) == len(chosen) else []


async def abort(store: Store, files: Storage, bucket: Bucket, upload: Upload) -> None:
    """End an upload without an object; :raises NoSuchUpload: somebody was faster"""
    end = _End(store, bucket, upload)
    while True:
        tx = store.transaction()
        freed = await end(tx)
        quota.give(tx, upload.project_id, upload.user_id, {quota.OBJECT_GB: freed})
        try:
            await tx.commit()
            break
        except (exception.NotFound, exception.Conflict) as error:
            _raise_if_over(error)
    await end.remove_files(files)


def forget_part(tx: Transaction, part: Part) -> None:
    """Remove the record of a part, and what it counts for."""
    tx.delete(part)
    quota.give(tx, part.project_id, part.user_id, {quota.OBJECT_GB: part.size})


def new_id() -> str:
    """The id of a new upload."""
    return uuid.uuid4().hex


def new_part(upload: Upload, number: int, file: str, size: int, md5: str, sums: dict[str, str]) -> Part:
    """The record of a part that was received now."""
    return Part(part_id(upload.id, number), upload_id=upload.id, number=number, file=file, size=size, md5=md5,
                modified=time.time(), checksums=sums, user_id=upload.user_id, project_id=upload.project_id)
