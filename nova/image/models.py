"""Images: machine images, kernels and ramdisks."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field

from nova.datastore import PREFIX, Record, Store, record
from nova.flags import DEFINE_float

DEFINE_float("capture_timeout", 7200, "seconds that making an image of an instance may take before the image fails",
             lower_bound=1)

#: what the id of an image begins with, by its kind
ID_PREFIXES = {"machine": "ami", "kernel": "aki", "ramdisk": "ari"}


@record("image", indexes=("project_id", "host", "is_public", "launch_permissions"))
@dataclass(frozen=True)
class Image(Record):
    """One image.

    `location` is ``<bucket>/<key>`` of the manifest or object it was registered from; `source` says what else it is
    made from: ``image:<id>`` for a copy, ``instance:<id>`` for the disk of an instance; empty: its location.  `host` is
    the object store host that makes its file, whose `sha256`, `size` (bytes), `disk_format` (raw or qcow2) and
    `virtual_size` (the bytes that a guest sees) are known once it is `available`.  `state_code` and `state_reason` tell
    why it `failed`; one that is `disabled` was available, and cannot be used until it is enabled.  Beside its owner,
    all (`is_public`) or the projects in `launch_permissions` may use it.  From `deprecated_at` on (seconds since the
    epoch; 0: never) others do not see it in lists.  `block_devices` are the names of devices by what an instance is to
    find there, such as ``ephemeral0``.
    """

    project_id: str
    user_id: str
    name: str
    location: str
    kind: str
    host: str
    created: float
    description: str = ""
    architecture: str = "x86_64"
    kernel_id: str = ""
    ramdisk_id: str = ""
    state: str = "pending"
    state_reason: str = ""
    sha256: str = ""
    size: int = 0
    disk_format: str = "raw"
    virtual_size: int = 0
    source: str = ""
    state_code: str = ""
    is_public: bool = False
    launch_permissions: list[str] = field(default_factory=list)
    product_codes: list[str] = field(default_factory=list)
    deprecated_at: float = 0.0
    block_devices: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@record("image_name", listed=False)
@dataclass(frozen=True)
class ImageName(Record):
    """Keeps a name unique in its project; the id is ``<project>:<name>``."""

    image_id: str


def name_id(project_id: str, name: str) -> str:
    """The id of the record that keeps an image's name unique."""
    return f"{project_id}:{name}"


#: seconds that a token to fetch an image is good for
TOKEN_LIFETIME = 600


async def fetch_secret(store: Store) -> bytes:
    """The secret with which the nodes of this cloud show each other that they belong to it."""
    key = f"{PREFIX}secret"
    await store.attempt(store.redis.setnx(key, secrets.token_hex(32)))
    return await store.attempt(store.redis.get(key))


def fetch_token(secret: bytes, image_id: str, now: float | None = None) -> str:
    """A token with which a compute node fetches an image from the object store: ``<expiry>.<hmac>``."""
    expiry = str(int((now if now is not None else time.time()) + TOKEN_LIFETIME))
    return f"{expiry}.{_mac(secret, image_id, expiry)}"


def capture_of(image_id: str) -> str:
    """What a token is made for with which a compute node sends the disk for an image; none to fetch it will do."""
    return f"capture of {image_id}"


def token_is_valid(secret: bytes, image_id: str, token: str, now: float | None = None) -> bool:
    """Whether a token was made with `secret` for this image and has not expired."""
    expiry, _, mac = token.partition(".")
    if not (expiry.isascii() and expiry.isdigit() and mac.isascii()):
        return False
    return (hmac.compare_digest(mac, _mac(secret, image_id, expiry))
            and int(expiry) >= (now if now is not None else time.time()))


def _mac(secret: bytes, image_id: str, expiry: str) -> str:
    return hmac.new(secret, f"{image_id}\n{expiry}".encode(), hashlib.sha256).hexdigest()
