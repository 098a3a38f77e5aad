"""Operations on multipart uploads."""

import asyncio
import errno
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from nova import exception, process
from nova.objectstore import checksums, errors, lifecycle, multipart, objects, tags
from nova.objectstore import models as records
from nova.objectstore.body import MAX_UPLOAD, Received, Target
from nova.objectstore.operations import headers as object_headers
from nova.objectstore.operations.base import Operation, Response, Upload, owner, xml
from nova.objectstore.operations.object import open_source
from nova.objectstore.request import copy_source, number
from nova.objectstore.storage import Undo, Writer
from nova.wire import rest_xml

log = logging.getLogger(__name__)

_COPY_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")
#: seconds after which a client that waits for CompleteMultipartUpload is shown that it goes on, and between such signs
_PATIENCE = 10.0
#: how many versions of a key may have come since an upload was completed whose client asks again
_RECENT = 100


class CreateMultipartUpload(Operation):
    """POST object?uploads."""

    async def check(self) -> None:
        object_headers.check_offered(self.headers)
        self.tags = tags.from_header(self.headers)
        self.acl = self.new_acl()
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
            checksum_algorithm=self.algorithm, checksum_type=self.type, tags=self.tags, acl=self.acl)
        await multipart.create(self.call.store, self.call.files, self.bucket, upload)
        response = xml("CreateMultipartUpload", {
            "Bucket": self.bucket.id, "Key": self.target.key, "UploadId": upload.id})
        if self.algorithm:
            response.headers |= {"x-amz-checksum-algorithm": self.algorithm, "x-amz-checksum-type": self.type}
        return response


async def find_upload(operation: Operation) -> records.Upload:
    """The upload that uploadId names; :raises NoSuchUpload:"""
    return await multipart.get(operation.call.store, operation.bucket, operation.target.key,
                               operation.target.params["uploadId"])


def part_number(params: dict[str, str]) -> int:
    """The partNumber; :raises InvalidArgument:"""
    return number({"partNumber": params.get("partNumber") or "none"}, "partNumber", 0, 1, multipart.MAX_PARTS)


class UploadPart(Upload):
    """PUT object?partNumber&uploadId."""

    async def prepare(self) -> Target:
        await super().prepare()
        return await self.place_for(f"p-{records.part_id(self.upload.id, self.number)}")

    async def find_bucket(self) -> records.Bucket:
        """The bucket and the upload, in one round trip."""
        self._found: records.Upload | None = None
        id = self.target.params["uploadId"]
        if not multipart.is_id(id):
            return await super().find_bucket()
        bucket, self._found = await self.call.store.get_two(records.Bucket, self.target.bucket, records.Upload, id)
        if bucket is None:
            raise errors.NoSuchBucket()
        return bucket

    async def check(self) -> None:
        self.upload = multipart.of_key(self._found, self.bucket, self.target.key)
        self.number = part_number(self.target.params)
        if self.is_large:
            old = await self.call.store.get(records.Part, records.part_id(self.upload.id, self.number))
            await self.check_room(old.size if old else 0)

    @property
    def wanted_checksums(self) -> frozenset[str]:
        return frozenset((self.upload.checksum_algorithm,)) if self.upload.checksum_algorithm else frozenset()

    async def run(self, received: Received) -> Response:
        part = multipart.new_part(self.upload, self.number, self.file, received.size, received.md5, received.checksums)
        await self.publish(part)
        async with Undo(self.call.files, part.file):
            await multipart.put_part(self.call.store, self.call.files, self.upload, part)
        return Response(headers={"ETag": f'"{part.md5}"', **{checksums.header_name(name): value
                                                             for name, value in part.checksums.items()}})


