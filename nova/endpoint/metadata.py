"""The metadata service: what a guest finds at http://169.254.169.254/.

Packet rules of the network host lead the guests' requests here with their own addresses, and the address of
the peer is all that tells who asks.  :func:`tree` and :func:`resolve` decide what a path holds and are pure;
the handler adds HTTP and the session tokens of EC2's IMDSv2.  Where the facts come from is not known here:
`lookup` is handed in.

Rules of the outside: EC2 User Guide, "Instance metadata categories" (which version brought which item), "Use
IMDSv2" (tokens), "Instance identity documents".  Seen of EC2 itself: a directory's listing has a line for
each item, with a slash after those that are directories, save directly below a version; directories are
listed with and without the slash at the end, and a slash after an item does no harm.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tornado import httpserver, netutil, web

from nova import exception, service
from nova.flags import FLAGS, DEFINE_string

LOG = logging.getLogger(__name__)

DEFINE_string("metadata_listen", "0.0.0.0", "address that the metadata service listens on")

VERSIONS = ("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01",
            "2008-09-01", "2009-04-04", "latest")
#: item of meta-data -> the first version that has it; what is not here is in all of them.  EC2 brought mac
#: and network in 2011, but cloud-init reads them in 2009-04-04, and later versions are not offered.
SINCE = {
    "local-hostname": "2007-01-19", "public-hostname": "2007-01-19", "public-ipv4": "2007-01-19",
    "product-codes": "2007-03-01", "instance-type": "2007-08-29", "ramdisk-id": "2007-10-10",
    "block-device-mapping": "2007-12-15", "kernel-id": "2008-02-01", "placement": "2008-02-01",
    "instance-action": "2008-09-01", "mac": "2009-04-04", "network": "2009-04-04",
}
TTL_HEADER, TOKEN_HEADER = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
MAX_TTL = 21600

#: a directory of the tree, or what an item holds
Tree = dict[str, Any]


@dataclass(frozen=True)
class InstanceMetadata:
    """All that an instance may learn about itself.

    `launch_time` is in seconds since the epoch, `project_id` the account that owns it, `public_key` an
    OpenSSH line, `block_device_mapping` maps virtual to device names (``ami``, ``root``, ``ephemeral0``),
    `cidr` and `gateway` are those of its network; None and "" are what it does not have.
    """

    instance_id: str
    ami_id: str
    reservation_id: str
    launch_index: int
    hostname: str
    local_ipv4: str
    mac: str
    instance_type: str
    zone: str
    region: str
    project_id: str
    launch_time: float
    cidr: str
    gateway: str
    architecture: str = "x86_64"
    aki: str | None = None
    ari: str | None = None
    public_ipv4: str | None = None
    security_groups: tuple[str, ...] = ()
    key_name: str | None = None
    public_key: str | None = None
    user_data: bytes | None = None
    block_device_mapping: dict[str, str] = field(default_factory=dict)
    ami_manifest_path: str = "(unknown)"


Lookup = Callable[[str], Awaitable[InstanceMetadata | None]]


def tree(meta: InstanceMetadata, version: str) -> Tree:
    """Everything below one version: nested directories, and bytes or text at their ends."""
    items: Tree = {name: value for name, value in _meta_data(meta).items()
                   if value not in (None, "", {}) and version >= SINCE.get(name, "")}
    found: Tree = {"meta-data": items}
    if version >= "2009-04-04":
        found["dynamic"] = {"instance-identity": {"document": identity_document(meta)}}
    if meta.user_data:
        found["user-data"] = meta.user_data
    return found


def _meta_data(meta: InstanceMetadata) -> Tree:
    groups = "\n".join(meta.security_groups)
    keys: Tree = {}
    if meta.public_key:
        keys["0"] = {"openssh-key": meta.public_key.rstrip("\n") + "\n"}
    interface = {
        "device-number": "0", "local-hostname": meta.hostname, "local-ipv4s": meta.local_ipv4,
        "mac": meta.mac, "owner-id": meta.project_id, "security-groups": groups,
        "subnet-ipv4-cidr-block": meta.cidr, "vpc-ipv4-cidr-block": meta.cidr,
    }
    if meta.public_ipv4:
        interface |= {"public-hostname": meta.public_ipv4, "public-ipv4s": meta.public_ipv4}
    return {
        "ami-id": meta.ami_id, "ami-launch-index": str(meta.launch_index),
        "ami-manifest-path": meta.ami_manifest_path, "block-device-mapping": dict(meta.block_device_mapping),
        "hostname": meta.hostname, "instance-action": "none", "instance-id": meta.instance_id,
        "instance-type": meta.instance_type, "kernel-id": meta.aki,
        "local-hostname": meta.hostname, "local-ipv4": meta.local_ipv4, "mac": meta.mac,
        "network": {"interfaces": {"macs": {meta.mac: {k: v for k, v in interface.items() if v}}}},
        "placement": {"availability-zone": meta.zone, "region": meta.region},
        "public-hostname": meta.public_ipv4, "public-ipv4": meta.public_ipv4, "public-keys": keys,
        "ramdisk-id": meta.ari, "reservation-id": meta.reservation_id, "security-groups": groups,
    }


def identity_document(meta: InstanceMetadata) -> str:
    """The instance identity document, in JSON as EC2 lays it out; it is not signed."""
    return json.dumps({
        "accountId": meta.project_id, "architecture": meta.architecture, "availabilityZone": meta.zone,
        "billingProducts": None, "devpayProductCodes": None, "marketplaceProductCodes": None,
        "imageId": meta.ami_id, "instanceId": meta.instance_id, "instanceType": meta.instance_type,
        "kernelId": meta.aki,
        "pendingTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(meta.launch_time)),
        "privateIp": meta.local_ipv4, "ramdiskId": meta.ari, "region": meta.region, "version": "2017-09-30",
    }, indent=2, separators=(",", " : "))


def resolve(meta: InstanceMetadata, path: str) -> bytes | None:
    """What the service answers for a path.

    :param path: as in the request, decoded, without a query
    :returns: an item's content or a directory's listing; None when there is no such thing
    """
    words = _words(path)
    if not words:
        return "\n".join(VERSIONS).encode()
    if words[0] not in VERSIONS:
        return None
    here: Any = tree(meta, words[0])
    for word in words[1:]:
        if not isinstance(here, dict) or word not in here:
            return None
        here = here[word]
    if isinstance(here, dict):
        here = "\n".join(_lines(meta, words, here))
    return here if isinstance(here, bytes) else here.encode()


def _words(path: str) -> list[str]:
    return [word for word in path.split("/") if word]


def _lines(meta: InstanceMetadata, words: list[str], directory: Tree) -> list[str]:
    if len(words) == 1:
        return sorted(directory)
    if words[1:] == ["meta-data", "public-keys"]:
        return [f"{number}={meta.key_name or ''}" for number in directory]
    return [name + ("/" if isinstance(directory[name], dict) else "") for name in sorted(directory)]


# -- session tokens ------------------------------------------------------------------------------------------

class Tokens:
    """IMDSv2's session tokens: nothing is kept, a token says itself until when it is good and for whom.

    :param secret: shared by all metadata services of the cloud
    """

    _HEAD = struct.Struct(">Q8s")

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time):
        self._secret, self._clock = secret, clock

    def issue(self, instance_id: str, ttl: int) -> str:
        """A token for that instance, good for `ttl` seconds."""
        head = self._HEAD.pack(int(self._clock()) + ttl, os.urandom(8))
        return base64.urlsafe_b64encode(head + self._mac(head, instance_id)).decode()

    def remaining(self, token: str, instance_id: str) -> int:
        """For how many more seconds the token is good for that instance; 0: it is not."""
        try:
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
            expires, _ = self._HEAD.unpack(raw[:self._HEAD.size])
        except (ValueError, struct.error):  # UnicodeEncodeError and binascii.Error are ValueErrors
            return 0
        head, mac = raw[:self._HEAD.size], raw[self._HEAD.size:]
        if not hmac.compare_digest(mac, self._mac(head, instance_id)):
            return 0
        return max(0, expires - int(self._clock()))

    def _mac(self, head: bytes, instance_id: str) -> bytes:
        text = b"nova metadata token\0" + head + instance_id.encode()
        return hmac.new(self._secret, text, hashlib.sha256).digest()


# -- HTTP ----------------------------------------------------------------------------------------------------

class MetadataHandler(web.RequestHandler):
    """Any path, for any guest."""

    def initialize(self, lookup: Lookup, tokens: Tokens) -> None:
        self._lookup, self._tokens = lookup, tokens

    def set_default_headers(self) -> None:
        self.set_header("Server", "EC2ws")

    async def get(self) -> None:
        meta = await self._instance()
        token = self.request.headers.get(TOKEN_HEADER)
        if token is not None:
            remaining = self._tokens.remaining(token, meta.instance_id)
            if not remaining:
                raise web.HTTPError(401)
            self.set_header(TTL_HEADER, str(remaining))
        path = self.request.path
        if path.rstrip("/") == "/latest/api/token":
            raise web.HTTPError(405)
        content = resolve(meta, path)
        if content is None:
            raise web.HTTPError(404)
        is_user_data = _words(path)[1:] == ["user-data"]
        self.set_header("Content-Type", "application/octet-stream" if is_user_data else "text/plain")
        self.finish(content)

    head = get

    async def put(self) -> None:
        """Issue a token, but not through a proxy: the proxy's user is not the guest."""
        meta = await self._instance()
        if self.request.path != "/latest/api/token":
            raise web.HTTPError(405 if self.request.path.startswith("/latest/") else 404)
        if "X-Forwarded-For" in self.request.headers:
            raise web.HTTPError(403)
        text = self.request.headers.get(TTL_HEADER, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_TTL):
            raise web.HTTPError(400)
        self.set_header(TTL_HEADER, str(int(text)))
        self.set_header("Content-Type", "text/plain")
        self.finish(self._tokens.issue(meta.instance_id, int(text)))

    async def _instance(self) -> InstanceMetadata:
        """Who asks; only the address of the connection's other end says so."""
        try:
            address = ipaddress.ip_address((self.request.remote_ip or "").partition("%")[0])
        except ValueError:  # a unix socket
            raise web.HTTPError(404) from None
        mapped = getattr(address, "ipv4_mapped", None)
        meta = await self._lookup(str(mapped or address))
        if meta is None:
            raise web.HTTPError(404)
        return meta

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, exception.Unavailable):
            status_code = 503
            self.set_status(503)
            self.set_header("Retry-After", "1")
        title = f"{status_code} - {self._reason_of(status_code)}"
        self.set_header("Content-Type", "text/html")
        self.finish(f"""<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{title}</title>
 </head>
 <body>
  <h1>{title}</h1>
 </body>
</html>
""")

    @staticmethod
    def _reason_of(status: int) -> str:
        return web.httputil.responses.get(status, "Error")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, exception.Unavailable):
            LOG.warning("metadata for %s: %s", self.request.remote_ip, value.message)
        elif not isinstance(value, web.HTTPError):
            LOG.error("metadata for %s: %s", self.request.remote_ip, self.request.path,
                      exc_info=(typ, value, tb))


