"""What each daemon consists of.

The scripts in bin/ call one function of this module each.  ``nova-all`` composes the same services in one process.
"""

import importlib.util
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from tornado import netutil

from nova import crypto, datastore, exception, flags, service, workers
from nova.auth.manager import AuthManager
from nova.cloud import (
    accounts,
    action,
    admin,
    iam,
    image_attributes,
    image_copies,
    images,
    instances,
    keypairs,
    public_keys,
    regions,
    revocations,
    tagging,
)
from nova.compute.capture import CaptureManager
from nova.compute.manager import ComputeManager
from nova.compute.virt import libvirt_flags  # noqa: F401  (defines the flags of its driver)
from nova.compute.virt.base import ComputeDriver
from nova.compute.virt.fake import FakeDriver as FakeComputeDriver
from nova.crypto import Authority
from nova.datastore import Store
from nova.endpoint import guests
from nova.endpoint.app import ApiService
from nova.endpoint.metadata import MetadataService
from nova.flags import FLAGS, DEFINE_enum, DEFINE_integer, DEFINE_string
from nova.image import models as image_models
from nova.image import sources
from nova.image.cache import ImageCache
from nova.image.manager import ImageManager
from nova.image.prefetch import Prefetcher
from nova.network.driver import NetworkDriver
from nova.network.fake import FakeDriver as FakeNetworkDriver
from nova.network.linux import LinuxDriver
from nova.network.manager import NetworkManager
from nova.objectstore import captures, objects
from nova.objectstore import images as object_images
from nova.objectstore.driver import open_files
from nova.objectstore.service import BACKLOG, ObjectStoreService
from nova.rpc import Bus
from nova.service import Heartbeat, Service
from nova.volume.manager import VolumeManager
from nova.wire import model, rest_xml

DEFINE_enum("compute_driver", "libvirt", ["libvirt", "fake"],
            "libvirt: QEMU guests; fake: guests are only written down")
DEFINE_integer("s3_workers", 0, "processes of nova-objectstore, which share its port (within nova-all it is one); "
               "0: one for each CPU, up to 4", lower_bound=0, upper_bound=64)
DEFINE_string("starter_path", "", "directory of the starter images; 'starter' below --state_path when empty")


#: of an object store by itself, whose processes have other work beside them on a host with many CPUs
_MOST_WORKERS = 4


class Later(Service):
    """A service that can be made only when those before it have started."""

    def __init__(self, name: str, make: Callable[[], Awaitable[Service]]):
        self.name = name
        self._make = make
        self._made: Service | None = None

    async def start(self) -> None:
        self._made = await self._make()
        await self._made.start()

    async def stop(self) -> None:
        if self._made is not None:
            await self._made.stop()


class BusService(Service):
    """The process's place on the message bus."""

    name = "bus"

    def __init__(self, bus: Bus):
        self._bus = bus

    async def start(self) -> None:
        self._bus.start()
        await self._bus.connected(1)  # where it is away, it is looked for in the background

    async def stop(self) -> None:
        await self._bus.stop()


class StoreService(Service):
    """The connection to Redis."""

    name = "datastore"

    def __init__(self, store: Store):
        self._store = store

    async def start(self) -> None:
        try:
            await self._store.ping()
        except exception.DatastoreUnavailable as error:
            raise exception.NovaError("the Redis that --redis_url names does not answer") from error

    async def stop(self) -> None:
        await self._store.close()


def open_store(url: str = "") -> Store:
    """The store that the flags name, or the one at `url`."""
    url = url or FLAGS.redis_url
    if not url:
        flags.die("--redis_url is needed: the Redis that holds the cloud's state (nova-all brings one along)")
    return datastore.open_store(url)


def open_bus() -> Bus:
    """The bus that the flags name."""
    return Bus(FLAGS.amqp_url, FLAGS.host)


def authority() -> Authority:
    """The cloud's certificate authority."""
    return Authority(crypto.ca_path())


