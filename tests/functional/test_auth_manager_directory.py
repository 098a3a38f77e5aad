"""Users, projects and roles on both directories; what is remembered of them, and for how long."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nova import exception
from nova.auth import memo, tree
from nova.auth.directory import Directory, Scope, replace_values
from nova.auth.fakeldap import FakeLdap
from nova.auth.filters import ANY
from nova.auth.manager import AuthManager
from nova.auth.models import KeyPair
from nova.datastore import Store, open_store
from nova.flags import FLAGS
from tests.conftest import RedisServer
from tests.slapd import empty, needs_slapd


@pytest.fixture(params=["fake", pytest.param("slapd", marks=needs_slapd)])
async def directory(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> AsyncIterator[Directory]:
    made: Directory
    if request.param == "fake":
        made = FakeLdap(store, tree.roots(), str(tmp_path / "key"))
    else:
        made = request.getfixturevalue("slapd").client()
    await made.start()
    await empty(made)
    yield made
    await made.stop()


@pytest.fixture
async def auth(store: Store, directory: Directory) -> AuthManager:
    return AuthManager(store, directory)


async def everything(directory: Directory) -> dict[str, dict[str, list[str]]]:
    found = [entry for root in tree.roots() for entry in await directory.search(root, Scope.SUBTREE, ANY, ["*"])]
    return {entry.dn: {name: sorted(values) for name, values in entry.attributes.items()} for entry in found}


async def until(condition: Callable[[], object], timeout: float = 5) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


# -- users and projects -----------------------------------------------------------------------------------------------

async def test_a_user_and_a_project(auth: AuthManager) -> None:
    ann = await auth.create_user("ann")
    await auth.create_user("bob", is_admin=True)
    assert await auth.user("ann") == ann and not ann.is_admin and not ann.is_locked
    assert [(u.id, u.is_admin) for u in await auth.users()] == [("ann", False), ("bob", True)]
    web = await auth.create_project("web", "ann", "the web shop, ünicode")
    await auth.add_member("web", "bob")
    await auth.add_member("web", "bob")
    assert await auth.project("web") == web.__class__("web", "ann", ["ann", "bob"], "the web shop, ünicode")
    assert [p.id for p in await auth.projects()] == ["web"] == [p.id for p in await auth.projects("bob")]
    assert await auth.projects("carl") == []


async def test_when_a_user_was_made(auth: AuthManager) -> None:
    before = int(time.time())
    ann = await auth.create_user("ann")
    assert before <= ann.created <= time.time()
    await auth.rotate("ann")
    await auth.lock_user("ann")
    assert (await auth.user("ann")).created == ann.created
    assert [user.created for user in await auth.users()] == [ann.created]


async def test_an_identity(auth: AuthManager) -> None:
    ann = await auth.create_user("ann")
    await auth.create_project("web", "ann")
    identity = await auth.identity(ann.access, "web")
    assert identity == memo.Identity("ann", "web", ann.secret, frozenset({"member", "projectmanager"}), False)
    await auth.create_project("ann", "ann")
    assert (await auth.identity(ann.access, None)).project_id == "ann"


async def test_who_is_nobody(auth: AuthManager) -> None:
    ann, bob = await auth.create_user("ann", access="KeyOfAnn"), await auth.create_user("bob", is_admin=True)
    await auth.create_project("web", "ann")
    for access, project in (("", "web"), ("x", "web"), (ann.access.lower(), "web"), (ann.access, "WEB"),
                            (ann.access, None), (bob.access, "web"), ("*", "web"), (ann.access, "*"),
                            ("*)(uid=*", "web"), (ann.access, "we*"), (ann.access, "web,ou=Groups"),
                            (ann.access + "\0", "web"), (ann.access, "web\0"),
                            (ann.access, "sysadmin,cn=web"), ("é" * 100, "\ud800"), ("x" * 10000, "y" * 10000)):
        with pytest.raises(exception.AuthFailure):
            await auth.identity(access, project)


async def test_one_of_many_who_create_the_same_wins(auth: AuthManager) -> None:
    await auth.create_user("ann")
    for make in (lambda: auth.create_user("bob"), lambda: auth.create_project("web", "ann")):
        results = await asyncio.gather(*(make() for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(r, exception.Exists) for r in results) == 7
    with pytest.raises(exception.Exists):
        await auth.create_user("ANN")
    with pytest.raises(exception.NotFound):
        await auth.user("Ann")
    with pytest.raises(exception.NotFound):
        await auth.create_project("other", "nobody")


BAD_NAMES = ["", " ", "*", "a b", "a,b", "a+b", "a\0b", "ann)(uid=*", "../x", ".x", "-x", "é", "ann\n", "x" * 65,
             "x" * 10000, "\ud800", "a:b", "a/b", "all", "Self", "cloudadmin", "member", "uid=ann", "#x"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:12]))
async def test_a_name_that_cannot_be_changes_nothing(auth: AuthManager, directory: Directory, name: str) -> None:
    await auth.create_user("ann")
    await auth.create_project("web", "ann")
    before = await everything(directory)
    for refused in (auth.create_user(name), auth.create_project(name, "ann")):
        with pytest.raises(exception.InvalidParameterValue):
            await refused
    not_there = (exception.NotFound, exception.InvalidParameterValue)
    for refused in (auth.user(name), auth.project(name), auth.create_project("other", name),
                    auth.add_member("web", name), auth.add_member(name, "ann"),
                    auth.remove_member("web", name), auth.remove_member(name, "ann"),
                    auth.delete_user(name), auth.delete_project(name), auth.add_role(name, "sysadmin"),
                    auth.add_role("ann", "sysadmin", name), auth.add_role("ann", name, "web"), auth.rotate(name),
                    auth.modify_user(name, is_admin=True), auth.modify_project(name, description="x"),
                    auth.modify_project("web", manager=name), auth.lock_user(name), auth.roles_of(name),
                    auth.members_of_role("sysadmin", name)):
        with pytest.raises(not_there):
            await refused
    assert await everything(directory) == before


@pytest.mark.parametrize("access, secret", [("", "s"), ("a:b", "s"), ("a/b", "s"), ("a b", "s"), ("a,b", "s"),
                                            ("é", "s"), ("x" * 129, "s"), ("a", ""), ("a", "a b"), ("a", "\0"),
                                            ("a", "x" * 129)])
async def test_an_access_key_that_cannot_be(auth: AuthManager, access: str, secret: str) -> None:
    ann = await auth.create_user("ann")
    with pytest.raises(exception.InvalidParameterValue):
        await auth.create_user("bob", access=access, secret=secret)
    with pytest.raises(exception.InvalidParameterValue):
        await auth.modify_user("ann", access=access, secret=secret)
    assert await auth.users() == [ann]


async def test_changing_a_user(auth: AuthManager) -> None:
    ann = await auth.create_user("ann")
    await auth.create_project("ann", "ann")
    bob = await auth.create_user("bob", access="BOB", secret="bob's")
    assert (bob.access, bob.secret) == ("BOB", "bob's")
    with pytest.raises(exception.Exists):
        await auth.modify_user("ann", access="BOB")
    with pytest.raises(exception.Exists):
        await auth.create_user("carl", access="BOB")
    changed = await auth.modify_user("ann", access="ANN", secret="new", is_admin=True)
    assert (changed.access, changed.secret, changed.is_admin) == ("ANN", "new", True)
    with pytest.raises(exception.AuthFailure):
        await auth.identity(ann.access, "ann")
    assert (await auth.identity("ANN", "ann")).secret == "new"
    rotated = await auth.rotate("ann")
    assert rotated.access not in (ann.access, "ANN") and rotated.secret != "new" and rotated.is_admin
    await auth.lock_user("ann")
    assert (await auth.user("ann")).is_locked
    with pytest.raises(exception.AuthFailure):
        await auth.identity(rotated.access, "ann")
    await auth.unlock_user("ann")
    assert (await auth.identity(rotated.access, "ann")).user_id == "ann"


async def test_a_user_who_manages_a_project_is_not_removed(auth: AuthManager) -> None:
    await auth.create_user("ann")
    await auth.create_project("web", "ann")
    with pytest.raises(exception.IncorrectState, match="web"):
        await auth.delete_user("ann")
    with pytest.raises(exception.IncorrectState):
        await auth.remove_member("web", "ann")
    await auth.create_user("bob")
    await auth.modify_project("web", manager="bob", description="")
    project = await auth.project("web")
    assert (project.manager, project.members) == ("bob", ["ann", "bob"])
    await auth.delete_user("ann")
    assert (await auth.project("web")).members == ["bob"]


async def test_nothing_is_left_of_a_removed_user(auth: AuthManager, directory: Directory) -> None:
    await auth.create_user("bob")
    await auth.create_project("web", "bob")
    before = await everything(directory)
    await auth.create_user("ann")
    await auth.add_member("web", "ann")
    for role, project in (("sysadmin", None), ("sysadmin", "web"), ("itsec", None), ("projectmanager", "web")):
        await auth.add_role("ann", role, project)
    pair = KeyPair("web:mine", "web", "ann", "mine", "key-1", "ssh-ed25519 AAAA", "aa:bb", "ed25519", 1.0)
    await auth.publish_key_pair(pair)
    await auth.publish_key_pair(pair)
    assert tree.key_dn("ann", "key-1") in await everything(directory)
    await auth.delete_user("ann")
    assert await everything(directory) == before
    await auth.withdraw_key_pair(pair)


async def test_one_who_is_made_anew_has_nothing_of_the_earlier(auth: AuthManager, directory: Directory) -> None:
    await auth.create_user("ann")
    await auth.create_user("bob")
    await auth.create_project("web", "bob")
    await auth.add_member("web", "ann")
    await auth.add_role("ann", "cloudadmin")
    await directory.delete(tree.user_dn("ann"))  # by somebody who is not Nova
    await auth.create_user("ann")
    assert await auth.roles_of("ann") == frozenset()
    assert (await auth.project("web")).members == ["bob"]


async def test_removing_a_project_removes_its_roles(auth: AuthManager, directory: Directory) -> None:
    await auth.create_user("ann")
    before = await everything(directory)
    await auth.create_project("web", "ann")
    await auth.add_role("ann", "sysadmin", "web")
    await auth.delete_project("web")
    assert await everything(directory) == before
    with pytest.raises(exception.NotFound):
        await auth.delete_project("web")


# -- roles ------------------------------------------------------------------------------------------------------------

async def test_a_role_counts_where_it_is_held_globally_and_in_the_project(auth: AuthManager) -> None:
    for name in ("ann", "bob"):
        await auth.create_user(name)
    await auth.create_project("web", "bob")
    await auth.create_project("db", "bob")
    await auth.add_member("web", "ann")
    await auth.add_member("db", "ann")
    await auth.add_role("ann", "sysadmin", "web")
    assert not await auth.has_role("ann", "sysadmin", "web")
    await auth.add_role("ann", "sysadmin")
    assert await auth.has_role("ann", "sysadmin", "web") and await auth.has_role("ann", "sysadmin")
    assert not await auth.has_role("ann", "sysadmin", "db")
    assert await auth.roles_of("ann", "web") == {"member", "sysadmin"}
    assert await auth.members_of_role("sysadmin", "web") == ["ann"] == await auth.members_of_role("sysadmin")
    await auth.remove_role("ann", "sysadmin")
    assert await auth.roles_of("ann", "web") == {"member"}
    await auth.remove_role("ann", "sysadmin")


async def test_global_roles_and_administrators(auth: AuthManager) -> None:
    for name in ("ann", "bob", "root"):
        await auth.create_user(name, is_admin=name == "root")
    await auth.create_project("web", "bob")
    await auth.add_role("ann", "itsec")
    assert await auth.has_role("ann", "itsec", "web") and await auth.has_role("root", "cloudadmin", "web")
    assert await auth.roles_of("root") == {"cloudadmin"} == await auth.roles_of("root", "web")
    assert await auth.roles_of("bob", "web") == {"member", "projectmanager"}
    await auth.add_member("web", "ann")
    await auth.add_role("ann", "projectmanager", "web")
    assert await auth.roles_of("ann", "web") == {"member", "projectmanager", "itsec"}


async def test_what_roles_there_are(auth: AuthManager) -> None:
    await auth.create_user("ann")
    await auth.create_user("bob")
    await auth.create_project("web", "ann")
    for role, project in (("king", None), ("developer", None), ("member", "web"), ("cloudadmin", "web"),
                          ("itsec", "web"), ("projectmanager", None)):
        with pytest.raises(exception.InvalidParameterValue):
            await auth.add_role("ann", role, project)
    with pytest.raises(exception.NotFound):
        await auth.add_role("bob", "sysadmin", "web")
    with pytest.raises(exception.NotFound):
        await auth.add_role("ann", "sysadmin", "nowhere")


async def test_a_role_goes_with_the_membership(auth: AuthManager) -> None:
    for name in ("ann", "bob"):
        await auth.create_user(name)
    await auth.create_project("web", "bob")
    await auth.add_member("web", "ann")
    await auth.add_role("ann", "sysadmin")
    await auth.add_role("ann", "sysadmin", "web")
    await auth.remove_member("web", "ann")
    with pytest.raises(exception.NotFound):
        await auth.remove_member("web", "ann")
    await auth.add_member("web", "ann")
    assert await auth.roles_of("ann", "web") == {"member"}


async def test_parallel_changes_of_a_role_all_count(auth: AuthManager) -> None:
    """The last one out takes the group along, while others come in."""
    names = [f"u{n}" for n in range(8)]
    for name in names:
        await auth.create_user(name)
    for _ in range(5):
        await asyncio.gather(*(auth.add_role(name, "sysadmin") for name in names[:4]))
        await asyncio.gather(*(auth.remove_role(name, "sysadmin") for name in names[:4]),
                             *(auth.add_role(name, "sysadmin") for name in names[4:]))
        assert await auth.members_of_role("sysadmin") == names[4:]
        await asyncio.gather(*(auth.remove_role(name, "sysadmin") for name in names[4:]),
                             *(auth.remove_role(name, "sysadmin") for name in names[4:]))
        assert await auth.members_of_role("sysadmin") == []


async def test_parallel_changes_of_a_project_all_count(auth: AuthManager) -> None:
    names = [f"u{n}" for n in range(10)]
    for name in names:
        await auth.create_user(name)
    await auth.create_project("web", "u0")
    await asyncio.gather(*(auth.add_member("web", name) for name in names[:6]))
    await asyncio.gather(*(auth.add_member("web", name) for name in names[6:]),
                         *(auth.remove_member("web", name) for name in names[1:6]),
                         auth.modify_project("web", manager="u9"))
    project = await auth.project("web")
    assert (project.manager, project.members) == ("u9", ["u0", *names[6:]])


async def test_the_first_administrator(auth: AuthManager) -> None:
    assert await auth.bootstrap("admin", "administrators")
    assert not await auth.bootstrap("admin", "administrators")
    user = await auth.user("admin")
    assert user.is_admin and (await auth.project("admin")).members == ["admin"]
    identity = await auth.identity(user.access, None)
    assert identity.roles == {"member", *tree.ROLES} - {"itsec"}
    await auth.remove_role("admin", "netadmin")
    assert not await auth.bootstrap("admin", "administrators")
    assert not await auth.has_role("admin", "netadmin")


async def test_a_bootstrap_cut_short_is_finished(auth: AuthManager) -> None:
    await auth.create_user("admin", is_admin=True)
    await auth.bootstrap("admin", "administrators")
    assert await auth.roles_of("admin", "admin") == {"member", *tree.ROLES} - {"itsec"}


# -- what is remembered -----------------------------------------------------------------------------------------------

class Counting(FakeLdap):
    """A directory that counts what it is asked, and can be away, or slow."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.searches = 0
        self.away = False
        self.gate: asyncio.Event | None = None

    async def _search(self, *args):
        self.searches += 1
        if self.away:
            raise exception.Unavailable()
        found = await super()._search(*args)
        if self.gate is not None:
            await self.gate.wait()
        return found


