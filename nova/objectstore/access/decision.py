"""The one place that decides who may do what in a bucket.

In this order: the managers of the bucket's project can always get at its policy; what the policy denies is refused to
everybody; the table of roles (nova.auth.rbac) says what the users of the bucket's project and the cloud's own staff
may; what the policy allows, and then what the access control list of the bucket or the object gives, is added to that,
as far as the bucket's public access block and object ownership let it.  What nothing allows is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nova.auth import rbac
from nova.objectstore import errors
from nova.objectstore.access import acl, actions, policy, values
from nova.objectstore.access.acl import Acl
from nova.objectstore.access.pattern import Values
from nova.objectstore.access.policy import Asker, Effect, Policy
from nova.objectstore.models import Bucket, Object

ENFORCED, PREFERRED, WRITER = "BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"
#: what a project's managers cannot be denied, so that they can undo what locks everybody out
_UNDENIABLE = frozenset(("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy"))


@dataclass(frozen=True)
class Unread:
    """Stands for an object whose record has not been looked up."""


UNREAD = Unread()


@dataclass(frozen=True)
class Question:
    """May this caller do this?

    `operation` is a name in the table of roles, `key` '' where the bucket itself is meant.  `values` are what the
    request has under the condition keys of policies.
    """

    caller: rbac.Caller
    operation: str
    bucket: Bucket
    key: str
    values: Values
    with_version: bool = False

    @property
    def asker(self) -> Asker:
        """Who asks, as policies know them."""
        return Asker(self.caller.project_id, self.caller.user_id)

    @property
    def resource(self) -> str:
        """The ARN of what it is about."""
        return policy.object_arn(self.bucket.id, self.key) if self.key else policy.bucket_arn(self.bucket.id)


def decide(question: Question, found: Object | Unread | None = UNREAD) -> bool | None:
    """Whether it may be done; None if the object's record must be read to know.

    :param found: the object that the question is about, None if there is none
    :raises MalformedPolicy: the bucket's policy was stored by a version of Nova that understood it
    """
    caller, bucket = question.caller, question.bucket
    need = actions.need(question.operation, question.with_version)
    by_role = rbac.allows(caller, question.operation, bucket.user_id, bucket.project_id)
    if question.operation in _UNDENIABLE and by_role and rbac.PROJECTMANAGER in caller.roles:
        return True
    rules = policy_of(bucket)
    effect = Effect.NOTHING
    if rules:
        looked_at = question.values
        if need.of_object and rules.needs_tags:
            if isinstance(found, Unread):
                return None
            looked_at = {**looked_at, **values.of_object_tags(found.tags if found else {})}
        effect = rules.effect(question.asker, need.actions, question.resource, looked_at, bucket.project_id)
    if effect is Effect.DENY:
        return False
    if by_role or (effect is Effect.ALLOW and rules and _counts(rules, question)):
        return True
    if not need.permission or ownership(bucket) == ENFORCED:
        return False
    if not need.of_object:
        return _listed(bucket.configuration.get("acl", {}), question, need.permission)
    return None if isinstance(found, Unread) else found is not None and _listed(found.acl, question, need.permission)


def may_some(question: Question) -> bool:
    """Whether it is worth asking about single keys of the bucket."""
    return (rbac.allows(question.caller, question.operation, question.bucket.user_id, question.bucket.project_id)
            or "policy" in question.bucket.configuration or bool(decide(question)))


def may_share(question: Question) -> bool:
    """Whether a caller who may put an object may say at once who else gets at it.

    Who puts it because the bucket's list lets them owns it, and may; who puts it because the policy lets them needs
    s3:PutObjectAcl as well.

    :param question: about PutObjectAcl
    """
    caller, bucket = question.caller, question.bucket
    rules = policy_of(bucket)
    effect = Effect.NOTHING
    if rules:
        effect = rules.effect(question.asker, ("s3:PutObjectAcl",), question.resource, question.values,
                              bucket.project_id)
    if effect is Effect.DENY:
        return False
    if rbac.allows(caller, "PutObjectAcl", bucket.user_id, bucket.project_id):
        return True
    if effect is Effect.ALLOW and rules and _counts(rules, question):
        return True
    return bool(caller.project_id) and _listed(bucket.configuration.get("acl", {}), question, "WRITE")


def _counts(rules: Policy, question: Question) -> bool:
    """Whether what the policy allows is let through: RestrictPublicBuckets keeps outsiders from public policies."""
    outside = question.caller.project_id != question.bucket.project_id
    return not (outside and is_blocked(question.bucket, "RestrictPublicBuckets") and rules.is_public)


def _listed(found: Acl, question: Question, permission: str) -> bool:
    return acl.permits(found, question.caller.project_id, question.bucket.project_id, permission,
                       public=not is_blocked(question.bucket, "IgnorePublicAcls"))


# -- what a bucket says -----------------------------------------------------------------------------------------------

def policy_of(bucket: Bucket) -> Policy | None:
    """The bucket's policy, if it has one."""
    text = bucket.configuration.get("policy")
    return policy.parse(text, bucket.id) if text is not None else None