def starter_path() -> str:
    """Where the starter images are."""
    return os.path.abspath(FLAGS.starter_path or os.path.join(FLAGS.state_path, "starter"))


def compute_driver() -> ComputeDriver:
    """The compute driver that the flags name."""
    if FLAGS.compute_driver == "fake":
        return FakeComputeDriver()
    if importlib.util.find_spec("libvirt") is None:
        flags.die("the Python package libvirt-python is missing (pip install libvirt-python), "
                  "or try --compute_driver=fake")
    from nova.compute.virt import libvirt_driver  # not before: see nova.compute.virt.libvirt_flags
    return libvirt_driver.LibvirtDriver(os.path.join(starter_path(), "vmlinuz"),
                                        os.path.join(starter_path(), "ramdisk.gz"))


def network_driver() -> NetworkDriver:
    """The network driver that the flags name; a fake compute driver needs no real networks."""
    if FLAGS.network_driver == "fake" or (FLAGS.compute_driver == "fake" and not FLAGS["network_driver"].present):
        return FakeNetworkDriver()
    return LinuxDriver()


class ListeningService(Protocol):
    """A service that listens; its `port` is known once it has started."""

    name: str

    @property
    def port(self) -> int: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def _cannot_listen(name: str, flag: str, error: OSError) -> str:
    return (f"the {name} cannot listen on port {FLAGS[flag].value}: {error.strerror} "
            f"(--{flag} chooses another)")


class PortFlag(Service):
    """Puts the port that a service got into a flag, for those that read the flag."""

    def __init__(self, flag: str, inner: ListeningService):
        self.name = inner.name
        self._flag, self._inner = flag, inner

    async def start(self) -> None:
        try:
            await self._inner.start()
        except OSError as error:
            raise exception.NovaError(_cannot_listen(self.name, self._flag, error)) from error
        FLAGS[self._flag].value = self._inner.port

    async def stop(self) -> None:
        await self._inner.stop()


def api(store: Store, bus: Bus) -> list[Service]:
    """nova-api: the EC2 endpoint with the APIs beside it, and the metadata service."""
    auth = AuthManager(store)
    keys = public_keys.PublicKeys(store, auth)
    registry = action.Registry.collect([
        instances.Instances(store=store, bus=bus), images.Images(store=store, bus=bus),
        image_attributes.ImageAttributes(store=store, bus=bus, auth=auth),
        image_copies.ImageCopies(store=store, bus=bus), keypairs.KeyPairs(store=store, public_keys=keys),
        regions.Regions(store=store), tagging.Tags(store=store, bus=bus)])

    async def metadata() -> Service:
        secret = await image_models.fetch_secret(store)
        return PortFlag("metadata_port", MetadataService(guests.lookup(store), secret))
    server = ApiService(store, auth, registry, others=_administration(store, bus, auth))
    return [auth, PortFlag("ec2_port", server), Later("metadata service", metadata),
            revocations.RevocationLists(authority()), public_keys.PublicKeySweep(keys), Heartbeat(store, "api")]


def _administration(store: Store, bus: Bus, auth: AuthManager) -> dict[str, action.Registry]:
    """The APIs beside EC2's, by the names in their paths."""
    everybody = accounts.Accounts(store, bus, auth, authority())
    return {"Admin": action.Registry.collect([admin.Admin(store=store, accounts=everybody)], model.admin()),
            "IAM": action.Registry.collect([iam.Iam(store=store, accounts=everybody)], model.iam()),
            "STS": action.Registry.collect([iam.Caller(store=store)], model.sts())}


