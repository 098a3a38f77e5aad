"""nova-all: a whole cloud in one process, on servers that it brings along.

A private redis-server, kombu's in-memory transport and, where none runs, a private libvirtd.  On the first start it
makes what the cloud needs: its certificate authority, the user and project `admin`, the starter images.
"""

import asyncio
import fcntl
import json
import os
import re
import shlex
import sys
import time

from nova import daemons, datastore, embedded, events, exception, flags, service
from nova.auth import credentials
from nova.auth.manager import AuthManager
from nova.auth.models import KeyPair
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_boolean
from nova.image import starter
from nova.network.linux import LinuxDriver
from nova.process import in_thread, wait
from nova.service import Service

DEFINE_boolean("demo", False, "nova-all: boot a first instance when the cloud is up")
DEFINE_boolean("clean", False, "nova-all: remove every trace of the cloud, and end")

ADMIN = "admin"
#: what nova-all and its parts make below --state_path, and what --clean removes
_STATE = ("redis", "libvirt", "ca", "starter", "objects", "images", "image_cache", "captures", "instances", "volumes",
          "networks", "logs", "fake-guests", "fake-networks", "novarc", "pk.pem", "cert.pem", "cacert.pem", "boto.cfg",
          ".s3cfg", "aws", "ready.json", "cloud_id", "kvm-probe.json", "demo.pem", "demo.json", "lock")


#: a flag that says in which directory the users are
_NAMES_DIRECTORY = re.compile("--?(flagfile|ldap_(?!password=))")


class Console:
    """What the person at the terminal reads: steps with the seconds since the start.

    :param began: when that was, in seconds since the epoch; run.sh began before this process did
    """

    def __init__(self, began: float):
        self._began = began

    def say(self, text: str) -> None:
        """One line."""
        print(f"{time.time() - self._began:6.1f} s     {text}", flush=True)


class FirstStart(Service):
    """Makes what is not there yet: authority, administrator, starter images."""

    name = "first start"

    def __init__(self, store: Store, console: Console):
        self._store, self._console = store, console

    async def start(self) -> None:
        if await wait(in_thread(daemons.authority().ensure)):
            self._console.say("made the cloud's certificate authority")
        auth = AuthManager(self._store)
        if await auth.bootstrap(ADMIN, "the cloud's administrators"):
            await events.record(self._store, None, "cloud.bootstrap", target=ADMIN)
            self._console.say(f"made the user {ADMIN}")
        await auth.stop()
        if FLAGS.compute_driver == "fake":
            await wait(in_thread(embedded.placeholder_images, daemons.starter_path()))
        else:
            await wait(in_thread(starter.build, daemons.starter_path(), self._console.say))


class Ready(Service):
    """Writes the credentials and ready.json, by which others see that the cloud is up."""

    name = "ready"

    def __init__(self, store: Store, console: Console):
        self._store, self._console = store, console
        self._path = os.path.join(FLAGS.state_path, "ready.json")

    async def start(self) -> None:
        auth = AuthManager(self._store)
        try:
            user = await auth.user(ADMIN)
        except exception.NotFound as error:
            raise exception.NovaError(f"the user {ADMIN}, whom the first start made, is not in the directory of "
                                      f"--ldap_driver={FLAGS.ldap_driver}: did it start with other --ldap flags?"
                                      ) from error
        finally:
            await auth.stop()
        await credentials.write(user, ADMIN, daemons.authority(), FLAGS.state_path)
        facts = {"ec2_port": FLAGS.ec2_port, "s3_port": FLAGS.s3_port, "metadata_port": FLAGS.metadata_port,
                 "ldap_driver": FLAGS.ldap_driver, "pid": os.getpid()}
        with open(self._path + ".new", "w") as file:
            json.dump(facts, file)
        os.rename(self._path + ".new", self._path)
        self._console.say(f"the cloud is up: EC2 on port {FLAGS.ec2_port}, S3 on port {FLAGS.s3_port}")

    async def stop(self) -> None:
        embedded.remove_files([self._path])


class Stopping(Service):
    """Tells when the stop begins and has ended; the first service of all, so the last to stop."""

    name = "nova-all"

    def __init__(self, console: Console):
        self._console = console

    async def stop(self) -> None:
        self._console.say("stopped; guests run on, and the next start finds them")


