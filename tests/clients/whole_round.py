"""The round that every client tool does: from an image on disk to a guest that one can log in to, and back."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.clients.support import Cloud, claims, guest_processes, redis_keys, ssh, starter_path, traces
from tests.conftest import wait_until

#: Redis keys beside its record that an instance which is gone leaves: the indexes that find it, the token it was asked
#: for with, the pool of networks and the accounts of host, user and project, which are made when they are first used
_REMEMBERED = re.compile(r"nova:(instances(:by-(project_id|host|reservation_id|network_id):.*)?|client_token:.*"
                         r"|pool:networks(:seeded)?|claims:[^:]*|usage:.*)")


@dataclass(frozen=True)
class Seen:
    """An instance as a client sees it."""

    state: str
    address: str
    key_name: str


class Client(Protocol):
    """What a client tool does in a round."""

    def create_bucket(self, bucket: str) -> None: ...
    def upload(self, bucket: str, key: str, path: Path) -> None: ...
    def download(self, bucket: str, key: str, path: Path) -> None: ...
    def empty_bucket(self, bucket: str, keys: list[str]) -> None: ...
    def register(self, name: str, location: str, kernel: str, ramdisk: str) -> str: ...
    def image_state(self, image_id: str) -> str: ...
    def deregister(self, image_id: str) -> None: ...
    def create_key(self, name: str) -> str: ...
    def delete_key(self, name: str) -> None: ...
    def run(self, image_id: str, key_name: str, user_data: str) -> str: ...
    def see(self, instance_id: str) -> Seen: ...
    def console(self, instance_id: str) -> str: ...
    def reboot(self, instance_id: str) -> None: ...
    def terminate(self, instance_id: str) -> None: ...


def whole_round(cloud: Cloud, client: Client, name: str, directory: Path) -> None:
    """Do it all and check each step.

    :param name: makes the names of this round's bucket, images and key its own
    :param directory: for files of the client's own
    """
    wait_until(lambda: not any(traces(cloud.state_path).values()), 20, "an empty host")
    keys_before = redis_keys(cloud)
    bucket = f"{name}-images"
    images = _register_images(client, bucket, name, directory)
    key = directory / "key.pem"
    key.write_text(client.create_key(f"{name}-key"))
    key.chmod(0o600)

    instance_id = client.run(images["machine.ext4"], f"{name}-key", f"#!/bin/sh\necho ran for {name}\n")
    wait_until(lambda: client.see(instance_id).state == "running", 60, f"{instance_id} runs")
    seen = client.see(instance_id)
    assert seen.key_name == f"{name}-key"
    console = str(wait_until(lambda: _when(client.console(instance_id), "NOVA ready"), 90, f"{instance_id} boots"))
    _check_console(console, instance_id, seen.address, name)
    assert ssh(key, seen.address, "hostname") == instance_id
    assert instance_id in guest_processes(cloud.state_path)

    boot = ssh(key, seen.address, "cat /proc/sys/kernel/random/boot_id")
    client.reboot(instance_id)
    wait_until(lambda: _boot_id(key, seen.address) not in (boot, None), 90, f"{instance_id} boots again")
    assert client.see(instance_id) == seen

    client.terminate(instance_id)
    wait_until(lambda: client.see(instance_id).state == "terminated", 30, f"{instance_id} is terminated")
    client.delete_key(f"{name}-key")
    for image_id in images.values():
        client.deregister(image_id)
    client.empty_bucket(bucket, list(images))

    wait_until(lambda: not any(traces(cloud.state_path).values()), 20, f"nothing left: {traces(cloud.state_path)}")
    new = {key for key in redis_keys(cloud) - keys_before if not _REMEMBERED.fullmatch(key)}
    assert new == {f"nova:instance:{instance_id}"}
    assert set(claims(cloud)) <= {0}


def _register_images(client: Client, bucket: str, name: str, directory: Path) -> dict[str, str]:
    client.create_bucket(bucket)
    files = ("vmlinuz", "ramdisk.gz", "machine.ext4")
    for file in files:
        client.upload(bucket, file, starter_path() / file)
    client.download(bucket, "vmlinuz", directory / "vmlinuz")
    assert (directory / "vmlinuz").read_bytes() == (starter_path() / "vmlinuz").read_bytes()
    kernel = client.register(f"{name}-kernel", f"{bucket}/vmlinuz", "true", "")
    ramdisk = client.register(f"{name}-ramdisk", f"{bucket}/ramdisk.gz", "", "true")
    machine = client.register(f"{name}-machine", f"{bucket}/machine.ext4", kernel, ramdisk)
    assert kernel.startswith("aki-") and ramdisk.startswith("ari-") and machine.startswith("ami-")
    images = dict(zip(files, (kernel, ramdisk, machine), strict=True))
    for image_id in images.values():
        wait_until(lambda image_id=image_id: client.image_state(image_id) == "available", 30, f"{image_id} available")
    return images


def _when(text: str, mark: str) -> str:
    return text if mark in text else ""


def _check_console(console: str, instance_id: str, address: str, name: str) -> None:
    """The guest got its own address by DHCP, and from the metadata service its name, key and user data."""
    assert f"DHCP-BOUND ip={address} " in console
    assert f"METADATA instance-id={instance_id}" in console
    assert re.search(rf"METADATA key=ssh-\S+ \S+ {name}-key", console)
    assert "SSHD started" in console
    assert f"USERDATA> ran for {name}" in console


def _boot_id(key: Path, address: str) -> str | None:
    try:
        return ssh(key, address, "cat /proc/sys/kernel/random/boot_id", timeout=0)
    except AssertionError:
        return None
