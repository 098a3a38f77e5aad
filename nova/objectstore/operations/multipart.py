"""Operations on multipart uploads."""

import asyncio
import errno
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator

from nova import exception, process
from nova.objectstore import checksums, errors, multipart, objects, s3xml
from nova.objectstore import models as records
from nova.objectstore.body import MAX_UPLOAD, Received, Target
from nova.objectstore.files import Undo, Writer
from nova.objectstore.operations import headers as object_headers
from nova.objectstore.operations.base import Operation, Response, Upload, iso_time, owner, xml
from nova.objectstore.operations.object import open_source
from nova.objectstore.request import copy_source, number
from nova.objectstore.s3xml import Element

log = logging.getLogger(__name__)

_COPY_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")
#: seconds after which a client that waits for CompleteMultipartUpload is shown that it goes on, and between such signs
_PATIENCE = 10.0


class CreateMultipartUpload(Operation):
    """POST object?uploads."""

    async def check(self) -> None:
        object_headers.check_offered(self.headers)
        self.algorithm = object_headers.checksum_algorithm(self.headers, "x-amz-checksum-algorithm")
        default = checksums.FULL_OBJECT if self.algorithm == "CRC64NVME" else checksums.COMPOSITE
        self.type = self.headers.get("x-amz-checksum-type", default if self.algorithm else "")
        if self.type not in ("", checksums.FULL_OBJECT, checksums.COMPOSITE):
            raise errors.InvalidRequest(reason="Value for x-amz-checksum-type header is invalid.")
        if self.algorithm in ("SHA1", "SHA256") and self.type == checksums.FULL_OBJECT or (
                self.algorithm == "CRC64NVME" and self.type == checksums.COMPOSITE):
            raise errors.InvalidRequest(
                reason=f"The {self.type} checksum type cannot be used with the {self.algorithm} checksum algorithm.")

    async def run(self, received: Received) -> Response:
        upload = records.Upload(
            multipart.new_id(), bucket=self.bucket.id, key=self.target.key, project_id=self.bucket.project_id,
            user_id=self.bucket.user_id, initiated=time.time(), headers=object_headers.content(self.headers),
            metadata=object_headers.metadata(self.headers), storage_class=object_headers.storage_class(self.headers),
            checksum_algorithm=self.algorithm, checksum_type=self.type)
        await multipart.create(self.call.store, self.call.files, self.bucket, upload)
        response = xml("InitiateMultipartUploadResult", [
            ("Bucket", self.bucket.id), ("Key", self.target.key), ("UploadId", upload.id)])
        if self.algorithm:
            response.headers |= {"x-amz-checksum-algorithm": self.algorithm, "x-amz-checksum-type": self.type}
        return response


async def find_upload(operation: Operation) -> records.Upload:
    """The upload that uploadId names; :raises NoSuchUpload:"""
    return await multipart.get(operation.call.store, operation.bucket, operation.target.key,
                               operation.target.params["uploadId"])


def part_number(params: dict[str, str]) -> int:
    """The partNumber; :raises InvalidArgument:"""
    return number(params, "partNumber", 0, 1, multipart.MAX_PARTS)


class UploadPart(Upload):
    """PUT object?partNumber&uploadId."""

    writer: Writer | None = None

    async def prepare(self) -> Target:
        await super().prepare()
        files = self.call.files
        owner_name = f"p-{records.part_id(self.upload.id, self.number)}"
        self.writer = await process.wait(files.pool.run(files.new, owner_name, self.call.length or 0))
        return self.writer

    async def check(self) -> None:
        self.upload = await find_upload(self)
        self.number = part_number(self.target.params)
        old = await self.call.store.get(records.Part, records.part_id(self.upload.id, self.number))
        await self.check_room(old.size if old else 0)

    @property
    def wanted_checksums(self) -> frozenset[str]:
        return frozenset((self.upload.checksum_algorithm,)) if self.upload.checksum_algorithm else frozenset()

    async def run(self, received: Received) -> Response:
        files, writer = self.call.files, self.writer
        if writer is None:
            raise errors.InternalError()
        part = multipart.new_part(self.upload, self.number, writer.name, received.size, received.md5,
                                  received.checksums)
        await process.wait(files.pool.run(writer.publish, part))
        with Undo(files, writer.name):
            await multipart.put_part(self.call.store, files, self.upload, part)
        return Response(headers={"ETag": f'"{part.md5}"', **{checksums.header_name(name): value
                                                             for name, value in part.checksums.items()}})

    async def abandon(self) -> None:
        if self.writer:
            await process.wait(self.call.files.pool.run(self.writer.close))


