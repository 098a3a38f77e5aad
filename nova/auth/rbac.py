"""Who may do what: one table of actions, roles and ownership.

The roles are those of the 2010 design. Every user of a project is a `member` (System User) of it; `sysadmin`,
`netadmin` and `projectmanager` are held in a project beside that; a `cloudadmin` administers the cloud, and `itsec`
reads everything and locks users and instances. :data:`TABLE` says for each action which roles may do it on what is
their own, on what another user of the same project owns, and on what other projects own. The endpoints ask
:func:`permits` before they read a request's parameters; whoever has found the thing that a request names asks
:func:`check` or :func:`allows`.

Also a program: ``python -m nova.auth.rbac > docs/rbac.rst`` writes the page of the manual.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nova import exception

MEMBER, SYSADMIN, NETADMIN = "member", "sysadmin", "netadmin"
PROJECTMANAGER, CLOUDADMIN, ITSEC = "projectmanager", "cloudadmin", "itsec"

#: every role and what it is, in the order in which they are listed
ROLES = {
    MEMBER: "System User: every user of the project",
    SYSADMIN: "System Administrator: the project's machine images",
    NETADMIN: "Network Administrator: the project's security groups and public addresses",
    PROJECTMANAGER: "Project Manager: everything that the project's users own, and their roles in it",
    CLOUDADMIN: "Cloud Administrator: kernels, ramdisks and images of all projects, users, projects, hosts",
    ITSEC: "IT Security: reads everything, and locks users and instances",
}

#: the services that offer actions
EC2, S3, ADMIN, IAM, STS = "EC2", "S3", "Admin", "IAM", "STS"


class Caller(Protocol):
    """Who asks: a request's context, or an identity."""

    @property
    def user_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def roles(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Rule:
    """The roles that may do an action of `service`: on their `own` things, on those of other users of the `project`, on
    those of `others`, that is of other projects.  An action on nothing that has an owner, or that makes something, is
    not `owned` and has its roles in `own`.
    """

    service: str
    own: frozenset[str]
    project: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    owned: bool = True

    @property
    def anywhere(self) -> frozenset[str]:
        """The roles that may do it on something."""
        return self.own | self.project | self.others


def _plain(service: str, *roles: str) -> Rule:
    return Rule(service, frozenset(roles), owned=False)


def _owned(service: str, own: Iterable[str], project: Iterable[str] = (), others: Iterable[str] = ()) -> Rule:
    """Who may do it on the things of others may do it on those nearer by as well."""
    own, project, others = frozenset(own), frozenset(project), frozenset(others)
    return Rule(service, own | project | others, project | others, others)


def _described(service: str, *others: str) -> Rule:
    """The users of a project see what is in it."""
    return _owned(service, (), (MEMBER,), (ITSEC, *others))


def _theirs(service: str) -> Rule:
    """Users' own, and everything of the project for its managers."""
    return _owned(service, (MEMBER,), (PROJECTMANAGER,))


_IMAGE = _owned(EC2, (), (SYSADMIN, PROJECTMANAGER), (CLOUDADMIN,))
_KERNEL = _owned(EC2, (), (), (CLOUDADMIN,))
_MANAGED = _owned(ADMIN, (), (PROJECTMANAGER,), (CLOUDADMIN,))
_DESCRIBED_BY_MANAGERS = _owned(ADMIN, (MEMBER,), (PROJECTMANAGER,), (CLOUDADMIN, ITSEC))
_OWN_KEYS = _owned(IAM, (MEMBER,), (), (CLOUDADMIN,))
_LOCK = _owned(ADMIN, (), (), (CLOUDADMIN, ITSEC))
_ADMINISTRATION = _plain(ADMIN, CLOUDADMIN)
_OWN_BUCKET = _theirs(S3)
_IN_BUCKET = _owned(S3, (MEMBER,), (PROJECTMANAGER, SYSADMIN), (ITSEC,))

#: every action by its name; what follows a colon is a part of an action with a rule of its own
TABLE: Mapping[str, Rule] = {
    "DescribeRegions": _plain(EC2, MEMBER, CLOUDADMIN, ITSEC),
    "DescribeAvailabilityZones": _plain(EC2, MEMBER, CLOUDADMIN, ITSEC),
    "DescribeInstanceTypes": _plain(EC2, MEMBER, CLOUDADMIN, ITSEC),
    "RunInstances": _plain(EC2, MEMBER),
    "RunInstances:image": _owned(EC2, (), (MEMBER,), (CLOUDADMIN,)),
    "DescribeInstances": _described(EC2),
    "DescribeInstanceStatus": _described(EC2),
    "GetConsoleOutput": _owned(EC2, (MEMBER,), (PROJECTMANAGER,), (ITSEC,)),
    "RebootInstances": _theirs(EC2),
    "TerminateInstances": _theirs(EC2),
    "CreateKeyPair": _plain(EC2, MEMBER),
    "ImportKeyPair": _plain(EC2, MEMBER),
    "DescribeKeyPairs": _described(EC2),
    "DeleteKeyPair": _theirs(EC2),
    "RegisterImage": _plain(EC2, SYSADMIN, PROJECTMANAGER, CLOUDADMIN),
    "RegisterImage:kernel": _plain(EC2, CLOUDADMIN),
    "DescribeImages": _described(EC2, CLOUDADMIN),
    "DeregisterImage": _IMAGE,
    "DeregisterImage:kernel": _KERNEL,
    "CopyImage": _plain(EC2, SYSADMIN, PROJECTMANAGER, CLOUDADMIN),
    "CreateImage": _owned(EC2, (SYSADMIN,), (PROJECTMANAGER,)),
    "DescribeImageAttribute": _described(EC2, CLOUDADMIN),
    "ModifyImageAttribute": _IMAGE,
    "ModifyImageAttribute:all": _owned(EC2, (), (PROJECTMANAGER,), (CLOUDADMIN,)),
    "ModifyImageAttribute:kernel": _KERNEL,
    "ResetImageAttribute": _IMAGE,
    "ResetImageAttribute:kernel": _KERNEL,
    "DisableImage": _IMAGE,
    "DisableImage:kernel": _KERNEL,
    "EnableImage": _IMAGE,
    "EnableImage:kernel": _KERNEL,
    "EnableImageDeprecation": _IMAGE,
    "EnableImageDeprecation:kernel": _KERNEL,
    "DisableImageDeprecation": _IMAGE,
    "DisableImageDeprecation:kernel": _KERNEL,
    "CreateTags": _theirs(EC2),
    "CreateTags:image": _IMAGE,
    "DeleteTags": _theirs(EC2),
    "DeleteTags:image": _IMAGE,
    "DescribeTags": _described(EC2),

    "ListBuckets": _described(S3),
    "CreateBucket": _plain(S3, MEMBER),
    "HeadBucket": _described(S3),
    "GetBucketLocation": _described(S3),
    "GetBucketAcl": _described(S3),
    "GetBucketConfiguration": _described(S3),
    "GetBucketCors": _described(S3),
    "GetBucketLifecycleConfiguration": _described(S3),
    "GetBucketTagging": _described(S3),
    "GetBucketVersioning": _described(S3),
    "GetBucketOwnershipControls": _described(S3),
    "GetBucketPolicy": _described(S3),
    "GetBucketPolicyStatus": _described(S3),
    "GetPublicAccessBlock": _described(S3),
    "ListObjects": _described(S3),
    "ListObjectsV2": _described(S3),
    "ListObjectVersions": _described(S3),
    "ListMultipartUploads": _described(S3),
    "DeleteBucket": _OWN_BUCKET,
    "DeleteBucketConfiguration": _OWN_BUCKET,
    "PutBucketAcl": _OWN_BUCKET,
    "PutBucketCors": _OWN_BUCKET,
    "DeleteBucketCors": _OWN_BUCKET,
    "PutBucketLifecycleConfiguration": _OWN_BUCKET,
    "DeleteBucketLifecycle": _OWN_BUCKET,
    "PutBucketTagging": _OWN_BUCKET,
    "DeleteBucketTagging": _OWN_BUCKET,
    "PutBucketVersioning": _OWN_BUCKET,
    "PutBucketOwnershipControls": _OWN_BUCKET,
    "DeleteBucketOwnershipControls": _OWN_BUCKET,
    "PutBucketPolicy": _OWN_BUCKET,
    "DeleteBucketPolicy": _OWN_BUCKET,
    "PutPublicAccessBlock": _OWN_BUCKET,
    "DeletePublicAccessBlock": _OWN_BUCKET,
    "GetObject": _IN_BUCKET,
    "GetObjectAcl": _IN_BUCKET,
    "GetObjectAttributes": _IN_BUCKET,
    "GetObjectTagging": _IN_BUCKET,
    "ListParts": _IN_BUCKET,
    "PutObject": _OWN_BUCKET,
    "CopyObject": _OWN_BUCKET,
    "PutObjectAcl": _OWN_BUCKET,
    "DeleteObject": _OWN_BUCKET,
    "DeleteObjects": _OWN_BUCKET,
    "PutObjectTagging": _OWN_BUCKET,
    "DeleteObjectTagging": _OWN_BUCKET,
    "CreateMultipartUpload": _OWN_BUCKET,
    "UploadPart": _OWN_BUCKET,
    "UploadPartCopy": _OWN_BUCKET,
    "CompleteMultipartUpload": _OWN_BUCKET,
    "AbortMultipartUpload": _OWN_BUCKET,

    "DescribeUser": _DESCRIBED_BY_MANAGERS,
    "DescribeUsers": _plain(ADMIN, CLOUDADMIN, ITSEC),
    "RegisterUser": _ADMINISTRATION,
    "DeregisterUser": _ADMINISTRATION,
    "GenerateX509ForUser": _owned(ADMIN, (MEMBER,), (), (CLOUDADMIN,)),
    "ModifyUserRole": _MANAGED,
    "DescribeUserRoles": _DESCRIBED_BY_MANAGERS,
    "DescribeRoles": _plain(ADMIN, MEMBER, CLOUDADMIN, ITSEC),
    "RegisterProject": _ADMINISTRATION,
    "DeregisterProject": _ADMINISTRATION,
    "DescribeProject": _owned(ADMIN, (), (MEMBER,), (CLOUDADMIN, ITSEC)),
    "DescribeProjects": _plain(ADMIN, CLOUDADMIN, ITSEC),
    "ModifyProjectMember": _MANAGED,
    "DescribeHosts": _plain(ADMIN, CLOUDADMIN, ITSEC),
    "DescribeHost": _plain(ADMIN, CLOUDADMIN, ITSEC),
    "LockInstance": _LOCK,
    "UnlockInstance": _LOCK,

    "CreateUser": _plain(IAM, CLOUDADMIN),
    "GetUser": _owned(IAM, (MEMBER,), (PROJECTMANAGER,), (CLOUDADMIN, ITSEC)),
    "ListUsers": _plain(IAM, CLOUDADMIN, ITSEC),
    "DeleteUser": _plain(IAM, CLOUDADMIN),
    "CreateAccessKey": _OWN_KEYS,
    "ListAccessKeys": _owned(IAM, (MEMBER,), (), (CLOUDADMIN, ITSEC)),
    "UpdateAccessKey": _owned(IAM, (MEMBER,), (), (CLOUDADMIN, ITSEC)),
    "DeleteAccessKey": _OWN_KEYS,
    "GetCallerIdentity": _plain(STS, *ROLES),
}


def rule(action: str) -> Rule:
    """The rule of an action.

    :raises TypeError: the table has none, so that the action must not be offered
    """
    if action not in TABLE:
        raise TypeError(f"{action} is not in the table of roles (nova.auth.rbac)")
    return TABLE[action]


def permits(caller: Caller, action: str) -> bool:
    """Whether the caller may do an action on anything at all."""
    return bool(caller.roles & rule(action).anywhere)


def allows(caller: Caller, action: str, owner_user_id: str, owner_project_id: str) -> bool:
    """Whether the caller may do an action on something that a user owns in a project."""
    found = rule(action)
    if owner_project_id != caller.project_id:
        return bool(caller.roles & found.others)
    return bool(caller.roles & (found.own if owner_user_id == caller.user_id else found.project))


def sees_others(caller: Caller, action: str) -> bool:
    """Whether the caller may do an action on what other projects own."""
    return bool(caller.roles & rule(action).others)


def check(caller: Caller, action: str, owner_user_id: str, owner_project_id: str,
          missing: exception.NovaError) -> None:
    """Refuse an action on something that the caller must not do it on.

    :param missing: what is said where the thing does not exist: the same is said of what another project owns
    :raises exception.UnauthorizedOperation: another user of the project owns it
    """
    if not allows(caller, action, owner_user_id, owner_project_id):
        raise exception.UnauthorizedOperation() if owner_project_id == caller.project_id else missing


def check_permitted(caller: Caller, action: str) -> None:
    """:raises exception.UnauthorizedOperation: the caller may do the action on nothing at all"""
    if not permits(caller, action):
        raise exception.UnauthorizedOperation()


def roles_in(is_admin: bool, is_manager: bool) -> frozenset[str]:
    """The roles of a user in a project of which they are a member."""
    roles = {MEMBER, SYSADMIN, NETADMIN}
    if is_manager:
        roles.add(PROJECTMANAGER)
    if is_admin:
        roles |= {CLOUDADMIN, PROJECTMANAGER}
    return frozenset(roles)


# -- the page of the manual -------------------------------------------------------------------------------------------

_INTRODUCTION = """\
Roles
=====

.. Made by: python -m nova.auth.rbac > docs/rbac.rst

Every request is made by a user in a project.  What the user may do there depends on the user's roles in that project
and on who owns what the request is about: the user, another user of the project, or another project.  What belongs to
another project looks as if it did not exist (a bucket, whose name is everybody's, answers ``AccessDenied``); what
belongs to another user of the project answers ``UnauthorizedOperation`` or, in S3, ``AccessDenied``.

An action that is not in these tables cannot be called.  Objects belong to whom their bucket belongs; bucket policies
and access control lists let others in, and policies may refuse what the table allows (:doc:`objectstore-access`).
Public images, kernels and ramdisks are seen and used by everybody, other images by the projects that have a launch
permission (:doc:`images`).
"""
_LOCAL = (SYSADMIN, NETADMIN, PROJECTMANAGER)


def page() -> str:
    """docs/rbac.rst: the table for people."""
    parts = [_INTRODUCTION, _table(("role", "who it is and what it is for"),
                                   [(f"``{name}``", text) for name, text in ROLES.items()])]
    for service in (EC2, S3, ADMIN, IAM, STS):
        parts.append(f"{service}\n{'-' * len(service)}\n")
        rows = [(f"``{name}``", _shown(r.own), *((_shown(r.project), _shown(r.others)) if r.owned else ("", "")))
                for name, r in TABLE.items() if r.service == service]
        parts.append(_table(("action", "own", "of others in the project", "of other projects"), rows))
    return "\n".join(parts)


def _shown(roles: frozenset[str]) -> str:
    """Roles in order; those that every member has anyway are left out beside `member`."""
    return ", ".join(r for r in ROLES if r in roles and not (MEMBER in roles and r in _LOCAL)) or "nobody"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    rule_line = "  ".join("=" * width for width in widths)

    def line(row: tuple[str, ...]) -> str:
        return "  ".join((cell or "\\").ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    return "\n".join([rule_line, line(head), rule_line, *map(line, rows), rule_line, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
