"""Operations on buckets: making, removing and listing them."""

import asyncio
from typing import Any, NamedTuple

from nova import exception
from nova.objectstore import buckets, errors, listing, multipart, objects, versions
from nova.objectstore.access import acl, decision, values
from nova.objectstore.body import Received
from nova.objectstore.models import Object, Upload, object_id
from nova.objectstore.operations.base import Encoding, Operation, Response, owner, xml
from nova.objectstore.request import MAX_KEY, number

_MAX_NUMBER = 2**31 - 1


class CreateBucket(Operation):
    """PUT bucket."""

    in_bucket = False

    async def check(self) -> None:
        buckets.check_name(self.target.bucket)
        self.configuration = decision.new_bucket_configuration(self.headers, self.project_id)
        if self.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
            raise errors.NotImplementedYet(what="Object lock")

    async def run(self, received: Received) -> Response:
        location = ""
        if self.body.data.strip():
            location = self.document("CreateBucket").get("LocationConstraint", "").strip()
        await buckets.create(self.call.store, self.call.files, self.target.bucket, self.project_id,
                             self.call.identity.user_id, location[:64], self.configuration)
        return Response(headers={"Location": f"/{self.target.bucket}"})


class HeadBucket(Operation):
    """HEAD bucket: whether it is there and may be used."""

    async def run(self, received: Received) -> Response:
        return Response(headers={"x-amz-bucket-region": buckets.location(self.bucket),
                                 "Content-Type": "application/xml"})


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


class Listed(NamedTuple):
    """What a listing shows of an object: a thousand whole records take much longer to read."""

    key: str
    modified: float
    etag: str
    size: int
    storage_class: str
    project_id: str
    acl: dict[str, Any]
    is_marker: bool


class Listing(Operation):
    """What all listings of objects have in common."""

    async def check(self) -> None:
        params = self.target.params
        self.encoded = Encoding(params)
        self.prefix, self.delimiter = params.get("prefix", ""), params.get("delimiter", "")
        self.limit = number(params, "max-keys", listing.MAX_KEYS, 0, _MAX_NUMBER)

    async def page(self, after: str) -> tuple[listing.Page, list[Listed]]:
        """The page that begins after a key, and its objects."""
        fetch = listing.index(self.call.store, self.bucket.keys_key)
        page = await listing.walk(fetch, self.prefix.encode(), self.delimiter.encode(), after.encode(),
                                  min(self.limit, listing.MAX_KEYS))
        ids = [object_id(self.bucket.id, key.decode()) for key in page.keys]
        rows = map(Listed._make, await self.call.store.get_fields(Object, ids, Listed._fields))
        return page, [found for found in rows if not found.is_marker]

    def common(self, page: listing.Page) -> dict[str, Any]:
        """What every listing has."""
        return {"Name": self.bucket.id, "Prefix": self.encoded(self.prefix), "MaxKeys": self.limit,
                "Delimiter": self.encoded(self.delimiter) if self.delimiter else None,
                "EncodingType": self.encoded.name, "IsTruncated": bool(page.next)}

    def item(self, found: Object | Listed, with_owner: bool) -> dict[str, Any]:
        """One object."""
        return {"Key": self.encoded(found.key), "LastModified": found.modified, "ETag": f'"{found.etag}"',
                "Size": found.size, "StorageClass": found.storage_class,
                "Owner": owner(acl.owner_of(found.acl, found.project_id)) if with_owner else None}

    def prefixes(self, page: listing.Page) -> list[dict[str, str]]:
        """The rolled-up prefixes."""
        return [{"Prefix": self.encoded(prefix)} for prefix in page.prefixes]


class ListObjects(Listing):
    """GET bucket, the first form."""

    async def run(self, received: Received) -> Response:
        marker = self.target.params.get("marker", "")
        page, found = await self.page(marker)
        return xml("ListObjects", {
            **self.common(page), "Marker": self.encoded(marker),
            "NextMarker": self.encoded(page.next) if page.next else None,
            "Contents": [self.item(o, True) for o in found], "CommonPrefixes": self.prefixes(page)})


