"""Images: machine images, kernels and ramdisks."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field

from nova.datastore import PREFIX, Record, Store, record

#: what the id of an image begins with, by its kind
ID_PREFIXES = {"machine": "ami", "kernel": "aki", "ramdisk": "ari"}


@record("image", indexes=("project_id", "host"))
@dataclass(frozen=True)
class Image(Record):
    """One image.  `location` is ``<bucket>/<key>`` of the manifest or object it was registered from; `host` the object
    store host that keeps its file, whose `sha256` and `size` (bytes) are known once it is `available`.
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
    is_public: bool = False
    tags: dict[str, str] = field(default_factory=dict)


@record("image_name", listed=False)
@dataclass(frozen=True)
class ImageName(Record):
    """Keeps a name unique in its project; the id is ``<project>:<name>``."""

    image_id: str


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


def token_is_valid(secret: bytes, image_id: str, token: str, now: float | None = None) -> bool:
    """Whether a token was made with `secret` for this image and has not expired."""
    expiry, _, mac = token.partition(".")
    if not (expiry.isascii() and expiry.isdigit() and mac.isascii()):
        return False
    return (hmac.compare_digest(mac, _mac(secret, image_id, expiry))
            and int(expiry) >= (now if now is not None else time.time()))


def _mac(secret: bytes, image_id: str, expiry: str) -> str:
    return hmac.new(secret, f"{image_id}\n{expiry}".encode(), hashlib.sha256).hexdigest()