def application(lookup: Lookup, secret: bytes, clock: Callable[[], float] = time.time) -> web.Application:
    """The Tornado application.

    :param lookup: a guest's metadata by its address, None when there is no such guest; may raise
        exception.Unavailable
    :param secret: for the session tokens; the same in all processes
    """
    arguments = {"lookup": lookup, "tokens": Tokens(secret, clock)}
    return web.Application([(r".*", MetadataHandler, arguments)], log_function=_log)


def _log(handler: web.RequestHandler) -> None:
    request = handler.request
    LOG.debug("%d %s %s %s %.1f ms", handler.get_status(), request.method, request.path, request.remote_ip,
              request.request_time() * 1000)


class MetadataService(service.Service):
    """Serves :func:`application`; `port` is the actual one once it has started.

    :param lookup: see :func:`application`
    :param secret: see :func:`application`
    :param port: the flag ``metadata_port`` when None; 0 takes a free one
    :param address: the flag ``metadata_listen`` when None
    """

    name = "metadata"

    def __init__(self, lookup: Lookup, secret: bytes, port: int | None = None, address: str | None = None):
        self._lookup, self._secret = lookup, secret
        self._by_flag = port is None
        self.port = FLAGS.metadata_port if port is None else port
        self._address = FLAGS.metadata_listen if address is None else address
        self._server: httpserver.HTTPServer | None = None

    async def start(self) -> None:
        sockets = netutil.bind_sockets(self.port, self._address or None)
        self.port = sockets[0].getsockname()[1]
        if self._by_flag and not FLAGS.metadata_port:
            FLAGS.metadata_port = self.port  # the network driver of this process leads guests to it
        self._server = httpserver.HTTPServer(
            application(self._lookup, self._secret), xheaders=False, max_body_size=4096,
            max_header_size=16384, idle_connection_timeout=60, body_timeout=10)
        self._server.add_sockets(sockets)
        LOG.info("metadata service listens on %s:%d", self._address, self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
            self._server = None
