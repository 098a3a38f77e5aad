"""Operations on objects: putting, getting, copying and removing them."""

import time
from collections.abc import AsyncIterator
from typing import BinaryIO

from nova import process
from nova.auth import rbac
from nova.objectstore import buckets, conditions, errors, objects
from nova.objectstore.body import Received, Target
from nova.objectstore.files import Files, Undo, Writer
from nova.objectstore.models import Object, object_id
from nova.objectstore.operations import headers as object_headers
from nova.objectstore.operations.base import Operation, Response, Upload, iso_time, xml
from nova.objectstore.request import copy_source, number

_BLOCK = 256 << 10
#: how often an object is looked up again whose file was replaced between reading the record and opening the file
_TURNS = 3


def check_version(params: dict[str, str]) -> None:
    """The only version of an object is 'null'; :raises NoSuchVersion, InvalidArgument:"""
    version = params.get("versionId")
    if version is not None and version != "null":
        raise errors.NoSuchVersion()


class PutObject(Upload):
    """PUT object."""

    writer: Writer | None = None

    async def prepare(self) -> Target:
        await super().prepare()
        id = object_id(self.bucket.id, self.target.key)
        files = self.call.files
        self.writer = await process.wait(files.pool.run(files.new, f"o-{id}", self.call.length or 0))
        return self.writer

    async def check(self) -> None:
        object_headers.check_offered(self.headers)
        object_headers.metadata(self.headers)
        self.may_replace = objects.write_check(self.headers)
        old = await self.call.store.get(Object, object_id(self.bucket.id, self.target.key))
        self.may_replace(old)
        await self.check_room(old.size if old else 0)

    @property
    def wanted_checksums(self) -> frozenset[str]:
        named = object_headers.checksum_algorithm(self.headers, "x-amz-sdk-checksum-algorithm")
        return frozenset((named,)) if named else frozenset()

    async def run(self, received: Received) -> Response:
        files, writer = self.call.files, self.writer
        if writer is None:
            raise errors.InternalError()
        new = Object(
            object_id(self.bucket.id, self.target.key), bucket=self.bucket.id, key=self.target.key,
            project_id=self.bucket.project_id, user_id=self.bucket.user_id, file=writer.name,
            size=received.size, md5=received.md5, sha256=received.sha256, etag=received.md5, modified=time.time(),
            headers=object_headers.content(self.headers), metadata=object_headers.metadata(self.headers),
            storage_class=object_headers.storage_class(self.headers), checksums=received.checksums)
        await process.wait(files.pool.run(writer.publish, new))
        with Undo(files, writer.name):
            await objects.put(self.call.store, files, self.bucket, new, self.may_replace)
        return Response(headers={"ETag": f'"{new.etag}"', **object_headers.of_checksums(new)})

    async def abandon(self) -> None:
        if self.writer:
            await process.wait(self.call.files.pool.run(self.writer.close))


class CopyObject(Operation):
    """PUT object with x-amz-copy-source: another name for the same bytes."""

    async def check(self) -> None:
        object_headers.check_offered(self.headers)
        self.directive = self.headers.get("x-amz-metadata-directive", "COPY").upper()
        if self.directive not in ("COPY", "REPLACE"):
            raise errors.InvalidArgument(reason="Unknown metadata directive.")
        self.source = copy_source(self.headers["x-amz-copy-source"])
        if self.source == (self.bucket.id, self.target.key) and self.directive == "COPY":
            raise errors.InvalidRequest(
                reason="This copy request is illegal because it is trying to copy an object to itself without "
                       "changing the object's metadata, storage class, website redirect location or encryption "
                       "attributes.")

    async def run(self, received: Received) -> Response:
        files = self.call.files
        new = await self._link()
        with Undo(files, new.file):
            await objects.put(self.call.store, files, self.bucket, new, objects.write_check(self.headers))
        return xml("CopyObjectResult", [
            ("ETag", f'"{new.etag}"'), ("LastModified", iso_time(new.modified)),
            *((f"Checksum{name}", value) for name, value in new.checksums.items())])

    async def _link(self) -> Object:
        """The copy, whose file is there."""
        files = self.call.files
        for _ in range(_TURNS):
            source = await open_source(self, *self.source)
            new = self._copy_of(source)
            try:
                await process.wait(files.pool.run(files.link, source.file, new))
            except FileNotFoundError:
                continue
            return new
        raise errors.InternalError()

    def _copy_of(self, source: Object) -> Object:
        id = object_id(self.bucket.id, self.target.key)
        replace = self.directive == "REPLACE"
        whole = source.checksum_type == "FULL_OBJECT"
        return Object(
            id, bucket=self.bucket.id, key=self.target.key, project_id=self.bucket.project_id,
            user_id=self.bucket.user_id, file=self.call.files.name(f"o-{id}"), size=source.size, md5=source.md5,
            sha256=source.sha256, etag=source.md5, modified=time.time(),
            headers=object_headers.content(self.headers) if replace else source.headers,
            metadata=object_headers.metadata(self.headers) if replace else source.metadata,
            storage_class=object_headers.storage_class(self.headers),
            checksums=source.checksums if whole else {})


