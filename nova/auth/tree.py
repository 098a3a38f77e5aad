"""Where users, projects and roles are in the directory, and what their entries look like: the layout of 2010.

    uid=ann,ou=Users,dc=nova                    inetOrgPerson, novaUser
    cn=<key pair>,uid=ann,ou=Users,dc=nova      novaKeyPair: the public half of a key pair
    cn=web,ou=Groups,dc=nova                    novaProject: its manager and members
    cn=sysadmin,cn=web,ou=Groups,dc=nova        groupOfNames: who has the role in the project
    cn=sysadmin,ou=Roles,dc=nova                groupOfNames: who has the role globally

Pure functions, and the flags that say where the three subtrees are.
"""

import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime

from nova import exception
from nova.auth.directory import Entry, child, split_dn
from nova.auth.models import KeyPair, Project, PublishedKey, User
from nova.flags import FLAGS, DEFINE_string

DEFINE_string("ldap_user_subtree", "ou=Users,dc=nova", "DN of the directory's entry below which the users are")
DEFINE_string("ldap_project_subtree", "ou=Groups,dc=nova", "DN of the directory's entry below which the projects are")
DEFINE_string("ldap_role_subtree", "ou=Roles,dc=nova", "DN of the directory's entry below which the global roles are")

#: roles that count in a project where the user has them there and globally, as in 2010
BOTH = frozenset({"sysadmin", "netadmin"})
#: roles that are held globally only
GLOBAL = frozenset({"cloudadmin", "itsec"})
#: the role that is held in projects only; who manages a project has it there
MANAGER = "projectmanager"
ROLES = ("sysadmin", "netadmin", MANAGER, "cloudadmin", "itsec")
MEMBER = "member"

