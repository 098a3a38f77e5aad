"""Operations on versions: whether a bucket keeps them, and listing them."""

from typing import Any

from nova.datastore import Store
from nova.objectstore import buckets, errors, listing, objects, versions
from nova.objectstore.body import Received
from nova.objectstore.listing import Page
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.operations.base import Operation, Response, owner, xml
from nova.objectstore.operations.bucket import Listing

#: how often a page is read again that changed while it was read
_TURNS = 5


class GetBucketVersioning(Operation):
    """GET bucket?versioning."""

    async def run(self, received: Received) -> Response:
        return xml("GetBucketVersioning", {"Status": self.bucket.versioning or None})


class PutBucketVersioning(Operation):
    """PUT bucket?versioning: enables or suspends it; deletion is never tied to a second factor."""

    max_body = 1 << 20

    async def run(self, received: Received) -> Response:
        wanted = self.document("PutBucketVersioning")
        if wanted.get("MFADelete") == "Enabled" or "x-amz-mfa" in self.headers:
            raise errors.NotImplementedYet(what="MFA delete")
        if "Status" not in wanted:
            raise errors.IllegalVersioningConfiguration()
        await buckets.change(self.call.store, self.call.files, self.bucket, lambda _: {"versioning": wanted["Status"]})
        return Response()


class ListObjectVersions(Listing):
    """GET bucket?versions."""

    async def check(self) -> None:
        await super().check()
        params = self.target.params
        self.marker, self.version_marker = params.get("key-marker", ""), params.get("version-id-marker", "")
        if self.version_marker:
            if not self.marker:
                raise errors.InvalidArgument(reason="A version-id marker cannot be specified without a key marker.")
            versions.check_id(self.version_marker)

    async def run(self, received: Received) -> Response:
        after = await self._after()
        for _ in range(_TURNS):
            page = await self._walk(after)
            found = await _records(self.call.store, self.bucket, page.keys)
            if not self.bucket.versioning or await self._walk(after) == page and None not in found:
                break  # otherwise a version may have become an older one or the current one meanwhile, and be left out
        there = [record for record in found if record]
        next_key, next_version = versions.unname(page.next).decode(), None
        if page.next in page.keys[-1:]:
            next_key, next_version = versions.read_member(page.next)
            next_version = next_version or (versions.shown(found[-1]) if found[-1] else versions.NULL)
        return xml("ListObjectVersions", {
            **self.common(page), "KeyMarker": self.encoded(self.marker), "VersionIdMarker": self.version_marker,
            "NextKeyMarker": self.encoded(next_key) if page.next else None, "NextVersionIdMarker": next_version,
            "Versions": [{**self.item(record, True), **_version(record)} for record in there if not record.is_marker],
            "DeleteMarkers": [{"Key": self.encoded(record.key), "LastModified": record.modified,
                               "Owner": owner(record.project_id), **_version(record)}
                              for record in there if record.is_marker],
            "CommonPrefixes": [{"Prefix": self.encoded(versions.unname(prefix))} for prefix in page.prefixes]})

    async def _after(self) -> bytes:
        """Behind which member of the index, or which rolled-up prefix, the page begins."""
        if not self.marker:
            return b""
        if self.version_marker:
            found = await objects.find(self.call.store, self.bucket.id, self.marker, self.version_marker)
            if found is None:  # removed since the last page: what is left of its key is shown, maybe once more
                return versions.before(self.marker)
            return versions.member(found) or versions.live_member(self.marker.encode())
        if self.delimiter and self.marker.startswith(self.prefix):
            end = self.marker.find(self.delimiter, len(self.prefix))
            if end >= 0 and end + len(self.delimiter) == len(self.marker):
                return versions.name(self.marker)
        return versions.behind(self.marker)

    async def _walk(self, after: bytes) -> Page:
        store, bucket = self.call.store, self.bucket
        fetch = listing.with_versions(listing.index(store, bucket.keys_key), listing.index(store, bucket.versions_key))
        return await listing.walk(fetch, versions.name(self.prefix), versions.name(self.delimiter), after,
                                  min(self.limit, listing.MAX_KEYS), versions.TAIL)


def _version(record: Object) -> dict[str, Any]:
    return {"VersionId": versions.shown(record), "IsLatest": versions.is_current(record)}


async def _records(store: Store, bucket: Bucket, members: list[bytes]) -> list[Object | None]:
    """The records of versions, in the order of their members; None where there is none any more."""
    wanted = []
    for key, version in map(versions.read_member, members):
        id = object_id(bucket.id, key)
        wanted.append((id, versions.record_id(id, version), version))
    ids = {id: None for current, older, version in wanted for id in ((current, older) if version else (current,))}
    there = {record.id: record for record in await store.get_many(Object, ids)}
    found: list[Object | None] = []
    for current, older, version in wanted:
        record = there.get(current)
        if version:
            if record is None or versions.shown(record) != version:
                record = there.get(older)
        else:
            record = versions.live(record)
        found.append(record)
    return found