@pytest.fixture
async def counting(store: Store, tmp_path: Path) -> Counting:
    return Counting(store, tree.roots(), str(tmp_path / "key"))


@pytest.fixture
async def remembering(store: Store, counting: Counting) -> AsyncIterator[AuthManager]:
    """A manager that was started, with a user ann who has a project ann."""
    auth = AuthManager(store, counting)
    await auth.start()
    await auth.create_user("ann", access="ANN", secret="old")
    await auth.create_project("ann", "ann")
    yield auth
    await auth.stop()


async def test_a_directory_is_asked_once(remembering: AuthManager, counting: Counting) -> None:
    first = await remembering.identity("ANN", "ann")
    asked = counting.searches
    for _ in range(100):
        assert await remembering.identity("ANN", "ann") == first
    assert counting.searches == asked


async def test_many_who_ask_at_once_share_one_look(remembering: AuthManager, counting: Counting) -> None:
    asked = counting.searches
    await asyncio.gather(*(remembering.identity("ANN", "ann") for _ in range(100)))
    assert counting.searches - asked <= 4


async def test_a_directory_that_is_away(remembering: AuthManager, counting: Counting) -> None:
    FLAGS.auth_memo_seconds = 0.3
    await remembering.identity("ANN", "ann")
    counting.away = True
    assert (await remembering.identity("ANN", "ann")).user_id == "ann"
    with pytest.raises(exception.Unavailable):
        await remembering.identity("OTHER", "ann")
    with pytest.raises(exception.Unavailable) as refused:
        async with asyncio.timeout(5):
            while True:
                await remembering.identity("ANN", "ann")
                await asyncio.sleep(0.02)
    assert refused.value.status == 503
    counting.away = False
    assert (await remembering.identity("ANN", "ann")).user_id == "ann"