#: names of users and projects stand in keys, file names, access keys and DNs
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: words that mean something else where a user's or project's name may stand (EC2's Owner, ExecutableBy and the like)
RESERVED = frozenset({"all", "amazon", "anonymous", "any", "aws-marketplace", "everyone", "none", "self",
                      *ROLES, MEMBER})
#: what no colon, comma, slash or space of a signed request cuts in two
_ACCESS = re.compile(r"[A-Za-z0-9._~+@=-]{1,128}")

USER_ATTRIBUTES = ("uid", "accessKey", "secretKey", "isAdmin", "isLocked", "createTimestamp")
PROJECT_ATTRIBUTES = ("objectClass", "cn", "projectManager", "member", "description")


def roots() -> tuple[str, str, str]:
    """The entries below which everything is."""
    return FLAGS.ldap_user_subtree, FLAGS.ldap_project_subtree, FLAGS.ldap_role_subtree


def user_dn(name: str) -> str:
    """Where a user is."""
    return child(FLAGS.ldap_user_subtree, "uid", name)


def project_dn(name: str) -> str:
    """Where a project is."""
    return child(FLAGS.ldap_project_subtree, "cn", name)


def role_dn(role: str, project: str | None) -> str:
    """Where the group of those is who have a role, in a project or globally."""
    return child(project_dn(project) if project else FLAGS.ldap_role_subtree, "cn", role)


def key_dn(user: str, key_pair_id: str) -> str:
    """Where a key pair's public half is."""
    return child(user_dn(user), "cn", key_pair_id)


def is_key(entry: Entry) -> bool:
    """Whether an entry has the public half of a key pair, and is not a user."""
    return "novaKeyPair" in entry.values("objectClass")


def read_key(entry: Entry) -> PublishedKey:
    """Whose key pair an entry has the public half of."""
    return PublishedKey(split_dn(entry.dn)[1][1], entry.value("cn"))


def name_of(dn: str) -> str:
    """The name in the lowest element of a DN, such as a group's member."""
    return split_dn(dn)[0][1]


def check_name(name: str) -> None:
    """:raises exception.InvalidParameterValue: no user or project can be called this"""
    if not _NAME.fullmatch(name):
        shown = ascii(name)[1:-1][:80]
        raise exception.InvalidParameterValue(
            f"'{shown}' is no name: letters, digits, '.', '_' and '-' only, 64 at most, a letter or digit first")
    if name.lower() in RESERVED:
        raise exception.InvalidParameterValue(f"'{name}' is no name: the word is reserved")


def new_access_key() -> tuple[str, str]:
    """The halves of a new access key."""
    return secrets.token_hex(10).upper(), secrets.token_urlsafe(30)


def check_access_key(access: str, secret: str) -> None:
    """:raises exception.InvalidParameterValue: these cannot be the halves of an access key"""
    if not _ACCESS.fullmatch(access):
        raise exception.InvalidParameterValue("An access key is 1 to 128 letters, digits and . _ ~ + @ = -")
    if not (0 < len(secret) <= 128 and secret.isascii() and secret.isprintable() and " " not in secret):
        raise exception.InvalidParameterValue("A secret key is 1 to 128 printable ASCII characters without spaces.")


def check_role(role: str, project: str | None) -> None:
    """:raises exception.InvalidParameterValue: there is no such role, or not there"""
    if role not in ROLES:
        shown = ascii(role)[1:-1][:80]
        raise exception.InvalidParameterValue(f"'{shown}' is no role; the roles are {', '.join(ROLES)}")
    if project is not None and role in GLOBAL:
        raise exception.InvalidParameterValue(f"the role {role} is held globally, not in a project")
    if project is None and role == MANAGER:
        raise exception.InvalidParameterValue(f"the role {role} is held in a project, not globally")


def effective_roles(user: User, project: Project, global_roles: Iterable[str],
                    local_roles: Iterable[str]) -> frozenset[str]:
    """What a user is in a project.

    sysadmin and netadmin count where they are held both globally and there, cloudadmin and itsec wherever they are
    held; the others are for members only.
    """
    held, local = frozenset(global_roles), frozenset(local_roles)
    roles = GLOBAL & held | ({"cloudadmin"} if user.is_admin else frozenset())
    if user.id in project.members:
        roles |= {MEMBER} | BOTH & held & local
        if project.manager == user.id or MANAGER in local:
            roles |= {MANAGER}
    return roles


# -- entries ----------------------------------------------------------------------------------------------------------

def _boolean(value: bool) -> list[str]:
    return ["TRUE" if value else "FALSE"]


def user_entry(user: User) -> dict[str, list[str]]:
    """The attributes of a user's entry."""
    return {"objectClass": ["inetOrgPerson", "novaUser"], "uid": [user.id], "cn": [user.id], "sn": [user.id],
            "accessKey": [user.access], "secretKey": [user.secret], "isAdmin": _boolean(user.is_admin),
            "isLocked": _boolean(user.is_locked)}


def read_user(entry: Entry) -> User:
    """The user that an entry is."""
    return User(entry.value("uid"), entry.value("accessKey"), entry.value("secretKey"),
                entry.value("isAdmin") == "TRUE", entry.value("isLocked") == "TRUE",
                _seconds(entry.value("createTimestamp")))


def _seconds(text: str) -> float:
    """A time as LDAP writes it (RFC 4517, section 3.3.13; servers write UTC) in seconds since the epoch."""
    digits = text[:14]
    if not (len(digits) == 14 and digits.isascii() and digits.isdigit() and text.endswith("Z")):
        return 0.0
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def project_entry(project: Project) -> dict[str, list[str]]:
    """The attributes of a project's entry."""
    return {"objectClass": ["novaProject"], "cn": [project.id], "projectManager": [user_dn(project.manager)],
            "member": [user_dn(name) for name in project.members],
            "description": [project.description] if project.description else []}


def read_project(entry: Entry) -> Project:
    """The project that an entry is."""
    return Project(entry.value("cn"), name_of(entry.value("projectManager")),
                   sorted(name_of(dn) for dn in entry.values("member")), entry.value("description"))


def is_project(entry: Entry) -> bool:
    """Whether an entry is a project, and not a role in one."""
    return "novaProject" in entry.values("objectClass")


def role_entry(role: str, user: str) -> dict[str, list[str]]:
    """The attributes of the group of a role's first holder."""
    return {"objectClass": ["groupOfNames"], "cn": [role], "member": [user_dn(user)]}


def key_entry(pair: KeyPair) -> dict[str, list[str]]:
    """The attributes of the entry of a key pair's public half."""
    return {"objectClass": ["novaKeyPair"], "cn": [pair.key_pair_id], "sshPublicKey": [pair.public_key],
            "keyFingerprint": [pair.fingerprint], "keyName": [pair.name], "keyProject": [pair.project_id]}
