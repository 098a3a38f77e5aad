"""Operations on objects: putting, getting, copying and removing them."""

import time
from dataclasses import replace

from nova import process
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import buckets, checksums, conditions, errors, lifecycle, objects, tags, versions
from nova.objectstore.body import Received, Target
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.operations import headers as object_headers
from nova.objectstore.operations.base import Operation, Response, Upload, xml
from nova.objectstore.request import copy_source, number
from nova.objectstore.serving import StoredFile, body_of
from nova.objectstore.storage import Undo

DEFINE_integer("s3_sendfile_size", 128 << 10, "bytes of an object from which on the nginx in front gives them out, if "
               "it can", lower_bound=1)

#: how often an object is looked up again whose file was replaced between reading the record and opening the file
_TURNS = 3
#: seconds for which what was read at the beginning of a request is not read again at its end
_RECENT = 1.0


class PutObject(Upload):
    """PUT object."""

    async def prepare(self) -> Target:
        await super().prepare()
        return await self.place_for(f"o-{object_id(self.bucket.id, self.target.key)}")

    async def find_bucket(self) -> Bucket:
        identity, target = self.call.identity, self.target
        bucket, self._seen = await objects.see(self.call.store, target.bucket, target.key, identity.project_id,
                                               identity.user_id)
        if bucket is None:
            raise errors.NoSuchBucket()
        return bucket

    async def check(self) -> None:
        if "partNumber" in self.target.params:  # or what was to be a part would take the place of the object
            raise errors.InvalidArgument(reason="A part number needs an upload id")
        object_headers.check_offered(self.headers)
        self.metadata = object_headers.metadata(self.headers)
        self.tags = tags.from_header(self.headers)
        self.acl = self.new_acl()
        self.may_replace = objects.write_check(self.headers)
        old = self._seen.current
        self.may_replace(versions.live(old))
        await self.check_room(versions.replaces(self.bucket.versioning, old))

    @property
    def wanted_checksums(self) -> frozenset[str]:
        named = object_headers.checksum_algorithm(self.headers, "x-amz-sdk-checksum-algorithm")
        return frozenset((named,)) if named else frozenset()

    async def run(self, received: Received) -> Response:
        new = objects.planned(self.bucket, Object(
            object_id(self.bucket.id, self.target.key), bucket=self.bucket.id, key=self.target.key,
            project_id=self.bucket.project_id, user_id=self.bucket.user_id, file=self.file,
            size=received.size, md5=received.md5, sha256=received.sha256, etag=received.md5, modified=time.time(),
            headers=object_headers.content(self.headers), metadata=self.metadata,
            storage_class=object_headers.storage_class(self.headers), checksums=received.checksums, tags=self.tags,
            acl=self.acl))
        await self.publish(new)
        async with Undo(self.call.files, new.file):
            recent = time.time() - self.call.received < _RECENT
            new = await objects.put(self.call.store, self.call.files, self.bucket, new, self.may_replace,
                                    seen=self._seen if recent else None)
        return Response(headers={"ETag": f'"{new.etag}"', **object_headers.of_version(self.bucket, new),
                                 **object_headers.of_checksums(new), **lifecycle.headers(self.bucket, new)})