class UploadPartCopy(Operation):
    """PUT object?partNumber&uploadId with x-amz-copy-source: a part that is a range of another object."""

    async def check(self) -> None:
        self.upload = await find_upload(self)
        self.number = part_number(self.target.params)
        self.source = copy_source(self.headers["x-amz-copy-source"])

    async def run(self, received: Received) -> Response:
        files = self.call.files
        told, source = await open_source(self, *self.source)
        start, length = self._range(source.size)
        writer = await process.wait(files.pool.run(
            files.new, f"p-{records.part_id(self.upload.id, self.number)}", length))
        try:
            part = await process.wait(files.pool.run(self._copy, source.file, start, length, writer))
        except FileNotFoundError:
            raise errors.NoSuchKey() from None
        finally:
            await process.wait(files.pool.run(writer.close))
        async with Undo(files, writer.name):
            await multipart.put_part(self.call.store, files, self.upload, part)
        response = xml("UploadPartCopy", {"ETag": f'"{part.md5}"', "LastModified": part.modified,
                                          **checksums.members(part.checksums)})
        response.headers |= told
        return response

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
    sums_of_body = False  # they are of the object

    async def run(self, received: Received) -> Response:
        listed = self._listed()
        try:
            upload, chosen = await self._chosen(listed)
        except errors.NoSuchUpload:
            return self._result(await self._completed_before())
        may_replace = objects.write_check(self.headers)
        self._check_announced(upload, sum(part.size for part in chosen))
        given = {name: checksums.encode(digest) for name, digest in checksums.given(self.headers).items()}
        task = asyncio.ensure_future(multipart.complete(self.call.store, self.call.files, self.bucket, upload, chosen,
                                                        given, may_replace))
        done, _ = await asyncio.wait([task], timeout=_PATIENCE)
        if done:
            return self._result(await self._outcome(task))
        return Response(headers={"Content-Type": "application/xml"}, body=self._signs_of_life(task))

    async def _chosen(self, listed: list[multipart.Listed]) -> tuple[records.Upload, list[records.Part]]:
        """The upload, and its parts that are listed; :raises S3Error: as :func:`nova.objectstore.multipart.choose`"""
        upload = await find_upload(self)
        algorithm = upload.checksum_algorithm if upload.checksum_type == checksums.COMPOSITE else ""
        try:
            return upload, multipart.choose(await multipart.parts_of(self.call.store, upload), listed, algorithm)
        except errors.InvalidPart:
            await find_upload(self)  # it may have ended just now, and its parts with it
            raise

    def _check_announced(self, upload: records.Upload, size: int) -> None:
        """Compare what the headers say of the object; :raises InvalidRequest:"""
        if "x-amz-mp-object-size" in self.headers:
            given = number(dict(self.headers), "X-Amz-Mp-Object-Size", 0, 0, multipart.MAX_OBJECT)
            if given != size:
                raise errors.InvalidRequest(
                    reason=f"The provided 'x-amz-mp-object-size' header value {given} does not match what was "
                           f"computed: {size}")
        kind = self.headers.get("x-amz-checksum-type")
        if kind is not None and upload.checksum_type and kind != upload.checksum_type:
            raise errors.InvalidRequest(
                reason=f"The upload was created using the {upload.checksum_type} checksum mode. The complete request "
                       "must use the same checksum mode.")

    def _listed(self) -> list[multipart.Listed]:
        listed = []
        for part in self.document("CompleteMultipartUpload").get("Parts", []):
            part_number, etag = part.get("PartNumber"), part.get("ETag", "").strip()
            if part_number is None or not etag:
                raise errors.MalformedXML()
            sums = {name: part.get(f"Checksum{name}", "").strip() for name in checksums.ALGORITHMS}
            listed.append(multipart.Listed(part_number, etag.strip('"'), {n: v for n, v in sums.items() if v}))
        if not 0 < len(listed) <= multipart.MAX_PARTS:
            raise errors.MalformedXML()
        return listed

    async def _outcome(self, task: "asyncio.Task[records.Object]") -> records.Object:
        """The object; that of another request for the same if it was faster: a client asks again when it gets
        impatient, and another process may serve it."""
        try:
            return await task
        except errors.NoSuchUpload:
            return await self._completed_before()

    async def _completed_before(self) -> records.Object:
        """The object, if this upload became it: the client did not get the first answer, and asks again."""
        store, key = self.call.store, self.target.key
        found = [await objects.find(store, self.bucket.id, key)]
        if self.bucket.versioning:
            found += await objects.older_versions(store, self.bucket, key, _RECENT)
        for version in found:
            if version and version.upload_id == self.target.params["uploadId"]:
                return version
        raise errors.NoSuchUpload()

    def _result(self, new: records.Object) -> Response:
        response = xml("CompleteMultipartUpload", self._members(new))
        response.headers |= {**object_headers.of_version(self.bucket, new), **lifecycle.headers(self.bucket, new)}
        return response

    def _members(self, new: records.Object) -> dict[str, Any]:
        return {"Location": f"{self.call.url}{self.target.path}", "Bucket": new.bucket, "Key": new.key,
                "ETag": f'"{new.etag}"', **checksums.members(new.checksums),
                "ChecksumType": new.checksum_type if new.checksums else None}

    async def _signs_of_life(self, task: "asyncio.Task[records.Object]") -> AsyncIterator[bytes]:
        """White space while it goes on, then the result or, as S3 does it, an error under status 200."""
        yield rest_xml.DECLARATION
        while not (await asyncio.wait([task], timeout=_PATIENCE))[0]:
            yield b" "
        try:
            document = rest_xml.write_body("CompleteMultipartUpload", self._members(await self._outcome(task)))
        except (exception.NovaError, OSError) as error:
            log.warning("completing an upload failed: %s", error)
            shown = errors.translate(error)
            document = rest_xml.write_error({"Code": shown.code, "Message": shown.message})
        yield document.removeprefix(rest_xml.DECLARATION)


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
        return xml("ListParts", {
            "Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.id,
            "Initiator": owner(upload.project_id), "Owner": owner(upload.project_id),
            "StorageClass": upload.storage_class,
            "PartNumberMarker": marker, "NextPartNumberMarker": page[-1].number if page else 0,
            "MaxParts": limit, "IsTruncated": len(page) < len(parts) and bool(page),
            "ChecksumAlgorithm": upload.checksum_algorithm or None, "ChecksumType": upload.checksum_type or None,
            "Parts": [{"PartNumber": p.number, "LastModified": p.modified, "ETag": f'"{p.md5}"', "Size": p.size,
                       **checksums.members(p.checksums)} for p in page]})
