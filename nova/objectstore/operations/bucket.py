"""Operations on buckets: making, removing and listing them."""

import asyncio

from nova import exception
from nova.flags import FLAGS
from nova.objectstore import buckets, errors, listing, multipart, objects, s3xml
from nova.objectstore.body import Received
from nova.objectstore.models import Object, Upload
from nova.objectstore.operations.base import Encoding, Operation, Response, iso_time, owner, xml
from nova.objectstore.operations.headers import check_acl
from nova.objectstore.request import MAX_KEY, number
from nova.objectstore.s3xml import Element

_MAX_NUMBER = 2**31 - 1


class CreateBucket(Operation):
    """PUT bucket."""

    in_bucket = False

    async def check(self) -> None:
        buckets.check_name(self.target.bucket)
        check_acl(self.headers)
        if self.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
            raise errors.NotImplementedYet(what="Object lock")

    async def run(self, received: Received) -> Response:
        location = ""
        if self.body.data.strip():
            location = s3xml.text(s3xml.parse(self.body.data, "CreateBucketConfiguration"), "LocationConstraint") or ""
        await buckets.create(self.call.store, self.call.files, self.target.bucket, self.project_id,
                             self.call.identity.user_id, location[:64])
        return Response(headers={"Location": f"/{self.target.bucket}"})


class HeadBucket(Operation):
    """HEAD bucket: whether it is there and may be used."""

    async def run(self, received: Received) -> Response:
        return Response(headers={"x-amz-bucket-region": FLAGS.region, "Content-Type": "application/xml"})


class DeleteBucket(Operation):
    """DELETE bucket; its multipart uploads are aborted."""

    async def run(self, received: Received) -> Response:
        store = self.call.store
        if not await buckets.is_empty(store, self.bucket):
            raise errors.BucketNotEmpty()
        fetch = listing.index(store, self.bucket.uploads_key)
        while members := await fetch(b"-", b"+", listing.MAX_KEYS):
            for upload in await store.get_many(Upload, [m.rpartition(b"\0")[2].decode() for m in members]):
                await self._abort(upload)
        await buckets.delete(store, self.call.files, self.bucket)
        return Response(204)

    async def _abort(self, upload: Upload) -> None:
        try:
            await multipart.abort(self.call.store, self.call.files, self.bucket, upload)
        except errors.NoSuchUpload:
            return  # its client was faster


class _ListObjects(Operation):
    """What both forms of listing have in common."""

    async def check(self) -> None:
        params = self.target.params
        self.encoded = Encoding(params)
        self.prefix, self.delimiter = params.get("prefix", ""), params.get("delimiter", "")
        self.limit = number(params, "max-keys", listing.MAX_KEYS, 0, _MAX_NUMBER)

    async def page(self, after: str) -> tuple[listing.Page, list[Object]]:
        """The page that begins after a key, and its objects."""
        fetch = listing.index(self.call.store, self.bucket.keys_key)
        page = await listing.walk(fetch, self.prefix.encode(), self.delimiter.encode(), after.encode(),
                                  min(self.limit, listing.MAX_KEYS))
        return page, await objects.read_many(self.call.store, self.bucket, page.keys)

    def common(self, page: listing.Page) -> list[Element]:
        """The elements that every listing begins with."""
        return [("Name", self.bucket.id), ("Prefix", self.encoded(self.prefix)), ("MaxKeys", self.limit),
                ("Delimiter", self.encoded(self.delimiter) if self.delimiter else None),
                ("EncodingType", self.encoded.name), ("IsTruncated", bool(page.next))]

    def item(self, found: Object, with_owner: bool) -> list[Element]:
        """One object."""
        return [("Key", self.encoded(found.key)), ("LastModified", iso_time(found.modified)),
                ("ETag", f'"{found.etag}"'), ("Size", found.size), ("StorageClass", found.storage_class),
                *([owner(found.project_id)] if with_owner else [])]

    def prefixes(self, page: listing.Page) -> list[Element]:
        """The rolled-up prefixes."""
        return [("CommonPrefixes", [("Prefix", self.encoded(prefix))]) for prefix in page.prefixes]


class ListObjects(_ListObjects):
    """GET bucket, the first form."""

    async def run(self, received: Received) -> Response:
        marker = self.target.params.get("marker", "")
        page, found = await self.page(marker)
        return xml("ListBucketResult", [
            *self.common(page), ("Marker", self.encoded(marker)),
            ("NextMarker", self.encoded(page.next) if page.next else None),
            *(("Contents", self.item(o, True)) for o in found), *self.prefixes(page)])