class CopyObject(Operation):
    """PUT object with x-amz-copy-source: another name for the same bytes."""

    async def check(self) -> None:
        object_headers.check_offered(self.headers)
        self.acl = self.new_acl()
        self.directive = self.headers.get("x-amz-metadata-directive", "COPY").upper()
        if self.directive not in ("COPY", "REPLACE"):
            raise errors.InvalidArgument(reason="Unknown metadata directive.")
        self.tagging = self.headers.get("x-amz-tagging-directive", "COPY").upper()
        if self.tagging not in ("COPY", "REPLACE"):
            raise errors.InvalidArgument(reason="Unknown tagging directive.")
        self.tags = tags.from_header(self.headers)
        self.algorithm = object_headers.checksum_algorithm(self.headers, "x-amz-checksum-algorithm")
        self.source = copy_source(self.headers["x-amz-copy-source"])
        onto_itself = self.source[:2] == (self.bucket.id, self.target.key)
        names_a_version = self.bucket.versioning and self.source[2] is not None
        if onto_itself and self.directive == "COPY" and not names_a_version:
            raise errors.InvalidRequest(
                reason="This copy request is illegal because it is trying to copy an object to itself without "
                       "changing the object's metadata, storage class, website redirect location or encryption "
                       "attributes.")

    async def run(self, received: Received) -> Response:
        files = self.call.files
        told, new = await self._link()
        async with Undo(files, new.file):
            new = await objects.put(self.call.store, files, self.bucket, new, objects.write_check(self.headers))
        response = xml("CopyObject", {"ETag": f'"{new.etag}"', "LastModified": new.modified,
                                      **checksums.members(new.checksums),
                                      "ChecksumType": new.checksum_type if new.checksums else None})
        response.headers |= {**told, **object_headers.of_version(self.bucket, new),
                             **lifecycle.headers(self.bucket, new)}
        return response

    async def _checksums(self, source: Object) -> dict[str, str]:
        """The checksum of the copy, which is of the whole object: what the source has of the algorithm asked for, or
        computed from the bytes; without one asked for, of the source's.  A source that is known by its parts keeps what
        it has, unless one is asked for.

        :raises FileNotFoundError: the file is gone
        """
        if _is_known_by_parts(source) and not self.algorithm:
            return source.checksums
        known = source.checksums if source.checksum_type == checksums.FULL_OBJECT else {}
        wanted = self.algorithm or next(iter(source.checksums), "")
        if wanted in known or not wanted:
            return {wanted: known[wanted]} if self.algorithm else known
        hasher = checksums.hasher(wanted)

        def compute() -> str:
            for block in self.call.files.read(source.file):
                hasher.update(block)
            return checksums.encode(hasher.digest())
        return {wanted: await process.wait(self.call.files.pool.run(compute))}

    async def _link(self) -> tuple[dict[str, str], Object]:
        """What the answer tells of the source, and the copy, whose file is there."""
        files = self.call.files
        for _ in range(_TURNS):
            told, source = await open_source(self, *self.source)
            try:
                new = self._copy_of(source, await self._checksums(source))
                await process.wait(files.pool.run(files.link, source.file, new))
            except FileNotFoundError:
                continue
            return told, new
        raise errors.InternalError()

    def _copy_of(self, source: Object, sums: dict[str, str]) -> Object:
        id = object_id(self.bucket.id, self.target.key)
        anew = self.directive == "REPLACE"
        new = objects.planned(self.bucket, Object(
            id, bucket=self.bucket.id, key=self.target.key, project_id=self.bucket.project_id,
            user_id=self.bucket.user_id, file=self.call.files.name(f"o-{id}"), size=source.size, md5=source.md5,
            sha256=source.sha256, etag=source.md5, modified=time.time(),
            headers=object_headers.content(self.headers) if anew else source.headers,
            metadata=object_headers.metadata(self.headers) if anew else source.metadata,
            storage_class=object_headers.storage_class(self.headers),
            checksums=sums, tags=self.tags if self.tagging == "REPLACE" else source.tags, acl=self.acl))
        if not _is_known_by_parts(source):
            return new
        new = replace(new, etag=source.etag, part_sizes=source.part_sizes)
        if sums != source.checksums:
            return new
        return replace(new, part_checksums=source.part_checksums, checksum_type=source.checksum_type)


def _is_known_by_parts(source: Object) -> bool:
    """Whether nobody has read the bytes of an object as a whole: what keeps them has put its parts together."""
    return not source.md5


async def open_source(operation: Operation, bucket: str, key: str,
                      version: str | None) -> tuple[dict[str, str], Object]:
    """The headers that tell which version is copied, and the object to copy from.

    :raises NoSuchBucket, NoSuchKey, NoSuchVersion, AccessDenied, PreconditionFailed:
    :raises InvalidRequest: this version is a delete marker
    """
    owner = await buckets.get(operation.call.store, bucket)
    if operation.headers.get("x-amz-source-expected-bucket-owner", owner.project_id) != owner.project_id:
        raise errors.AccessDenied()
    try:
        source = await operation.authorize("GetObject", owner, key, version)
        source = source or await objects.open_object(operation.call.store, bucket, key, version)
    except errors.VersionIsMarker:
        raise errors.InvalidRequest(reason="The source of a copy request may not specifically refer to a delete "
                                           "marker by version id.") from None
    except (errors.NoSuchKey, errors.NoSuchVersion) as error:
        if not operation.may_list(owner):
            raise errors.AccessDenied() from None
        if isinstance(error, errors.KeyIsDeleted):
            raise errors.NoSuchKey() from None  # its headers would speak of the copy
        raise
    conditions.check_copy(operation.headers, source.etag, source.modified)
    return {f"x-amz-copy-source-{name.removeprefix('x-amz-')}": value
            for name, value in object_headers.of_version(owner, source).items()}, source