class UploadPartCopy(Operation):
    """PUT object?partNumber&uploadId with x-amz-copy-source: a part that is a range of another object."""

    async def check(self) -> None:
        self.upload = await find_upload(self)
        self.number = part_number(self.target.params)
        self.source = copy_source(self.headers["x-amz-copy-source"])

    async def run(self, received: Received) -> Response:
        files = self.call.files
        source = await open_source(self, *self.source)
        start, length = self._range(source.size)
        writer = await process.wait(files.pool.run(
            files.new, f"p-{records.part_id(self.upload.id, self.number)}", length))
        try:
            part = await process.wait(files.pool.run(self._copy, source.file, start, length, writer))
        except FileNotFoundError:
            raise errors.NoSuchKey() from None
        finally:
            await process.wait(files.pool.run(writer.close))
        with Undo(files, writer.name):
            await multipart.put_part(self.call.store, files, self.upload, part)
        return xml("CopyPartResult", [
            ("ETag", f'"{part.md5}"'), ("LastModified", iso_time(part.modified)),
            *((f"Checksum{name}", value) for name, value in part.checksums.items())])

    def _range(self, size: int) -> tuple[int, int]:
        header = self.headers.get("x-amz-copy-source-range")
        start, end = 0, size - 1
        if header is not None:
            found = _COPY_RANGE.fullmatch(header)
            if not found:
                raise errors.InvalidArgument(
                    reason="The x-amz-copy-source-range value must be of the form bytes=first-last where first and "
                           "last are the zero-based offsets of the first and last bytes to copy")
            start, end = int(found[1]), int(found[2])
            if start > end or end >= size:
                raise errors.InvalidArgument(reason=f"Range specified is not valid for source object of size: {size}")
        if end - start + 1 > MAX_UPLOAD:
            raise errors.EntityTooLarge(limit=MAX_UPLOAD)
        return start, end - start + 1

    def _copy(self, file: str, start: int, length: int, writer: Writer) -> records.Part:
        """Copy, hash and publish; runs in a thread."""
        md5 = hashlib.md5(usedforsecurity=False)
        algorithm = self.upload.checksum_algorithm
        extra = checksums.hasher(algorithm) if algorithm else None
        size = 0
        for block in self.call.files.read(file, start, length):
            size += len(block)
            md5.update(block)
            if extra:
                extra.update(block)
            writer.write(block)
        if size != length:
            raise OSError(errno.EIO, f"it has fewer than {start + length} bytes", file)
        part = multipart.new_part(self.upload, self.number, writer.name, size, md5.hexdigest(),
                                  {algorithm: checksums.encode(extra.digest())} if extra else {})
        writer.publish(part)
        return part


