"""Access control lists of buckets and objects: made from headers and documents, and asked whom they let in.

A list is shaped as the answers of S3 have it, ``{"Owner": {"ID": ...}, "Grants": [{"Grantee": ..., "Permission":
...}]}``; where nothing was set it is {}, and the bucket's project owns the thing.  A canonical user is a project.
Rules: Amazon S3 user guide, "Access control list (ACL) overview".
"""

import re
from collections.abc import Mapping
from typing import Any

from nova.objectstore import errors

Acl = dict[str, Any]

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED_USERS = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
_LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"
#: whom S3 names where aws-exec-read lets EC2 read; here the cloud reads images for whoever may read them
_CLOUD = {"ID": "6aa5a366c34c1cbe25dc49211496e913e0351eb0e8c37aa3477e40942ec6b97c", "DisplayName": "za-team"}
MAX_GRANTS = 100
_PERMISSIONS = ("FULL_CONTROL", "READ", "WRITE", "READ_ACP", "WRITE_ACP")
#: what each canned list gives beside all to the owner; the grantee is a group, or the bucket's owner, or the cloud
_CANNED: dict[str, tuple[tuple[str, str], ...]] = {
    "private": (),
    "public-read": ((ALL_USERS, "READ"),),
    "public-read-write": ((ALL_USERS, "READ"), (ALL_USERS, "WRITE")),
    "authenticated-read": ((AUTHENTICATED_USERS, "READ"),),
    "aws-exec-read": (("cloud", "READ"),),
    "bucket-owner-read": (("bucket-owner", "READ"),),
    "bucket-owner-full-control": (("bucket-owner", "FULL_CONTROL"),),
}
_GRANT_HEADERS = {f"x-amz-grant-{p.lower().replace('_', '-')}": p for p in _PERMISSIONS}
_GRANTEE = re.compile(r"\s*(id|uri|emailaddress)\s*=\s*(?:\"([^\"]*)\"|([^\",]*))\s*(?:,|$)", re.IGNORECASE)
_NAME = re.compile(r"[^\s\x00-\x1f]{1,256}")


def canonical_user(project: str) -> dict[str, str]:
    """A project as owner or grantee."""
    return {"ID": project, "DisplayName": project}


def private(project: str) -> Acl:
    """Everything to the owner, nothing to anybody else."""
    return _made(project, [_grant({"Type": "CanonicalUser", **canonical_user(project)}, "FULL_CONTROL")])


def canned(name: str, owner: str, bucket_owner: str) -> Acl:
    """A canned list.

    :raises NotImplementedYet, InvalidArgument:
    """
    if name == "log-delivery-write":
        raise errors.NotImplementedYet(what="Delivery of logs to buckets")
    if name not in _CANNED:
        raise errors.InvalidArgument(reason="x-amz-acl is no canned ACL")
    made = private(owner)
    for whom, permission in _CANNED[name]:
        if whom == "bucket-owner":
            if bucket_owner != owner:
                made["Grants"].append(_grant({"Type": "CanonicalUser", **canonical_user(bucket_owner)}, permission))
        elif whom == "cloud":
            made["Grants"].append(_grant({"Type": "CanonicalUser", **_CLOUD}, permission))
        else:
            made["Grants"].append(_grant({"Type": "Group", "URI": whom}, permission))
    return made


def from_headers(headers: Mapping[str, str], owner: str, bucket_owner: str) -> Acl | None:
    """The list that x-amz-acl or x-amz-grant-* headers ask for; None without them.

    :raises InvalidRequest: there are both
    :raises InvalidArgument, NotImplementedYet, UnresolvableGrantByEmailAddress:
    """
    granting = [name for name in _GRANT_HEADERS if name in headers]
    if "x-amz-acl" in headers:
        if granting:
            raise errors.InvalidRequest(reason="Specifying both Canned ACLs and Header Grants is not allowed")
        return canned(headers["x-amz-acl"], owner, bucket_owner)
    if not granting:
        return None
    grants = [_grant(grantee, _GRANT_HEADERS[name]) for name in granting for grantee in _grantees(headers[name], name)]
    if len(grants) > MAX_GRANTS:
        raise errors.InvalidRequest(reason=f"An ACL can have up to {MAX_GRANTS} grants")
    return _made(owner, grants)


