"""One suite for both directories: the one in Redis, and a real slapd that slap.sh makes ready."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import ldap3
import pytest

from nova import crypto, exception
from nova.auth import filters
from nova.auth.directory import (
    Directory,
    Entry,
    SchemaViolation,
    Scope,
    add_values,
    child,
    delete_values,
    escape_rdn,
    replace_values,
    split_dn,
)
from nova.auth.fakeldap import FakeLdap
from nova.auth.filters import And, Equal, Like, Not, Or, Present
from nova.auth.ldapdriver import LdapDirectory
from nova.datastore import Store, open_store
from tests.conftest import free_port, wait_until
from tests.slapd import Slapd, empty, needs_slapd

USERS, GROUPS, ROLES = "ou=Users,dc=nova", "ou=Groups,dc=nova", "ou=Roles,dc=nova"


@pytest.fixture(params=["fake", pytest.param("slapd", marks=needs_slapd)])
async def directory(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> AsyncIterator[Directory]:
    made: Directory
    if request.param == "fake":
        made = FakeLdap(store, (USERS, GROUPS, ROLES), str(tmp_path / "key"))
    else:
        made = request.getfixturevalue("slapd").client()
    await made.start()
    await empty(made)
    yield made
    await made.stop()


def user(name: str, **more: str) -> dict[str, list[str]]:
    attributes = {"uid": name, "cn": name, "sn": name, "accessKey": f"key of {name}"[:200], "secretKey": "secret",
                  **more}
    return {"objectClass": ["inetOrgPerson", "novaUser"], **{k: [v] for k, v in attributes.items()}}


async def add_user(directory: Directory, name: str, **more: str) -> str:
    dn = child(USERS, "uid", name)
    await directory.add(dn, user(name, **more))
    return dn


async def add_group(directory: Directory, name: str, *members: str) -> str:
    dn = child(ROLES, "cn", name)
    await directory.add(dn, {"objectClass": ["groupOfNames"], "cn": [name], "member": list(members)})
    return dn


async def find(directory: Directory, condition: filters.Filter, base: str = USERS,
               scope: Scope = Scope.ONE) -> list[str]:
    """The sorted uids, or cns, of what matches."""
    found = await directory.search(base, scope, condition, ["uid", "cn"])
    return sorted(entry.value("uid") or entry.value("cn") for entry in found)


async def only(directory: Directory, dn: str, *attributes: str) -> Entry:
    [entry] = await directory.search(dn, Scope.BASE, attributes=attributes or ("*",))
    return entry


# -- entries and searches ---------------------------------------------------------------------------------------------

async def test_an_entry_comes_back_as_it_was_added(directory: Directory) -> None:
    dn = await add_user(directory, "ann", secretKey="s3cret/ü+=")
    entry = await only(directory, dn)
    assert entry.dn == dn
    assert entry.value("secretKey") == "s3cret/ü+=" and entry.value("accessKey") == "key of ann"
    assert sorted(entry.values("objectClass")) == ["inetOrgPerson", "novaUser"]


async def test_only_what_is_asked_for_comes_along_under_the_name_asked_for(directory: Directory) -> None:
    dn = await add_user(directory, "ann")
    entry = await only(directory, dn, "UID", "isAdmin")
    assert entry.attributes == {"UID": ["ann"]}


async def test_scopes(directory: Directory) -> None:
    ann = await add_user(directory, "ann")
    await directory.add(child(ann, "cn", "key-1"), {
        "objectClass": ["novaKeyPair"], "cn": ["key-1"], "sshPublicKey": ["ssh-rsa AAAA"], "keyFingerprint": ["aa:bb"]})
    assert await find(directory, filters.ANY, USERS, Scope.ONE) == ["ann"]
    assert await find(directory, filters.ANY, ann, Scope.SUBTREE) == ["ann", "key-1"]
    assert await find(directory, filters.ANY, ann, Scope.ONE) == ["key-1"]
    assert await find(directory, filters.ANY, ann, Scope.BASE) == ["ann"]


async def test_a_base_that_is_not_there_has_nothing(directory: Directory) -> None:
    assert await directory.search(child(USERS, "uid", "nobody"), Scope.SUBTREE) == []
    assert await directory.search("not a name", Scope.SUBTREE) == []
    assert await directory.search("uid=ann,ou=Elsewhere", Scope.SUBTREE) == []


async def test_filters(directory: Directory) -> None:
    for name, more in (("ann", {"isAdmin": "TRUE"}), ("anton", {"mail": "anton@example.com"}), ("bob", {})):
        await add_user(directory, name, **more)
    expected = {
        Equal("uid", "ann"): ["ann"],
        Equal("uid", "ANN"): ["ann"],
        Equal("uid", "an"): [],
        Equal("accessKey", "key of bob"): ["bob"],
        Equal("accessKey", "KEY OF BOB"): [],
        Equal("isAdmin", "TRUE"): ["ann"],
        Present("mail"): ["anton"],
        Not(Present("mail")): ["ann", "bob"],
        Like("uid", "an"): ["ann", "anton"],
        Like("uid", "", ("n",), "n"): ["ann", "anton"],
        Like("uid", "a", ("nt", "o"), "n"): ["anton"],
        Like("uid", "", ("NTO",)): ["anton"],
        Equal("uid", "ann") | Equal("uid", "bob"): ["ann", "bob"],
        Present("isAdmin") & Like("uid", "an"): ["ann"],
        And((Present("uid"), Not(Equal("uid", "bob")), Not(Present("mail")))): ["ann"],
        Or(()): [], And(()): ["ann", "anton", "bob"],
        Equal("noSuchAttribute", "x"): [],
        Not(Equal("noSuchAttribute", "x")): [],
        ~Equal("mail", "x"): ["ann", "anton", "bob"],
    }
    for condition, names in expected.items():
        if condition in (Or(()), And(())) and isinstance(directory, LdapDirectory):
            continue  # ldap3 does not write them
        assert await find(directory, condition) == names, str(condition)


async def test_members_are_found_by_their_names_however_written(directory: Directory) -> None:
    group = await add_group(directory, "sysadmin", "uid=ann,ou=Users,dc=nova")
    assert await find(directory, Equal("member", "UID=Ann, ou=users,dc=nova"), ROLES) == ["sysadmin"]
    assert await find(directory, Equal("member", "not a name"), ROLES) == []
    assert await find(directory, Equal("member", "uid=bob,ou=Users,dc=nova"), ROLES) == []
    assert (await only(directory, group)).values("member") == ["uid=ann,ou=Users,dc=nova"]


# -- what is refused --------------------------------------------------------------------------------------------------

async def test_a_name_is_taken_once_whatever_its_case(directory: Directory) -> None:
    await add_user(directory, "ann")
    for name in ("ann", "Ann", "ANN"):
        with pytest.raises(exception.Exists):
            await add_user(directory, name, accessKey="another")
    results = await asyncio.gather(*(add_user(directory, "bob", accessKey=f"k{n}") for n in range(8)),
                                   return_exceptions=True)
    assert sum(isinstance(r, exception.Exists) for r in results) == 7


async def test_an_access_key_belongs_to_one(directory: Directory) -> None:
    await add_user(directory, "ann", accessKey="K")
    with pytest.raises(exception.Exists):
        await add_user(directory, "bob", accessKey="K")
    bob = await add_user(directory, "bob", accessKey="k")  # keys differ by their case
    with pytest.raises(exception.Exists):
        await directory.modify(bob, [replace_values("accessKey", "K")])
    await directory.modify(bob, [replace_values("accessKey", "L")])
    await add_user(directory, "carl", accessKey="k")
    await directory.delete(bob)
    await add_user(directory, "dora", accessKey="L")


async def test_what_is_above_must_be_there(directory: Directory) -> None:
    with pytest.raises(exception.NotFound):
        await directory.add(f"cn=sysadmin,cn=nothing,{GROUPS}", {
            "objectClass": ["groupOfNames"], "cn": ["sysadmin"], "member": ["uid=ann,ou=Users,dc=nova"]})


@pytest.mark.parametrize("change", [
    {"secretKey": []}, {"accessKey": []}, {"sn": []}, {"cn": []}, {"objectClass": ["novaUser"]},
    {"objectClass": ["inetOrgPerson"]}, {"projectManager": ["uid=ann,ou=Users,dc=nova"]},
])
async def test_the_schema_is_kept(directory: Directory, change: dict[str, list[str]]) -> None:
    with pytest.raises(SchemaViolation):
        await directory.add(child(USERS, "uid", "ann"), {**user("ann"), **change})
    assert await find(directory, filters.ANY) == []


@pytest.mark.parametrize("change", [
    {"accessKey": ["a", "b"]}, {"isAdmin": ["yes"]}, {"noSuchAttribute": ["x"]},
    {"objectClass": ["inetOrgPerson", "nope"]},
    {"isAdmin": ["TRUE", "FALSE"]},
    {"cn": [""]}, {"cn": ["a\0b"]}, {"cn": ["\ud800"]}, {"cn": ["x" * 70000]},
])
async def test_values_that_ldap_cannot_hold(directory: Directory, change: dict[str, list[str]]) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await directory.add(child(USERS, "uid", "ann"), {**user("ann"), **change})
    assert await find(directory, filters.ANY) == []


async def test_a_group_has_members_that_are_names(directory: Directory) -> None:
    with pytest.raises(SchemaViolation):
        await add_group(directory, "sysadmin")
    with pytest.raises(exception.InvalidParameterValue):
        await add_group(directory, "sysadmin", "ann")
    with pytest.raises(exception.Exists):
        await add_group(directory, "sysadmin", "uid=ann,ou=Users,dc=nova", "uid=ANN,ou=Users,dc=nova")
    group = await add_group(directory, "sysadmin", "uid=ann,ou=Users,dc=nova")
    with pytest.raises(SchemaViolation):
        await directory.modify(group, [delete_values("member", "uid=ann,ou=Users,dc=nova")])


# -- changes ----------------------------------------------------------------------------------------------------------

async def test_changes_of_values(directory: Directory) -> None:
    dn = await add_user(directory, "ann")
    await directory.modify(dn, [add_values("mail", "a@x"), add_values("isAdmin", "TRUE"),
                                replace_values("sn", "Smith")])
    entry = await only(directory, dn)
    assert (entry.values("mail"), entry.value("isAdmin"), entry.values("sn")) == (["a@x"], "TRUE", ["Smith"])
    await directory.modify(dn, [add_values("mail", "b@x"), delete_values("mail", "a@x"), delete_values("isAdmin")])
    entry = await only(directory, dn)
    assert (entry.values("mail"), entry.values("isAdmin")) == (["b@x"], [])
    await directory.modify(dn, [replace_values("mail")])
    await directory.modify(dn, [replace_values("mail")])
    assert "mail" not in (await only(directory, dn)).attributes


async def test_changes_are_made_all_or_none(directory: Directory) -> None:
    dn = await add_user(directory, "ann", mail="a@x")
    for changes, error in (
            ([replace_values("sn", "new"), add_values("mail", "A@X")], exception.Exists),
            ([replace_values("sn", "new"), delete_values("mail", "b@x")], exception.NotFound),
            ([replace_values("sn", "new"), delete_values("description")], exception.NotFound),
            ([replace_values("sn", "new"), delete_values("secretKey")], SchemaViolation),
            ([replace_values("sn", "new"), replace_values("isAdmin", "perhaps")], exception.InvalidParameterValue)):
        with pytest.raises(error):
            await directory.modify(dn, changes)
        assert (await only(directory, dn)).values("sn") == ["ann"]
    with pytest.raises(exception.NotFound):
        await directory.modify(child(USERS, "uid", "bob"), [replace_values("sn", "x")])


async def test_parallel_changes_all_count(directory: Directory) -> None:
    group = await add_group(directory, "sysadmin", "uid=first,ou=Users,dc=nova")
    await asyncio.gather(*(directory.modify(group, [add_values("member", f"uid=u{n},ou=Users,dc=nova")])
                           for n in range(20)))
    assert len((await only(directory, group)).values("member")) == 21


async def test_deleting(directory: Directory) -> None:
    ann = await add_user(directory, "ann")
    key = child(ann, "cn", "key-1")
    await directory.add(key, {"objectClass": ["novaKeyPair"], "cn": ["key-1"], "sshPublicKey": ["ssh-rsa AAAA"],
                              "keyFingerprint": ["aa:bb"]})
    with pytest.raises(exception.Conflict):
        await directory.delete(ann)
    await directory.delete(key)
    await directory.delete(ann)
    with pytest.raises(exception.NotFound):
        await directory.delete(ann)
    assert await find(directory, filters.ANY) == []


async def test_a_change_can_depend_on_what_the_entry_is(directory: Directory) -> None:
    members = [f"uid={name},ou=Users,dc=nova" for name in ("ann", "bob")]
    group = await add_group(directory, "sysadmin", *members)
    with pytest.raises(exception.Conflict):
        await directory.modify(group, [replace_values("description", "x")], condition=~Equal("member", members[0]))
    await directory.modify(group, [replace_values("description", "x")], condition=Equal("member", members[0]))
    seen = (await only(directory, group, "entryCSN")).value("entryCSN")
    await directory.modify(group, [replace_values("description", "y")])
    with pytest.raises(exception.Conflict):
        await directory.delete(group, condition=Equal("entryCSN", seen))
    seen = (await only(directory, group, "entryCSN")).value("entryCSN")
    await directory.delete(group, condition=Equal("entryCSN", seen))


async def test_an_entry_made_anew_is_another_one(directory: Directory) -> None:
    group = await add_group(directory, "sysadmin", "uid=ann,ou=Users,dc=nova")
    seen = (await only(directory, group, "entryCSN")).value("entryCSN")
    await directory.delete(group)
    await add_group(directory, "sysadmin", "uid=ann,ou=Users,dc=nova")
    with pytest.raises(exception.Conflict):
        await directory.delete(group, condition=Equal("entryCSN", seen))


# -- what strangers send ----------------------------------------------------------------------------------------------

HOSTILE = ["*", "*)(uid=*", "ann)(|(uid=*", "ann,ou=Users", "ann+cn=ann", "a\\b", 'a"b', "a<b>c;d=e#f", "#ann", " ann",
           "ann ", "  ", "ann\\", "\\2a", "ünïcødé", "名前", "🔑", "a\nb", "a=b", "uid=ann,ou=Users,dc=nova",
           "(", ")", "&", "|", "!", "cn=x)(objectClass=*", "\u202eann", "x" * 230, "é" * 90, "," * 78]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
async def test_a_hostile_name_means_itself_and_nothing_else(directory: Directory, name: str) -> None:
    await add_user(directory, "ann", accessKey="K")
    for attribute in ("uid", "accessKey", "cn", "mail"):
        assert await find(directory, Equal(attribute, name)) == [] or name.strip().casefold() == "ann"
    assert await directory.search(child(USERS, "cn", name), Scope.SUBTREE) == []
    dn = child(USERS, "uid", name)
    if name.strip() in ("ann", ""):
        return  # spaces around do not count: it is ann's name, or none
    await directory.add(dn, user(name, accessKey=name))
    assert await find(directory, Equal("uid", name)) == [name] or "\u202e" in name
    assert [e.value("accessKey") for e in await directory.search(dn, Scope.BASE, attributes=["accessKey"])] == [name]
    found = await directory.search(USERS, Scope.SUBTREE, Equal("accessKey", name), ["uid"])
    assert [entry.value("uid") for entry in found] == [name]
    group = await add_group(directory, "g", dn)
    [member] = (await only(directory, group)).values("member")
    assert split_dn(member)[0] == ("uid", name)
    assert await find(directory, Equal("member", dn), ROLES) == ["g"]
    await directory.delete(dn)
    assert await find(directory, filters.ANY) == ["ann"]


@pytest.mark.parametrize("name", ["", "a\0b", "\0", "\ud800", "x" * 10_000, "é" * 5_000, "x" * 250, "," * 100,
                                  "\ufdfa" * 20], ids=lambda name: ascii(name[:9]))
async def test_a_name_that_ldap_cannot_hold_is_refused(directory: Directory, name: str) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await directory.add(child(USERS, "uid", name), user("ann"))
    with pytest.raises(exception.InvalidParameterValue):
        await directory.delete(child(USERS, "uid", name))
    assert await find(directory, Equal("uid", name)) == []
    assert await directory.search(child(USERS, "uid", name), Scope.BASE) == []


async def test_a_raw_name_that_names_by_several_attributes_is_refused(directory: Directory) -> None:
    for dn in (f"uid=ann+cn=ann,{USERS}", f"uid=ann,,{USERS}", f"uid,{USERS}", f"=ann,{USERS}", f"uid=a\\zz,{USERS}"):
        with pytest.raises(exception.InvalidParameterValue):
            await directory.add(dn, user("ann"))


# -- the fake's own ---------------------------------------------------------------------------------------------------

@pytest.mark.embedded_directory("what it keeps in Redis")
async def test_no_secret_is_in_redis(store: Store, tmp_path: Path) -> None:
    directory = FakeLdap(store, (USERS, ROLES), str(tmp_path / "key"))
    dn = await add_user(directory, "ann", secretKey="verysecret")
    bob = await add_user(directory, "bob", secretKey="othersecret")
    assert os.stat(tmp_path / "key").st_mode & 0o777 == 0o600
    seen = b""
    for key in await store.redis.keys("*"):
        if await store.redis.type(key) == b"hash":
            seen += b" ".join((await store.redis.hgetall(key)).values())
    assert b"key of ann" in seen and b"verysecret" not in seen
    # one that is moved to another user is worth nothing there
    names = [f"nova:ldap_entry:{dn.lower()}", f"nova:ldap_entry:{bob.lower()}"]
    await store.redis.hset(names[1], "attributes", (await store.redis.hget(names[0], "attributes")))
    with pytest.raises(exception.NovaError, match="damaged"):
        await only(directory, bob, "secretKey")
    assert (await only(directory, dn, "secretKey")).value("secretKey") == "verysecret"


@pytest.mark.embedded_directory("the key that encrypts it")
async def test_another_key_is_noticed_at_the_start(store: Store, tmp_path: Path) -> None:
    await FakeLdap(store, (USERS,), str(tmp_path / "key")).start()
    with pytest.raises(exception.NovaError, match="another key"):
        await FakeLdap(store, (USERS,), str(tmp_path / "other")).start()
    (tmp_path / "broken").write_text("xyz")
    with pytest.raises(exception.NovaError, match="is no key"):
        await FakeLdap(store, (USERS,), str(tmp_path / "broken")).start()


@pytest.mark.embedded_directory("it goes away with Redis")
async def test_redis_away_is_unavailable(tmp_path: Path) -> None:
    store = open_store("redis://127.0.0.1:1/0")
    with pytest.raises(exception.Unavailable):
        await FakeLdap(store, (USERS,), str(tmp_path / "key")).search(USERS, Scope.ONE)
    await store.close()


# -- slapd's own ------------------------------------------------------------------------------------------------------

@needs_slapd
async def test_nobody_but_nova_reads_a_secret_key(slapd: Slapd) -> None:
    nova = slapd.client()
    await empty(nova)
    other = await add_user(nova, "other", accessKey="O")
    await add_user(nova, "ann", accessKey="A", secretKey="verysecret")
    await nova.modify(other, [add_values("userPassword", "pass")])
    peer = slapd.client(user_dn=other, password="pass")
    [entry] = await peer.search(USERS, Scope.ONE, Equal("uid", "ann"), ["*"])
    assert entry.value("uid") == "ann" and not {"secretKey", "accessKey", "userPassword"} & set(entry.attributes)
    assert await peer.search(USERS, Scope.SUBTREE, Equal("secretKey", "verysecret"), ["uid"]) == []
    assert await peer.search(USERS, Scope.SUBTREE, Equal("accessKey", "A"), ["uid"]) == []
    with pytest.raises(exception.NovaError):
        await peer.modify(other, [replace_values("secretKey", "mine")])
    with pytest.raises(exception.NovaError):
        await peer.modify(other, [replace_values("isAdmin", "TRUE")])

    def anonymous(url: str, **how) -> list:
        connection = ldap3.Connection(ldap3.Server(url, get_info=ldap3.NONE), auto_bind=True, **how)
        connection.search(USERS, "(objectClass=*)", attributes=["*"])
        return connection.entries
    assert anonymous(slapd.url) == []
    for own in anonymous(f"ldapi://{slapd.directory}/ldapi", authentication=ldap3.SASL, sasl_mechanism="EXTERNAL",
                         sasl_credentials=""):  # not even the user that slapd runs as, without stopping it
        assert "secretKey" not in own.entry_attributes_as_dict
    await nova.stop()
    await peer.stop()


@needs_slapd
async def test_a_wrong_password_is_unavailable_and_logged(slapd: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    directory = slapd.client(password="wrong")
    with pytest.raises(exception.Unavailable):
        await directory.search(USERS, Scope.ONE)
    assert "does not let cn=nova,dc=nova in" in caplog.text and "wrong" not in caplog.text
    await directory.stop()


@needs_slapd
async def test_slapd_killed_and_back(slapd: Slapd) -> None:
    directory = slapd.client()
    await empty(directory)
    await add_user(directory, "ann")
    try:
        slapd.kill()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(exception.Unavailable) as refused:
                await directory.search(USERS, Scope.ONE)
            assert refused.value.status == 503 and time.monotonic() - began < 1
        with pytest.raises(exception.Unavailable):
            await add_user(directory, "bob")
    finally:
        slapd.start()
    await _until_it_answers(directory)
    assert await find(directory, filters.ANY) == ["ann"]
    await asyncio.gather(*(find(directory, filters.ANY) for _ in range(8)))
    slapd.kill()
    slapd.start()  # in between, nobody asked: the connections are dead, and nobody notices
    results = await asyncio.gather(*(find(directory, filters.ANY) for _ in range(8)))
    assert results == [["ann"]] * 8
    slapd.kill()
    slapd.start()
    await add_user(directory, "bob")
    await directory.stop()


@needs_slapd
async def test_a_slapd_that_hangs_holds_nobody_up_for_long(slapd: Slapd) -> None:
    directory = slapd.client(timeout=1, pool_size=2)
    await find(directory, filters.ANY)
    os.kill(slapd.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        results = await asyncio.gather(*(find(directory, filters.ANY) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(r, exception.Unavailable) for r in results), results
        assert time.monotonic() - began < 6
        ticks = 0
        waiting = asyncio.ensure_future(find(directory, filters.ANY))
        while not waiting.done() and ticks < 20:
            await asyncio.sleep(0.01)  # the loop runs on
            ticks += 1
        with contextlib.suppress(exception.Unavailable):
            await waiting
    finally:
        os.kill(slapd.pid, signal.SIGCONT)
    await _until_it_answers(directory)
    await directory.stop()


async def _until_it_answers(directory: Directory) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            await directory.search(USERS, Scope.ONE)
            return
        except exception.Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


def _authority(directory: Path, name: str) -> crypto.Authority:
    authority = crypto.Authority(str(directory / name))
    authority.ensure()
    return authority


def _server_certificate(authority: crypto.Authority, directory: Path, name: str) -> tuple[Path, Path]:
    """A key and a certificate for a server of this name."""
    key, cert, request, extensions = (directory / f"server.{end}" for end in ("key", "pem", "csr", "ext"))
    extensions.write_text(f"subjectAltName={name}\n")
    for command in (
            ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=slapd", "-keyout", key, "-out", request],
            ["x509", "-req", "-in", request, "-CA", authority.certificate_path, "-CAkey", authority.key_path,
             "-set_serial", "4711", "-days", "2", "-extfile", extensions, "-out", cert]):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    return key, cert


@needs_slapd
@pytest.mark.parametrize("names", ["IP:127.0.0.1", "DNS:elsewhere.example.com"])
async def test_tls_checks_the_certificate(tmp_path: Path, names: str) -> None:
    right, wrong = _authority(tmp_path, "right"), _authority(tmp_path, "wrong")
    key, cert = _server_certificate(right, tmp_path, names)
    tls_port = free_port()
    server = Slapd(f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-ca={right.certificate_path}",
                   f"--tls-port={tls_port}")
    try:
        server.start()
        for how in ({"start_tls": True}, {"url": f"ldaps://127.0.0.1:{tls_port}"}):
            good = server.client(ca_file=right.certificate_path, **how)
            bad = server.client(ca_file=wrong.certificate_path, **how)
            system = server.client(**how)
            if names == "IP:127.0.0.1":
                await good.add(child(USERS, "uid", "ann"), user("ann"))
                assert await find(good, filters.ANY) == ["ann"]
                await good.delete(child(USERS, "uid", "ann"))
            else:
                with pytest.raises(exception.Unavailable):
                    await find(good, filters.ANY)
            for refused in (bad, system):
                with pytest.raises(exception.Unavailable):
                    await find(refused, filters.ANY)
            for each in (good, bad, system):
                await each.stop()
    finally:
        server.remove()
    wait_until(lambda: not server.listens(), 10)


# -- the parts --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
def test_texts_of_names_and_filters_are_read_back_as_they_were(name: str) -> None:
    assert split_dn(f"uid={escape_rdn(name)},ou=Users") == [("uid", name), ("ou", "Users")]
    for piece in (Equal("uid", name), Like("uid", name, (name, "x"), name), ~(Present("cn") & Equal("cn", name))):
        assert filters.parse(str(piece)) == piece


@pytest.mark.parametrize("text", ["", "(", "()", "(uid)", "(uid=x", "uid=x", "(uid=x))", "(&(uid=x)",
                                  "(!(a=b)(c=d))", "(uid=a(b)", "(uid=\\zz)", "(uid=\\c3)", "(uid:dn:=x)",
                                  "(u id=x)", "(" * 100, "(&" * 200])
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(filters.FilterError):
        filters.parse(text)


@pytest.mark.parametrize("attribute", ["", "uid=x)(cn", "a b", "1a", "uid\0"])
def test_an_attribute_is_never_input(attribute: str) -> None:
    for make in (lambda: Equal(attribute, "x"), lambda: Present(attribute), lambda: Like(attribute, "x")):
        with pytest.raises(filters.FilterError):
            make()