class CompleteMultipartUpload(Operation):
    """POST object?uploadId."""

    max_body = 8 << 20

    async def run(self, received: Received) -> Response:
        listed = self._listed()
        try:
            upload = await find_upload(self)
        except errors.NoSuchUpload:
            return self._result(await self._completed_before())
        may_replace = objects.write_check(self.headers)
        chosen = multipart.choose(await multipart.parts_of(self.call.store, upload), listed)
        if not chosen:
            raise errors.MalformedXML()
        given = {name: checksums.encode(digest) for name, digest in checksums.given(self.headers).items()}
        task = asyncio.ensure_future(multipart.complete(self.call.store, self.call.files, self.bucket, upload, chosen,
                                                        given, may_replace))
        done, _ = await asyncio.wait([task], timeout=_PATIENCE)
        if done:
            return self._result(task.result())
        return Response(headers={"Content-Type": "application/xml"}, body=self._signs_of_life(task))

    def _listed(self) -> list[multipart.Listed]:
        tree = s3xml.parse(self.body.data, "CompleteMultipartUpload")
        listed = []
        for part in tree.findall("Part"):
            text, etag = s3xml.text(part, "PartNumber") or "", s3xml.text(part, "ETag") or ""
            if not re.fullmatch(r"[0-9]{1,5}", text) or not etag:
                raise errors.MalformedXML()
            sums = {name: s3xml.text(part, f"Checksum{name}") for name in checksums.ALGORITHMS}
            listed.append(multipart.Listed(int(text), etag.strip('"'), {n: v for n, v in sums.items() if v}))
        if not 0 < len(listed) <= multipart.MAX_PARTS:
            raise errors.MalformedXML()
        return listed

    async def _completed_before(self) -> records.Object:
        """The object, if this upload became it: the client did not get the first answer, and asks again."""
        found = await self.call.store.get(records.Object, records.object_id(self.bucket.id, self.target.key))
        if found is None or found.upload_id != self.target.params["uploadId"]:
            raise errors.NoSuchUpload()
        return found

    def _result(self, new: records.Object) -> Response:
        return xml("CompleteMultipartUploadResult", self._elements(new))

    def _elements(self, new: records.Object) -> list[Element]:
        return [("Location", f"{self.call.url}{self.target.path}"), ("Bucket", new.bucket), ("Key", new.key),
                ("ETag", f'"{new.etag}"'), *((f"Checksum{name}", value) for name, value in new.checksums.items()),
                ("ChecksumType", new.checksum_type if new.checksums else None)]

    async def _signs_of_life(self, task: "asyncio.Task[records.Object]") -> AsyncIterator[bytes]:
        """White space while it goes on, then the result or, as S3 does it, an error under status 200."""
        yield s3xml.DECLARATION
        while not (await asyncio.wait([task], timeout=_PATIENCE))[0]:
            yield b" "
        try:
            name, children = "CompleteMultipartUploadResult", self._elements(task.result())
        except (exception.NovaError, OSError) as error:
            log.warning("completing an upload failed: %s", error)
            shown = errors.translate(error)
            name, children = "Error", [("Code", shown.code), ("Message", shown.message)]
        yield s3xml.document(name, children).removeprefix(s3xml.DECLARATION)


class AbortMultipartUpload(Operation):
    """DELETE object?uploadId."""

    async def run(self, received: Received) -> Response:
        await multipart.abort(self.call.store, self.call.files, self.bucket, await find_upload(self))
        return Response(204)


class ListParts(Operation):
    """GET object?uploadId."""

    async def run(self, received: Received) -> Response:
        params = self.target.params
        upload = await find_upload(self)
        marker = number(params, "part-number-marker", 0, 0, 2**31 - 1)
        limit = number(params, "max-parts", 1000, 0, 2**31 - 1)
        parts = [p for p in await multipart.parts_of(self.call.store, upload) if p.number > marker]
        page = parts[:min(limit, 1000)]
        return xml("ListPartsResult", [
            ("Bucket", upload.bucket), ("Key", upload.key), ("UploadId", upload.id),
            owner(upload.project_id, "Initiator"), owner(upload.project_id), ("StorageClass", upload.storage_class),
            ("PartNumberMarker", marker), ("NextPartNumberMarker", page[-1].number if page else 0),
            ("MaxParts", limit), ("IsTruncated", len(page) < len(parts) and bool(page)),
            ("ChecksumAlgorithm", upload.checksum_algorithm or None), ("ChecksumType", upload.checksum_type or None),
            *(("Part", [("PartNumber", p.number), ("LastModified", iso_time(p.modified)), ("ETag", f'"{p.md5}"'),
                        ("Size", p.size), *((f"Checksum{n}", v) for n, v in p.checksums.items())]) for p in page)])