@pytest.fixture
async def other(redis_server: RedisServer, remembering: AuthManager, tmp_path: Path) -> AsyncIterator[AuthManager]:
    """The manager of another process."""
    store = open_store(redis_server.url)
    auth = AuthManager(store, FakeLdap(store, tree.roots(), str(tmp_path / "key")))
    await auth.start()
    yield auth
    await auth.stop()
    await store.close()


async def is_soon(auth: AuthManager, condition: Callable[[memo.Identity | None], bool], key: str = "ANN") -> None:
    """Within far less than the time for which things are remembered."""
    async with asyncio.timeout(2):
        while True:
            identity = None
            with contextlib.suppress(exception.AuthFailure):
                identity = await auth.identity(key, "ann")
            if condition(identity):
                return
            await asyncio.sleep(0.01)


async def test_a_change_counts_at_once_in_every_process(remembering: AuthManager, other: AuthManager) -> None:
    FLAGS.auth_memo_seconds = 300
    changes = [
        (lambda: remembering.modify_user("ann", secret="new"), lambda i: i.secret == "new"),
        (lambda: remembering.add_role("ann", "itsec"), lambda i: "itsec" in i.roles),
        (lambda: other.remove_role("ann", "itsec"), lambda i: "itsec" not in i.roles),
        (lambda: other.lock_user("ann"), lambda i: i is None),
        (lambda: remembering.unlock_user("ann"), lambda i: i is not None),
        (lambda: other.create_user("bob"), lambda i: i is not None),
        (lambda: other.modify_project("ann", manager="bob"), lambda i: "projectmanager" not in i.roles),
        (lambda: remembering.remove_member("ann", "ann"), lambda i: i is None),
        (lambda: remembering.add_member("ann", "ann"), lambda i: i is not None),
        (lambda: other.delete_project("ann"), lambda i: i is None),
    ]
    for change, shows in changes:
        for auth in (remembering, other):
            with contextlib.suppress(exception.AuthFailure):
                await auth.identity("ANN", "ann")
        await change()
        for auth in (remembering, other):
            await is_soon(auth, shows)