def objectstore(store: Store, bus: Bus, sockets: Sequence[socket.socket] = ()) -> list[Service]:
    """nova-objectstore: the S3 server, and the images made from what is in it.

    :param sockets: at which it listens; it opens its own where there are none
    """
    async def open_object(bucket: str, key: str):
        return await objects.open_object(store, bucket, key)
    files = object_images.ImageFiles(store, open_files())
    disks = captures.CapturedDisks(store, files.files)
    manager = ImageManager(store, bus, open_object, authority(), files, {**sources.SOURCES, "instance": disks.source})
    auth = AuthManager(store)
    server = ObjectStoreService(store, auth, extra_handlers=_image_handlers(store, files, disks), sockets=sockets)
    return [auth, PortFlag("s3_port", server), manager, disks, Heartbeat(store, "objectstore")]


def _more_objectstore(store: Store, sockets: Sequence[socket.socket]) -> list[Service]:
    """What another process of the same nova-objectstore does: it serves, and leaves to the first what is done once."""
    auth = AuthManager(store)
    files = object_images.ImageFiles(store, open_files())
    handlers = _image_handlers(store, files, captures.CapturedDisks(store, files.files))
    return [auth, ObjectStoreService(store, auth, extra_handlers=handlers, sockets=sockets, sweeps=False)]


def _image_handlers(store: Store, files: object_images.ImageFiles, disks: captures.CapturedDisks) -> list[tuple]:
    """What an object store serves to the nodes of the cloud."""
    return [*object_images.handlers(files, store), *captures.handlers(disks, store)]


def compute(store: Store, bus: Bus) -> list[Service]:
    """nova-compute: the guests of this host."""
    cache = ImageCache(os.path.join(FLAGS.state_path, "image_cache"), store,
                       lambda: f"http://{FLAGS.api_host}:{FLAGS.s3_port}/_images/")
    driver = compute_driver()
    manager = ComputeManager(store, bus, driver, cache)
    captured = CaptureManager(store, bus, driver, lambda: f"http://{FLAGS.api_host}:{FLAGS.s3_port}/_images/")
    return [manager, captured, Prefetcher(store, bus, cache), Heartbeat(store, "compute", manager.facts)]


def network(store: Store, bus: Bus) -> list[Service]:
    """nova-network: the networks that this host serves."""
    return [NetworkManager(store, bus, network_driver()), Heartbeat(store, "network")]


def volume(store: Store, bus: Bus) -> list[Service]:
    """nova-volume: the room for volumes on this host."""
    manager = VolumeManager()
    return [manager, Heartbeat(store, "volume", manager.facts)]


def main(argv: list[str], parts: Callable[[Store, Bus], list[Service]]) -> int:
    """Run one daemon of its own."""
    flags.parse_or_exit(argv)
    service.set_up_logging()
    return _run(argv[0], parts)


def _run(program: str, parts: Callable[[Store, Bus], list[Service]]) -> int:
    store, bus = open_store(), open_bus()
    try:
        services = parts(store, bus)
    except exception.NovaError as error:
        flags.die(f"{os.path.basename(program)}: {error}")
    return service.serve([StoreService(store), BusService(bus), *services])


def objectstore_main(argv: list[str]) -> int:
    """Run nova-objectstore, in as many processes as --s3_workers says."""
    flags.parse_or_exit(argv)
    service.set_up_logging()
    count = FLAGS.s3_workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    if count == 1:
        return _run(argv[0], objectstore)
    open_store()  # if there is something wrong with the flags, it is said once
    try:
        sockets = netutil.bind_sockets(FLAGS.s3_port, FLAGS.s3_listen, backlog=BACKLOG)
    except OSError as error:
        flags.die(f"{os.path.basename(argv[0])}: {_cannot_listen('objectstore', 's3_port', error)}")
    FLAGS.s3_port = sockets[0].getsockname()[1]
    rest_xml.s3()  # in memory once for all

    def work(number: int, lifeline: workers.Lifeline) -> int:
        if number == 0:
            return _run(argv[0], lambda store, bus: [*objectstore(store, bus, sockets), lifeline])
        store = open_store()
        return service.serve([StoreService(store), *_more_objectstore(store, sockets), lifeline])

    def close() -> None:
        for listening in sockets:
            listening.close()
    return workers.Watcher(count, work, close).run()
