"""Operations on who may do what: access control lists, policies, public access blocks, object ownership."""

from typing import Any

from nova import exception
from nova.objectstore import buckets, errors, objects
from nova.objectstore.access import acl, decision, policy
from nova.objectstore.access.acl import Acl
from nova.objectstore.body import Received
from nova.objectstore.models import Object
from nova.objectstore.operations.base import Operation, Response, xml
from nova.objectstore.operations.headers import of_version

_NO_POLICY = ("NoSuchBucketPolicy", "The bucket policy does not exist")
_NO_BLOCK = ("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found")
_NO_CONTROLS = ("OwnershipControlsNotFoundError", "The bucket ownership controls were not found")
_SWITCHES = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_MAX_DOCUMENT = 256 << 10


# -- access control lists ---------------------------------------------------------------------------------------------

class GetBucketAcl(Operation):
    """GET bucket?acl."""

    async def run(self, received: Received) -> Response:
        found = self.bucket.configuration.get("acl")
        if decision.ownership(self.bucket) == decision.ENFORCED or not found:
            found = acl.private(self.bucket.project_id)
        return xml("GetBucketAcl", found)


class GetObjectAcl(Operation):
    """GET object?acl."""

    async def run(self, received: Received) -> Response:
        record = await self.existing()
        found = record.acl
        if decision.ownership(self.bucket) == decision.ENFORCED or not found:
            found = acl.private(self.bucket.project_id)
        response = xml("GetObjectAcl", found)
        response.headers |= of_version(self.bucket, record)
        return response


class _PutAcl(Operation):
    """What both have in common."""

    max_body = _MAX_DOCUMENT

    def asked(self, owner: str) -> Acl:
        """The list that headers or body ask for.

        :raises S3Error:
        """
        made = acl.from_headers(self.headers, owner, self.bucket.project_id)
        if made is not None and self.body.data.strip():
            raise errors.InvalidRequest(reason="An ACL may be given by headers or in the body, not by both")
        if made is None:
            try:
                made = acl.from_document(self.document(self.action), owner)
            except exception.MalformedXML:
                raise errors.MalformedACL() from None
        if decision.ownership(self.bucket) == decision.ENFORCED and (
                self.headers.get("x-amz-acl") == "bucket-owner-full-control"):
            made = acl.private(self.bucket.project_id)
        decision.check_acl(self.bucket, made)
        return made


class PutBucketAcl(_PutAcl):
    """PUT bucket?acl."""

    async def run(self, received: Received) -> Response:
        made = self.asked(self.bucket.project_id)
        kept = None if made == acl.private(self.bucket.project_id) else made
        await buckets.configure(self.call.store, self.call.files, self.bucket, "acl", kept)
        return Response()


class PutObjectAcl(_PutAcl):
    """PUT object?acl."""

    async def check(self) -> None:
        self.found = await self.existing()

    async def run(self, received: Received) -> Response:
        home = self.bucket.project_id
        if decision.ownership(self.bucket) == decision.ENFORCED:
            self.asked(home)  # nothing but what holds anyway can be asked for
            return Response()
        owner = acl.owner_of(self.found.acl, home)
        made = self.asked(owner)

        def change(now: Object) -> dict[str, Any]:
            if acl.owner_of(now.acl, home) != owner:
                raise errors.AccessDenied()  # somebody else has put another object meanwhile
            return {"acl": {} if made == acl.private(home) else made}
        await objects.change(self.call.store, self.call.files, self.bucket.id, self.target.key, self.version, change)
        return Response(headers=of_version(self.bucket, self.found))


# -- policies ---------------------------------------------------------------------------------------------------------

class GetBucketPolicy(Operation):
    """GET bucket?policy: as it was put."""

    async def run(self, received: Received) -> Response:
        text = self.bucket.configuration.get("policy")
        if text is None:
            raise errors.NothingSet(*_NO_POLICY)
        return Response(headers={"Content-Type": "application/json"}, body=text.encode())


class PutBucketPolicy(Operation):
    """PUT bucket?policy."""

    max_body = _MAX_DOCUMENT

    async def run(self, received: Received) -> Response:
        try:
            text = self.body.data.decode()
        except UnicodeDecodeError:
            raise errors.MalformedPolicy("Policies must be valid JSON in UTF-8") from None
        read = policy.parse(text, self.bucket.id)
        if read.is_public and decision.is_blocked(self.bucket, "BlockPublicPolicy"):
            raise errors.AccessDenied()
        await buckets.configure(self.call.store, self.call.files, self.bucket, "policy", text)
        return Response(204)


class DeleteBucketPolicy(Operation):
    """DELETE bucket?policy; it is no error if there is none."""

    async def run(self, received: Received) -> Response:
        await buckets.configure(self.call.store, self.call.files, self.bucket, "policy", None)
        return Response(204)


class GetBucketPolicyStatus(Operation):
    """GET bucket?policyStatus: whether the policy lets in whoever comes."""

    async def run(self, received: Received) -> Response:
        found = decision.policy_of(self.bucket)
        if found is None:
            raise errors.NothingSet(*_NO_POLICY)
        return xml("GetBucketPolicyStatus", {"IsPublic": found.is_public})


# -- what limits both -------------------------------------------------------------------------------------------------

class GetPublicAccessBlock(Operation):
    """GET bucket?publicAccessBlock."""

    async def run(self, received: Received) -> Response:
        found = self.bucket.configuration.get("publicAccessBlock")
        if found is None:
            raise errors.NothingSet(*_NO_BLOCK)
        return xml("GetPublicAccessBlock", found)


class PutPublicAccessBlock(Operation):
    """PUT bucket?publicAccessBlock; what is not named is off."""

    async def run(self, received: Received) -> Response:
        document = self.document("PutPublicAccessBlock")
        switches = {name: document.get(name, False) for name in _SWITCHES}
        await buckets.configure(self.call.store, self.call.files, self.bucket, "publicAccessBlock", switches)
        return Response()


class DeletePublicAccessBlock(Operation):
    """DELETE bucket?publicAccessBlock."""

    async def run(self, received: Received) -> Response:
        await buckets.configure(self.call.store, self.call.files, self.bucket, "publicAccessBlock", None)
        return Response(204)


class GetBucketOwnershipControls(Operation):
    """GET bucket?ownershipControls."""

    async def run(self, received: Received) -> Response:
        found = self.bucket.configuration.get("ownershipControls")
        if found is None:
            raise errors.NothingSet(*_NO_CONTROLS)
        return xml("GetBucketOwnershipControls", found)


class PutBucketOwnershipControls(Operation):
    """PUT bucket?ownershipControls."""

    async def run(self, received: Received) -> Response:
        document = self.document("PutBucketOwnershipControls")
        if len(document["Rules"]) != 1:
            raise errors.MalformedXML()
        found = self.bucket.configuration.get("acl", {})
        if document["Rules"][0]["ObjectOwnership"] == decision.ENFORCED and not acl.gives_only_to(
                found, {self.bucket.project_id}):
            raise errors.InvalidBucketAclWithObjectOwnership()
        await buckets.configure(self.call.store, self.call.files, self.bucket, "ownershipControls", document)
        return Response()


class DeleteBucketOwnershipControls(Operation):
    """DELETE bucket?ownershipControls."""

    async def run(self, received: Received) -> Response:
        await buckets.configure(self.call.store, self.call.files, self.bucket, "ownershipControls", None)
        return Response(204)