class ListObjectsV2(_ListObjects):
    """GET bucket?list-type=2."""

    async def run(self, received: Received) -> Response:
        params = self.target.params
        token, start_after = params.get("continuation-token"), params.get("start-after", "")
        if token == "":
            raise errors.InvalidArgument(reason="The continuation token provided is incorrect")
        after = listing.read_token(token).decode() if token else start_after
        page, found = await self.page(after)
        with_owner = params.get("fetch-owner", "").lower() == "true"
        return xml("ListBucketResult", [
            *self.common(page), ("KeyCount", len(page)), ("ContinuationToken", token),
            ("NextContinuationToken", listing.token(page.next) if page.next else None),
            ("StartAfter", self.encoded(start_after) if start_after else None),
            *(("Contents", self.item(o, with_owner)) for o in found), *self.prefixes(page)])


class ListObjectVersions(_ListObjects):
    """GET bucket?versions: each object has the one version 'null'."""

    async def run(self, received: Received) -> Response:
        marker = self.target.params.get("key-marker", "")
        page, found = await self.page(marker)
        return xml("ListVersionsResult", [
            *self.common(page), ("KeyMarker", self.encoded(marker)),
            ("VersionIdMarker", self.target.params.get("version-id-marker", "")),
            ("NextKeyMarker", self.encoded(page.next) if page.next else None),
            ("NextVersionIdMarker", "null" if page.next else None),
            *(("Version", [("VersionId", "null"), ("IsLatest", True), *self.item(o, True)]) for o in found),
            *self.prefixes(page)])


class ListMultipartUploads(Operation):
    """GET bucket?uploads."""

    async def run(self, received: Received) -> Response:
        params, store = self.target.params, self.call.store
        encoded = Encoding(params)
        limit = number(params, "max-uploads", listing.MAX_KEYS, 0, _MAX_NUMBER)
        marker, id_marker = params.get("key-marker", ""), params.get("upload-id-marker", "")
        prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
        after = f"{marker}\0{id_marker or '~'}".encode() if marker else b""
        page = await listing.walk(listing.index(store, self.bucket.uploads_key), prefix.encode(), delimiter.encode(),
                                  after, min(limit, listing.MAX_KEYS), tail=33)
        uploads = await store.get_many(Upload, [m.rpartition(b"\0")[2].decode() for m in page.keys])
        shown: list[Element] = [
            ("Upload", [("Key", encoded(u.key)), ("UploadId", u.id), owner(u.project_id, "Initiator"),
                        owner(u.project_id), ("StorageClass", u.storage_class), ("Initiated", iso_time(u.initiated))])
            for u in uploads]
        shown += [("CommonPrefixes", [("Prefix", encoded(p))]) for p in page.prefixes]
        next_key, _, next_id = page.next.rpartition(b"\0") if page.next in page.keys[-1:] else (page.next, b"", b"")
        return xml("ListMultipartUploadsResult", [
            ("Bucket", self.bucket.id), ("KeyMarker", encoded(marker)), ("UploadIdMarker", id_marker),
            ("NextKeyMarker", encoded(next_key) if page.next else None),
            ("NextUploadIdMarker", next_id.decode() if page.next else None),
            ("Prefix", encoded(prefix)), ("Delimiter", encoded(delimiter) if delimiter else None),
            ("EncodingType", encoded.name), ("MaxUploads", limit), ("IsTruncated", bool(page.next)),
            *shown])


class DeleteObjects(Operation):
    """POST bucket?delete: up to 1,000 keys, each with an answer of its own."""

    max_body = 4 << 20
    _AT_ONCE = 20

    async def run(self, received: Received) -> Response:
        tree = s3xml.parse(self.body.data, "Delete")
        quiet = (s3xml.text(tree, "Quiet") or "").lower() == "true"
        items = tree.findall("Object")
        if not 0 < len(items) <= listing.MAX_KEYS or any(item.find("Key") is None for item in items):
            raise errors.MalformedXML()
        wanted = [(item.findtext("Key") or "", s3xml.text(item, "VersionId")) for item in items]
        results: list[Element] = []
        for start in range(0, len(wanted), self._AT_ONCE):
            results += await asyncio.gather(*(self._delete(*w) for w in wanted[start:start + self._AT_ONCE]))
        return xml("DeleteResult", [r for r in results if r[0] == "Error" or not quiet])

    async def _delete(self, key: str, version: str | None) -> Element:
        name: list[Element] = [("Key", key), ("VersionId", version or None)]
        try:
            if not key or len(key.encode()) > MAX_KEY:
                raise errors.KeyTooLong()
            if version not in (None, "", "null"):
                raise errors.NoSuchVersion()
            await objects.delete(self.call.store, self.call.files, self.bucket, key)
        except errors.S3Error as error:
            return ("Error", [*name, ("Code", error.code), ("Message", error.message)])
        except (exception.Unavailable, OSError) as error:
            shown = errors.translate(error)
            return ("Error", [*name, ("Code", shown.code), ("Message", shown.message)])
        return ("Deleted", name)