def main(argv: list[str]) -> int:
    """Run the cloud, or clean up after it; the exit code."""
    flags.parse_or_exit(argv)
    console = Console(float(os.environ.get("NOVA_STARTED", "").replace(",", ".") or time.time()))
    _lock_state()
    if FLAGS.clean:
        return asyncio.run(_clean(console))
    if not FLAGS.logfile:
        FLAGS.logfile = os.path.join(FLAGS.state_path, "logs", "nova-all.log")
    service.set_up_logging()
    try:
        _check_needs()
        redis = None if FLAGS.redis_url else embedded.RedisServer()
        store, bus = daemons.open_store(redis.url if redis else ""), daemons.open_bus()
        services: list[Service] = [Stopping(console), *([redis] if redis else []), daemons.StoreService(store),
                                   FirstStart(store, console), daemons.BusService(bus),
                                   *daemons.objectstore(store, bus), *daemons.api(store, bus),
                                   *daemons.network(store, bus), *daemons.volume(store, bus)]
        if FLAGS.compute_driver == "libvirt":
            services.append(embedded.PrivateLibvirtd())
        services += [*daemons.compute(store, bus), Ready(store, console)]
    except exception.NovaError as error:
        flags.die(f"nova-all: {error}")

    async def quickstart() -> None:
        await _quickstart(console, [word for word in argv[1:] if _NAMES_DIRECTORY.match(word)])
    return service.serve(services, quickstart)


def _check_needs() -> None:
    if FLAGS.compute_driver == "libvirt" and os.geteuid() != 0:
        raise exception.NovaError("guests and networks need root: run it as root, or try --compute_driver=fake")


async def _quickstart(console: Console, directory: list[str]) -> None:
    """Register the starter images and boot the first instance through the public API, by a client process.

    :param directory: the flags with which the directory is found again
    """
    arguments = [sys.executable, "-m", "nova.quickstart", f"--novarc={FLAGS.state_path}/novarc",
                 f"--state_path={FLAGS.state_path}", f"--starter_path={daemons.starter_path()}",
                 f"--compute_driver={FLAGS.compute_driver}", f"--logfile={FLAGS.logfile}",
                 f"--flags={shlex.join(directory)}"]
    if FLAGS.demo:
        arguments.append("--demo")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    child = await asyncio.create_subprocess_exec(*arguments, env={**os.environ, "PYTHONPATH": root},
                                                 stdin=asyncio.subprocess.DEVNULL)
    try:
        if await child.wait() != 0:
            console.say(f"the quick start failed; the cloud runs, and {FLAGS.logfile} may tell why")
    except asyncio.CancelledError:
        if child.returncode is None:
            child.terminate()
            await child.wait()
        raise


def _lock_state() -> None:
    """Hold the state directory's lock until the process ends: two clouds in one directory would destroy each other."""
    path = os.path.join(FLAGS.state_path, "lock")
    try:
        os.makedirs(FLAGS.state_path, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        flags.die(f"nova-all: a cloud runs in {FLAGS.state_path} already; stop it first, "
                  f"or choose another --state_path")
    except OSError as error:
        flags.die(f"nova-all: cannot use --state_path={FLAGS.state_path}: {error.strerror}")


async def _clean(console: Console) -> int:
    """Remove guests, networks, servers and files; what is there of them."""
    def there(name: str) -> bool:
        return os.path.exists(os.path.join(FLAGS.state_path, name))
    guests = there("libvirt") or (there("instances") and not there("fake-guests"))
    if os.geteuid() != 0 and (guests or there("networks")):
        flags.die("nova-all: removing guests and networks needs root")
    try:
        if guests:
            await _remove_guests()
            console.say("removed the guests")
        if there("networks"):
            networks = LinuxDriver()
            await networks.start()
            await networks.purge()
            await networks.stop()
            console.say("removed the networks")
        if there("redis"):
            redis = embedded.RedisServer()
            if FLAGS.ldap_driver == "ldap":
                await _withdraw_key_pairs(redis, console)
            await redis.stop()
    except exception.NovaError as error:
        flags.die(f"nova-all: cannot clean up: {error}")
    embedded.remove_files([os.path.join(FLAGS.state_path, name) for name in _STATE])
    try:
        os.rmdir(FLAGS.state_path)
    except OSError:
        console.say(f"left {FLAGS.state_path}: there is something in it that is not Nova's")
    console.say("cleaned up")
    return 0


async def _withdraw_key_pairs(redis: embedded.RedisServer, console: Console) -> None:
    """Take what only this cloud's records are about out of an LDAP server, which may serve others: key pairs.

    Users, projects and roles stay.  What cannot be reached does not keep the cloud from being removed.
    """
    store = datastore.open_store(redis.url)
    try:
        await redis.start()
        auth = AuthManager(store)
        pairs = await store.all(KeyPair)
        for pair in pairs:
            await auth.withdraw_key_pair(pair)
        await auth.stop()
        console.say(f"removed the key pairs from {FLAGS.ldap_url}; users, projects and roles stay there, and "
                    f"slap.sh --purge removes them")
    except exception.NovaError as error:
        console.say(f"left {FLAGS.ldap_url} as it is: {error}")
    finally:
        await store.close()


async def _remove_guests() -> None:
    from nova.compute.virt import private_libvirtd  # needs libvirt-python, which a fake cloud does without
    FLAGS.compute_driver, FLAGS.libvirt_type = "libvirt", "qemu"  # what is removed needs no probe of KVM
    driver = daemons.compute_driver()
    await driver.start()
    await driver.purge()
    await driver.stop()
    await private_libvirtd.remove(os.path.join(FLAGS.state_path, "libvirt"))