def ownership(bucket: Bucket) -> str:
    """ObjectWriter, BucketOwnerPreferred or BucketOwnerEnforced."""
    controls = bucket.configuration.get("ownershipControls")
    return controls["Rules"][0]["ObjectOwnership"] if controls else WRITER


def is_blocked(bucket: Bucket, switch: str) -> bool:
    """Whether a switch of its public access block is on."""
    return bool(bucket.configuration.get("publicAccessBlock", {}).get(switch))


def check_acl(bucket: Bucket, made: Acl) -> None:
    """Refuse a list that the bucket does not let anybody set.

    :raises AccessControlListNotSupported: and it gives something to others than the owner
    :raises AccessDenied: it is public
    """
    if ownership(bucket) == ENFORCED and made != acl.private(bucket.project_id):
        raise errors.AccessControlListNotSupported()
    if acl.is_public(made) and is_blocked(bucket, "BlockPublicAcls"):
        raise errors.AccessDenied()


def new_object_acl(bucket: Bucket, headers: Mapping[str, str], project: str) -> Acl:
    """The list of an object that is put into a bucket; {} if it is the bucket's and nobody else gets at it.

    :param project: who puts it; what nobody knows who puts is the bucket's
    :raises S3Error: AccessControlListNotSupported, AccessDenied, and as
        :func:`nova.objectstore.access.acl.from_headers`
    """
    home = bucket.project_id
    controls, canned = ownership(bucket), headers.get("x-amz-acl")
    writer = project or home
    asked = acl.from_headers(headers, writer, home)
    if controls == ENFORCED:
        if asked is not None and canned != "bucket-owner-full-control" and asked != acl.private(home):
            raise errors.AccessControlListNotSupported()
        return {}
    if controls == PREFERRED and canned == "bucket-owner-full-control":
        return {}
    made = asked or acl.private(writer)
    check_acl(bucket, made)
    return {} if made == acl.private(home) else made


def new_bucket_configuration(headers: Mapping[str, str], project: str) -> dict[str, object]:
    """What the headers of CreateBucket set.

    :raises InvalidArgument, InvalidBucketAclWithObjectOwnership, NotImplementedYet:
    """
    made: dict[str, object] = {}
    asked = acl.from_headers(headers, project, project)
    if asked and asked != acl.private(project):
        made["acl"] = asked
    controls = headers.get("x-amz-object-ownership")
    if controls is not None:
        if controls not in (ENFORCED, PREFERRED, WRITER):
            raise errors.InvalidArgument(reason="Invalid x-amz-object-ownership header")
        if controls == ENFORCED and "acl" in made:
            raise errors.InvalidBucketAclWithObjectOwnership()
        made["ownershipControls"] = {"Rules": [{"ObjectOwnership": controls}]}
    return made