def _grantees(text: str, header: str) -> list[dict[str, str]]:
    """Whom a header names: ``id="...", uri="...", emailAddress="..."``."""
    found: list[dict[str, str]] = []
    at = 0
    while at < len(text):
        match = _GRANTEE.match(text, at)
        if not match:
            raise errors.InvalidArgument(reason=f"The value of {header} is no list of id=, uri= and emailAddress=")
        kind, value = match[1].lower(), match[2] if match[2] is not None else match[3].strip()
        found.append(_grantee({"id": "CanonicalUser", "uri": "Group", "emailaddress": "AmazonCustomerByEmail"}[kind],
                              value))
        at = match.end()
    if not found:
        raise errors.InvalidArgument(reason=f"The value of {header} names nobody")
    return found


def from_document(document: dict[str, Any], owner: str) -> Acl:
    """The list that an AccessControlPolicy document asks for.

    :param owner: who owns the bucket or object
    :raises MalformedACL, InvalidArgument, NotImplementedYet, UnresolvableGrantByEmailAddress:
    :raises AccessDenied: it names another owner
    """
    if not document.get("Owner", {}).get("ID") or len(document.get("Grants", ())) > MAX_GRANTS:
        raise errors.MalformedACL()
    if document["Owner"]["ID"].strip() != owner:
        raise errors.AccessDenied()
    grants = []
    for item in document.get("Grants", ()):
        grantee, permission = item.get("Grantee"), item.get("Permission")
        if not grantee or permission is None:
            raise errors.MalformedACL()
        name = {"CanonicalUser": "ID", "Group": "URI", "AmazonCustomerByEmail": "EmailAddress"}[grantee["Type"]]
        if name not in grantee:
            raise errors.MalformedACL()
        grants.append(_grant(_grantee(grantee["Type"], grantee[name].strip()), permission))
    return _made(owner, grants)


def _grantee(kind: str, value: str) -> dict[str, str]:
    if kind == "AmazonCustomerByEmail":
        raise errors.UnresolvableGrantByEmailAddress()  # Nova's users have no addresses
    if kind == "Group":
        if value == _LOG_DELIVERY:
            raise errors.NotImplementedYet(what="Delivery of logs to buckets")
        if value not in (ALL_USERS, AUTHENTICATED_USERS):
            raise errors.InvalidArgument(reason="Invalid group uri")
        return {"Type": "Group", "URI": value}
    if not _NAME.fullmatch(value):
        raise errors.InvalidArgument(reason="Invalid id")
    return {"Type": "CanonicalUser", **(_CLOUD if value == _CLOUD["ID"] else canonical_user(value))}


def _grant(grantee: dict[str, str], permission: str) -> dict[str, Any]:
    return {"Grantee": grantee, "Permission": permission}


def _made(owner: str, grants: list[dict[str, Any]]) -> Acl:
    return {"Owner": canonical_user(owner), "Grants": grants}


# -- asking -----------------------------------------------------------------------------------------------------------

def owner_of(acl: Acl, bucket_owner: str) -> str:
    """The project that owns a thing with this list."""
    return acl["Owner"]["ID"] if acl else bucket_owner


def permits(acl: Acl, project: str, home: str, permission: str, public: bool = True) -> bool:
    """Whether a list gives a permission.

    :param project: who asks; '' for nobody knows who
    :param home: the bucket's project, to which no list gives anything: its roles say what its users may do
    :param public: what is granted to everybody counts
    """
    for grant in acl.get("Grants", ()):
        if grant["Permission"] in (permission, "FULL_CONTROL") and _is(grant["Grantee"], project, home, public):
            return True
    outside = bool(project) and project != home
    return bool(acl) and outside and permission.endswith("_ACP") and acl["Owner"]["ID"] == project


def _is(grantee: dict[str, str], project: str, home: str, public: bool) -> bool:
    if grantee["Type"] == "Group":
        return public and (grantee["URI"] == ALL_USERS or (grantee["URI"] == AUTHENTICATED_USERS and bool(project)))
    return bool(project) and project != home and grantee["ID"] == project


def is_public(acl: Acl) -> bool:
    """Whether it gives something to everybody."""
    return any(grant["Grantee"]["Type"] == "Group" for grant in acl.get("Grants", ()))


def gives_only_to(acl: Acl, projects: set[str]) -> bool:
    """Whether it gives nothing to anybody but these and the cloud."""
    return all(grant["Grantee"].get("ID") in {*projects, _CLOUD["ID"]} for grant in acl.get("Grants", ()))
