"""Users, projects and key pairs."""

from dataclasses import dataclass, field

from nova.datastore import Record, record


@dataclass(frozen=True)
class User:
    """A person, as the directory has them.

    `access` and `secret` are the halves of the access key; a cloud administrator `is_admin`; requests of one who
    `is_locked` are refused.  `created` is when the directory got to know them, in seconds since the epoch; 0 where it
    does not tell.
    """

    id: str
    access: str
    secret: str
    is_admin: bool = False
    is_locked: bool = False
    created: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Project:
    """What owns resources.  `manager` is a user's id, `members` are users' ids, sorted, the manager's among them."""

    id: str
    manager: str
    members: list[str] = field(default_factory=list)
    description: str = ""


@record("key_pair", indexes=("project_id",))
@dataclass(frozen=True)
class KeyPair(Record):
    """The public half of an ssh key pair; the id is ``<project>:<name>``, `key_pair_id` what EC2 calls KeyPairId."""

    project_id: str
    user_id: str
    name: str
    key_pair_id: str
    public_key: str
    fingerprint: str
    key_type: str
    created: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedKey:
    """A copy of a key pair's public half in the directory: whose it is, and the key pair's KeyPairId."""

    user_id: str
    key_pair_id: str