class ListObjectsV2(Listing):
    """GET bucket?list-type=2."""

    async def run(self, received: Received) -> Response:
        params = self.target.params
        token, start_after = params.get("continuation-token"), params.get("start-after", "")
        if token == "":
            raise errors.InvalidArgument(reason="The continuation token provided is incorrect")
        after = listing.read_token(token).decode() if token else start_after
        page, found = await self.page(after)
        with_owner = params.get("fetch-owner", "").lower() == "true"
        return xml("ListObjectsV2", {
            **self.common(page), "KeyCount": len(page), "ContinuationToken": token,
            "NextContinuationToken": listing.token(page.next) if page.next else None,
            "StartAfter": self.encoded(start_after) if start_after else None,
            "Contents": [self.item(o, with_owner) for o in found], "CommonPrefixes": self.prefixes(page)})


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
        next_key, _, next_id = page.next.rpartition(b"\0") if page.next in page.keys[-1:] else (page.next, b"", b"")
        return xml("ListMultipartUploads", {
            "Bucket": self.bucket.id, "KeyMarker": encoded(marker), "UploadIdMarker": id_marker,
            "NextKeyMarker": encoded(next_key) if page.next else None,
            "NextUploadIdMarker": next_id.decode() if page.next else None,
            "Prefix": encoded(prefix), "Delimiter": encoded(delimiter) if delimiter else None,
            "EncodingType": encoded.name, "MaxUploads": limit, "IsTruncated": bool(page.next),
            "Uploads": [{"Key": encoded(u.key), "UploadId": u.id, "Initiator": owner(u.project_id),
                         "Owner": owner(u.project_id), "StorageClass": u.storage_class, "Initiated": u.initiated}
                        for u in uploads],
            "CommonPrefixes": [{"Prefix": encoded(p)} for p in page.prefixes]})


class DeleteObjects(Operation):
    """POST bucket?delete: up to 1,000 keys, each with an answer of its own."""

    max_body = 4 << 20
    _AT_ONCE = 20

    async def admit(self) -> None:
        """Each key is asked for when it is known."""
        if not decision.may_some(self.question(self.action, self.bucket, "")):
            raise errors.AccessDenied()

    async def run(self, received: Received) -> Response:
        request = self.document("DeleteObjects")
        if len(request["Objects"]) > listing.MAX_KEYS:
            raise errors.MalformedXML()
        wanted = request["Objects"]
        results: list[dict[str, Any]] = []
        for start in range(0, len(wanted), self._AT_ONCE):
            results += await asyncio.gather(*map(self._delete, wanted[start:start + self._AT_ONCE]))
        deleted = [] if request.get("Quiet") else [result for result in results if "Code" not in result]
        return xml("DeleteObjects", {"Deleted": deleted, "Errors": [result for result in results if "Code" in result]})

    async def _delete(self, item: dict[str, Any]) -> dict[str, Any]:
        """Remove one; its answer has a Code if that was not possible."""
        key, version = item["Key"], item.get("VersionId", "").strip()
        modified = item.get("LastModifiedTime")
        check = objects.delete_check(item.get("ETag"), item.get("Size"), modified and modified.timestamp())
        name = {"Key": key, "VersionId": version or None}
        try:
            if not key or len(key.encode()) > MAX_KEY:
                raise errors.KeyTooLong()
            await self.authorize(self.action, self.bucket, key, version or None,
                                 values.of_etag(item["ETag"]) if "ETag" in item else None)
            removed = await objects.delete(self.call.store, self.call.files, self.bucket, key, version or None, check)
        except errors.InvalidArgument:  # an id that no version has; here S3 tells it so
            return {**name, "Code": errors.NoSuchVersion.code, "Message": errors.NoSuchVersion.message}
        except errors.S3Error as error:
            return {**name, "Code": error.code, "Message": error.message}
        except (exception.Unavailable, OSError) as error:
            shown = errors.translate(error)
            return {**name, "Code": shown.code, "Message": shown.message}
        if removed and removed.is_marker:
            return {**name, "DeleteMarker": True, "DeleteMarkerVersionId": versions.shown(removed)}
        return name