async def open_source(operation: Operation, bucket: str, key: str) -> Object:
    """The object to copy from.

    :raises NoSuchBucket, NoSuchKey, AccessDenied, PreconditionFailed:
    """
    owner = await buckets.get(operation.call.store, bucket)
    if not rbac.allows(operation.call.identity, "GetObject", owner.user_id, owner.project_id):
        raise errors.AccessDenied()
    source = await objects.open_object(operation.call.store, bucket, key)
    conditions.check_copy(operation.headers, source.etag, source.modified)
    return source


class GetObject(Operation):
    """GET and HEAD object, whole or one range or part of it."""

    async def check(self) -> None:
        check_version(self.target.params)

    async def run(self, received: Received) -> Response:
        with_body = self.call.method != "HEAD"
        for _ in range(_TURNS):
            found = await objects.open_object(self.call.store, self.bucket.id, self.target.key)
            response, start, length = self._describe(found)
            if not with_body:
                return response
            try:
                file = await process.wait(self.call.files.pool.run(self.call.files.open, found))
            except FileNotFoundError:
                continue
            response.body = FileBody(self.call.files, file, start, length)
            return response
        raise errors.InternalError()

    def _describe(self, found: Object) -> tuple[Response, int, int]:
        try:
            conditions.check_read(self.headers, found.etag, found.modified)
            part = self._part(found)
            chosen = part or conditions.parse_range(self.headers.get("Range"), found.size)
        except errors.NotModified as error:
            headers = object_headers.of_object(found, {}, False)
            return Response(error.status, {n: headers[n] for n in ("ETag", "Last-Modified")}), 0, 0
        start, length = chosen or (0, found.size)
        whole = length == found.size
        with_checksums = whole and self.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
        headers = object_headers.of_object(found, self.target.params, with_checksums)
        headers["Content-Length"] = str(length)
        if part and found.part_sizes:
            headers["x-amz-mp-parts-count"] = str(len(found.part_sizes))
        if chosen and found.size:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{found.size}"
            return Response(206, headers), start, length
        return Response(200, headers), start, length

    def _part(self, found: Object) -> tuple[int, int] | None:
        """Offset and length of the part that partNumber asks for."""
        if "partNumber" not in self.target.params:
            return None
        if "Range" in self.headers:
            raise errors.InvalidRequest(reason="Cannot specify both Range header and partNumber query parameter")
        wanted = number(self.target.params, "partNumber", 1, 1, 10000)
        sizes = found.part_sizes or [found.size]
        if wanted > len(sizes):
            raise errors.InvalidRange()
        return sum(sizes[:wanted - 1]), sizes[wanted - 1]


class FileBody(AsyncIterator[bytes]):
    """A part of a file, read block by block in a thread."""

    def __init__(self, files: Files, file: BinaryIO, start: int, length: int):
        self._files, self._file, self._offset, self._left = files, file, start, length

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        block = await process.wait(self._files.pool.run(self._read))
        if not block:
            raise OSError(f"{self._file.name} is shorter than its record says")
        self._offset += len(block)
        self._left -= len(block)
        return block

    def _read(self) -> bytes:
        self._file.seek(self._offset)
        return self._file.read(min(_BLOCK, self._left))

    async def aclose(self) -> None:
        """Close the file."""
        self._file.close()


class DeleteObject(Operation):
    """DELETE object; it is no error if there is none."""

    async def check(self) -> None:
        check_version(self.target.params)

    async def run(self, received: Received) -> Response:
        match = self.headers.get("If-Match")

        def may_delete(old: Object | None) -> None:
            if match is not None and old is not None:
                conditions.check_write({"If-Match": match}, old.etag)
        await objects.delete(self.call.store, self.call.files, self.bucket, self.target.key, may_delete)
        return Response(204)