class GetObject(Operation):
    """GET and HEAD object, whole or one range or part of it."""

    #: what had the key when the bucket was read, until it is used
    _first: Object | None = None

    async def check(self) -> None:
        if self.call.claim.scheme == "anonymous":
            object_headers.check_overrides(self.target.params)

    async def find_bucket(self) -> Bucket:
        """The bucket, and what has the key in it, in one round trip."""
        if "versionId" in self.target.params:
            return await super().find_bucket()
        name = self.target.bucket
        bucket, self._first = await self.call.store.get_two(Bucket, name, Object, object_id(name, self.target.key))
        if bucket is None:
            raise errors.NoSuchBucket()
        return bucket

    async def find_object(self, bucket: Bucket, key: str, version: str | None) -> Object | None:
        return self._first or await super().find_object(bucket, key, version)

    async def existing(self) -> Object:
        first, self._first = self._first, None
        found = self.record or versions.live(first)
        return objects.whole(found) if found else await super().existing()

    async def run(self, received: Received) -> Response:
        with_body = self.call.method != "HEAD"
        for _ in range(_TURNS):
            found = await self.existing()
            response, start, length = self._describe(found)
            if not with_body or not length:
                return response
            try:
                if self.call.sends_files and self.call.files.nginx_has_them and length >= FLAGS.s3_sendfile_size:
                    self.call.files.open(found).close()  # it is there, and as large as it should be
                    response.file = StoredFile(found.file, (start, length) if response.status == 206 else None)
                else:
                    response.body = await body_of(self.call.files, found, start, length)
            except FileNotFoundError:
                await self.admit()  # another object has its key now, which may have another access control list
                continue
            return response
        raise errors.InternalError()

    def _describe(self, found: Object) -> tuple[Response, int, int]:
        try:
            conditions.check_read(self.headers, found.etag, found.modified)
            part = self._part(found)
            chosen = part or conditions.parse_range(self.headers.get("Range"), found.size)
        except errors.NotModified as error:
            headers = object_headers.of_object(found, {}, False)
            return Response(error.status, {**{n: headers[n] for n in ("ETag", "Last-Modified")},
                                           **object_headers.of_version(self.bucket, found)}), 0, 0
        start, length = chosen or (0, found.size)
        whole = length == found.size
        with_checksums = whole and self.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
        headers = object_headers.of_object(found, self.target.params, with_checksums)
        headers |= {**object_headers.of_version(self.bucket, found), **lifecycle.headers(self.bucket, found)}
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
            raise errors.InvalidPartNumber()
        return sum(sizes[:wanted - 1]), sizes[wanted - 1]


class DeleteObject(Operation):
    """DELETE object; it is no error if there is none."""

    _seen: objects.Seen | None = None

    async def find_bucket(self) -> Bucket:
        """The bucket, and what has the key in it, in one round trip."""
        if "versionId" in self.target.params:
            return await super().find_bucket()
        name = self.target.bucket
        bucket, current = await self.call.store.get_two(Bucket, name, Object, object_id(name, self.target.key))
        if bucket is None:
            raise errors.NoSuchBucket()
        self._seen = objects.Seen(current)
        return bucket

    async def run(self, received: Received) -> Response:
        removed = await objects.delete(self.call.store, self.call.files, self.bucket, self.target.key, self.version,
                                       self._condition(), self._seen)
        headers = {}
        if self.version is not None:
            headers["x-amz-version-id"] = self.version
        elif removed and removed.is_marker:
            headers["x-amz-version-id"] = versions.shown(removed)
        if removed and removed.is_marker:
            headers["x-amz-delete-marker"] = "true"
        return Response(204, headers)

    def _condition(self) -> objects.Check | None:
        """What the headers ask of the object; :raises InvalidArgument:"""
        size, modified = (self.headers.get(f"x-amz-if-match-{name}") for name in ("size", "last-modified-time"))
        seconds = conditions.seconds(modified) if modified else None
        if modified and seconds is None:
            raise errors.InvalidArgument(reason="x-amz-if-match-last-modified-time is no date")
        return objects.delete_check(self.headers.get("If-Match"), number({"size": size}, "size", 0, 0, 2**63 - 1)
                                    if size else None, seconds)