async def test_who_made_the_change_sees_it_in_the_next_request(remembering: AuthManager) -> None:
    FLAGS.auth_memo_seconds = 300
    await remembering.identity("ANN", "ann")
    user = await remembering.rotate("ann")
    with pytest.raises(exception.AuthFailure):
        await remembering.identity("ANN", "ann")
    assert (await remembering.identity(user.access, "ann")).secret == user.secret


async def test_a_look_that_a_change_overtakes_is_not_remembered(remembering: AuthManager, counting: Counting) -> None:
    FLAGS.auth_memo_seconds = 300
    counting.gate = asyncio.Event()
    slow = asyncio.ensure_future(remembering.identity("ANN", "ann"))
    asked = counting.searches
    await until(lambda: counting.searches > asked)
    gate, counting.gate = counting.gate, None
    await remembering.modify_user("ann", secret="new")
    assert (await remembering.identity("ANN", "ann")).secret == "new"  # it does not wait for the slow one
    gate.set()
    await slow
    assert (await remembering.identity("ANN", "ann")).secret == "new"


async def test_after_an_outage_of_redis_nothing_old_is_remembered(remembering: AuthManager, redis_server: RedisServer,
                                                                  other: AuthManager) -> None:
    FLAGS.auth_memo_seconds = 300
    await remembering.identity("ANN", "ann")
    await other.identity("ANN", "ann")
    redis_server.kill()
    assert (await remembering.identity("ANN", "ann")).secret == "old"
    redis_server.start()
    await remembering.modify_user("ann", secret="new")  # perhaps nobody listens yet
    await is_soon(other, lambda i: i is not None and i.secret == "new")


