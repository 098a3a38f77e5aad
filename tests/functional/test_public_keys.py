"""The directory's copies of public keys: in step with the key pairs, also after trouble, on both directories."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova import exception
from nova.auth import tree
from nova.auth.directory import Directory, Scope
from nova.auth.fakeldap import FakeLdap
from nova.auth.manager import AuthManager
from nova.auth.models import KeyPair, PublishedKey
from nova.cloud import action, verify
from nova.cloud.keypairs import KeyPairs
from nova.cloud.public_keys import PublicKeys, PublicKeySweep
from nova.context import Context
from nova.datastore import Store
from nova.flags import FLAGS
from tests.slapd import Slapd, empty, needs_slapd

ANN = Context("ann", "web", frozenset({"member", "sysadmin"}))
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0uJXb2mJXYQnXl0F2cUYT4jBm2hHqqY9sYlXvJbF1d ann@home"


class Leaving(FakeLdap):
    """The fake directory, which can be away, as a server can."""

    away = False

    async def _ready(self) -> Any:
        if self.away:
            raise exception.Unavailable()
        return await super()._ready()


class Rig:
    """Key pairs in a cloud whose directory comes and goes."""

    def __init__(self, store: Store, directory: Directory, server: Slapd | None):
        self.store, self.directory, self._server = store, directory, server
        self.auth = AuthManager(store, directory)
        self.keys = PublicKeys(store, self.auth)
        self._registry = action.Registry.collect([KeyPairs(store=store, public_keys=self.keys)])

    async def call(self, name: str, **params: str) -> dict[str, Any]:
        _, result = await action.dispatch(self._registry, ANN, name, list(params.items()))
        return result

    async def leave(self) -> None:
        """The directory goes away."""
        if isinstance(self.directory, Leaving):
            self.directory.away = True
        else:
            assert self._server is not None
            await asyncio.to_thread(self._server.kill)

    async def come_back(self) -> None:
        """The directory is there again."""
        if isinstance(self.directory, Leaving):
            self.directory.away = False
        else:
            assert self._server is not None
            await asyncio.to_thread(self._server.start)
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.auth.users()
                    return
                except exception.Unavailable:
                    await asyncio.sleep(0.1)

    async def copies(self) -> set[str]:
        """The KeyPairIds of the copies."""
        return {key.key_pair_id for key in (await self.auth.published_keys())[1]}

    async def key_pairs(self) -> set[str]:
        """The KeyPairIds of the key pairs."""
        return {pair.key_pair_id for pair in await self.store.all(KeyPair)}

    async def differences(self) -> list[verify.Difference]:
        return [d for d in await verify.verify(self.store, self.auth, pause=0) if d.check == "directory"]


@pytest.fixture(params=["fake", pytest.param("slapd", marks=needs_slapd)])
async def rig(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    directory: Directory
    server = None
    if request.param == "fake":
        directory = Leaving(store, tree.roots(), str(tmp_path / "key"))
    else:
        server = request.getfixturevalue("slapd")
        directory = server.client()
    await directory.start()
    await empty(directory)
    made = Rig(store, directory, server)
    await made.auth.create_user("ann")
    await made.auth.create_project("web", "ann")
    yield made
    await directory.stop()


async def test_a_copy_comes_and_goes_with_the_key_pair(rig: Rig) -> None:
    made = await rig.call("CreateKeyPair", KeyName="mine", KeyType="ed25519")
    brought = await rig.call("ImportKeyPair", KeyName="brought", PublicKeyMaterial=_base64(PUBLIC))
    assert await rig.copies() == {made["KeyPairId"], brought["KeyPairId"]}
    dn = tree.key_dn("ann", brought["KeyPairId"])
    [entry] = await rig.directory.search(dn, Scope.BASE)
    pair = await rig.store.get(KeyPair, "web:brought")
    assert {name: entry.value(name) for name in ("sshPublicKey", "keyFingerprint", "keyName", "keyProject")} == {
        "sshPublicKey": pair.public_key, "keyFingerprint": pair.fingerprint, "keyName": "brought", "keyProject": "web"}
    await rig.call("DeleteKeyPair", KeyName="mine")
    assert await rig.copies() == {brought["KeyPairId"]}
    await rig.call("DeleteKeyPair", KeyPairId=brought["KeyPairId"])
    assert await rig.copies() == set()
    assert await rig.differences() == []


async def test_what_happens_while_the_directory_is_away_is_made_up_for(rig: Rig) -> None:
    old = await rig.call("CreateKeyPair", KeyName="old", KeyType="ed25519")
    await rig.leave()
    new = await rig.call("CreateKeyPair", KeyName="new", KeyType="ed25519")
    await rig.call("DeleteKeyPair", KeyName="old")
    assert await rig.key_pairs() == {new["KeyPairId"]}
    with pytest.raises(exception.Unavailable):
        await rig.keys.mend()
    await rig.come_back()
    assert await rig.copies() == {old["KeyPairId"]}
    await rig.keys.mend()
    assert await rig.copies() == {new["KeyPairId"]} == await rig.key_pairs()


async def test_the_sweep_outlives_an_outage(rig: Rig) -> None:
    FLAGS.public_key_interval = 0.1
    await rig.leave()
    sweep = PublicKeySweep(rig.keys)
    await sweep.start()
    try:
        made = await rig.call("CreateKeyPair", KeyName="mine", KeyType="ed25519")
        await rig.come_back()
        async with asyncio.timeout(60):
            while await rig.copies() != {made["KeyPairId"]}:
                await asyncio.sleep(0.05)
    finally:
        await sweep.stop()


async def test_verify_tells_of_both_directions_and_repairs_them(rig: Rig) -> None:
    """As a crash between the record and the copy leaves it."""
    lost = await rig.call("CreateKeyPair", KeyName="lost", KeyType="ed25519")
    left = await rig.call("CreateKeyPair", KeyName="left", KeyType="ed25519")
    await rig.auth.withdraw_key_pair(await rig.store.get(KeyPair, "web:lost"))
    await rig.store.delete(await rig.store.get(KeyPair, "web:left"))
    found = await rig.differences()
    assert {(d.about, d.repair is not None) for d in found} == {
        ("key pair web:lost", True), (f"key pair {left['KeyPairId']}", True)}
    await verify.repair(found)
    assert await rig.copies() == {lost["KeyPairId"]}
    assert await rig.differences() == []


async def test_a_key_pair_of_nobody_in_the_directory_is_no_difference(rig: Rig) -> None:
    await rig.store.create(KeyPair("web:bobs", "web", "bob", "bobs", "key-2", PUBLIC, "aa", "ed25519", 1.0))
    assert await rig.keys.differences() == ([], [])
    await rig.auth.create_user("bob")
    missing, stale = await rig.keys.differences()
    assert ([pair.id for pair in missing], stale) == (["web:bobs"], [])
    await rig.keys.mend()
    assert await rig.copies() == {"key-2"}


async def test_a_key_pair_that_is_deleted_while_it_is_copied_leaves_no_copy(rig: Rig) -> None:
    await rig.call("CreateKeyPair", KeyName="mine", KeyType="ed25519")
    pair = await rig.store.get(KeyPair, "web:mine")
    await rig.call("DeleteKeyPair", KeyName="mine")
    await rig.call("CreateKeyPair", KeyName="mine", KeyType="ed25519")  # of the same name, and another one
    await rig.keys.make_up(pair)
    assert PublishedKey("ann", pair.key_pair_id) not in (await rig.auth.published_keys())[1]
    assert await rig.copies() == await rig.key_pairs()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