async def test_a_lost_notice_costs_no_more_than_the_time_of_the_memo(remembering: AuthManager,
                                                                     counting: Counting) -> None:
    FLAGS.auth_memo_seconds = 0.4
    await remembering.identity("ANN", "ann")
    await counting.modify(tree.user_dn("ann"), [replace_values("isLocked", "TRUE")])  # not through Nova
    assert await remembering.identity("ANN", "ann")
    await is_soon(remembering, lambda i: i is None)


async def test_nothing_is_remembered_when_the_flag_says_so(remembering: AuthManager, counting: Counting) -> None:
    FLAGS.auth_memo_seconds = 0
    await remembering.identity("ANN", "ann")
    asked = counting.searches
    await remembering.identity("ANN", "ann")
    assert counting.searches == asked + 3


async def test_noise_on_the_channel_is_survived(remembering: AuthManager, store: Store, counting: Counting) -> None:
    await remembering.identity("ANN", "ann")
    asked = counting.searches
    for noise in (b"", b"[]", b"{}", b"\xff", b'{"user": 1}'):
        await store.redis.publish(memo.CHANNEL, noise)

    async def forgotten() -> None:
        async with asyncio.timeout(2):
            while counting.searches == asked:
                await remembering.identity("ANN", "ann")
                await asyncio.sleep(0.01)
    await forgotten()
    user = await remembering.rotate("ann")
    assert await remembering.identity(user.access, "ann")
