"""Users and projects in a real Redis; and what else of the store the daemons rely on: heartbeats."""

import asyncio
from collections.abc import Callable

import pytest

from nova import exception, service
from nova.auth.manager import AuthManager
from nova.auth.models import User
from nova.datastore import Store
from nova.flags import FLAGS
from nova.service import Heartbeat


@pytest.fixture
def auth(store: Store) -> AuthManager:
    return AuthManager(store)


async def until(condition: Callable, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


# -- users and projects -----------------------------------------------------------------------------------------------

async def test_an_access_key_stands_for_its_user_in_the_project_of_the_same_name(auth: AuthManager) -> None:
    user = await auth.create_user("ann")
    await auth.create_project("ann", "ann")
    identity = await auth.identity(user.access, None)
    assert (identity.user_id, identity.project_id, identity.secret) == ("ann", "ann", user.secret)


async def test_an_access_key_stands_for_its_user_in_the_project_named(auth: AuthManager) -> None:
    user = await auth.create_user("ann")
    await auth.create_project("proj", "ann")
    assert (await auth.identity(user.access, "proj")).project_id == "proj"


async def test_a_manager_and_a_member_have_their_roles(auth: AuthManager) -> None:
    ann, bob = await auth.create_user("ann"), await auth.create_user("bob")
    await auth.create_project("proj", "ann")
    await auth.add_member("proj", "bob")
    assert "projectmanager" in (await auth.identity(ann.access, "proj")).roles
    assert "projectmanager" not in (await auth.identity(bob.access, "proj")).roles


async def test_who_is_no_member_gets_in_nowhere_not_even_an_administrator(auth: AuthManager) -> None:
    await auth.create_user("ann")
    await auth.create_project("proj", "ann")
    bob = await auth.create_user("bob", is_admin=True)
    with pytest.raises(exception.AuthFailure):
        await auth.identity(bob.access, "proj")


@pytest.mark.parametrize(("access", "project"), [("", None), ("nobody", None), ("", "proj"), ("ann", "proj"),
                                                 ("*", "proj")])
async def test_an_access_key_that_nobody_has_is_refused(auth: AuthManager, access: str, project: str | None) -> None:
    await auth.create_user("ann")
    await auth.create_project("proj", "ann")
    with pytest.raises(exception.AuthFailure):
        await auth.identity(access, project)


async def test_a_project_that_does_not_exist_is_refused_like_one_that_does(auth: AuthManager) -> None:
    user = await auth.create_user("ann")
    await auth.create_user("bob")
    await auth.create_project("proj", "bob")
    said = set()
    for project in ("proj", "nothing", None):
        with pytest.raises(exception.AuthFailure) as error:
            await auth.identity(user.access, project)
        said.add(error.value.message)
    assert len(said) == 1


async def test_users_and_projects_are_made_once(auth: AuthManager) -> None:
    results = await asyncio.gather(*(auth.create_user("ann") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(r, User) for r in results) == 1
    made = await asyncio.gather(*(auth.create_project("proj", "ann") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(r, exception.Exists) for r in made) == 4


async def test_access_keys_and_secrets_differ(auth: AuthManager) -> None:
    users = [await auth.create_user(f"u{n}") for n in range(5)]
    assert len({u.access for u in users}) == len({u.secret for u in users}) == 5
    assert all(":" not in u.access for u in users)


async def test_a_project_has_a_manager_who_exists(auth: AuthManager) -> None:
    with pytest.raises(exception.NotFound):
        await auth.create_project("proj", "nobody")
    assert await auth.projects() == []


async def test_members_are_added_at_the_same_time_without_losing_one(auth: AuthManager) -> None:
    names = [f"u{n}" for n in range(8)]
    for name in names:
        await auth.create_user(name)
    await auth.create_project("proj", "u0")
    await asyncio.gather(*(auth.add_member("proj", name) for name in names))
    [project] = await auth.projects()
    assert sorted(project.members) == names


async def test_only_a_user_can_become_a_member_and_only_of_a_project(auth: AuthManager) -> None:
    await auth.create_user("ann")
    await auth.create_project("proj", "ann")
    with pytest.raises(exception.NotFound):
        await auth.add_member("proj", "nobody")
    with pytest.raises(exception.NotFound):
        await auth.add_member("nothing", "ann")


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "../a", ".a", "-a", "a b", "a\n", "é", "a" * 65])
async def test_a_name_that_would_be_dangerous_in_keys_and_paths_is_refused(auth: AuthManager, name: str) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await auth.create_user(name)
    await auth.create_user("ann")
    with pytest.raises(exception.InvalidParameterValue):
        await auth.create_project(name, "ann")


# -- heartbeats -------------------------------------------------------------------------------------------------------

async def test_a_daemon_that_beats_is_listed_with_what_it_tells(store: Store) -> None:
    async def facts() -> dict:
        return {"memory_mb": 7}
    FLAGS.host, FLAGS.node_availability_zone = "h1", "east"
    beat = Heartbeat(store, "compute", facts)
    await beat.start()
    [host] = await service.hosts(store, "compute")
    assert (host.topic, host.host, host.zone, host.facts) == ("compute", "h1", "east", {"memory_mb": 7})
    assert await service.hosts(store, "network") == []
    await beat.stop()


async def test_a_daemon_that_stops_is_not_listed_any_more(store: Store) -> None:
    beat = Heartbeat(store, "compute")
    await beat.start()
    await beat.stop()
    assert await service.hosts(store, "compute") == []


async def test_a_daemon_that_died_is_not_listed_after_the_ttl(store: Store) -> None:
    FLAGS.heartbeat_ttl, FLAGS.heartbeat_interval = 0.3, 3600.0
    beat = Heartbeat(store, "compute")
    await beat.start()
    assert len(await service.hosts(store, "compute")) == 1

    async def dead() -> bool:
        return await service.hosts(store, "compute") == []
    await until(dead)
    await beat.stop()


async def test_a_daemon_beats_for_as_long_as_it_lives(store: Store) -> None:
    FLAGS.heartbeat_interval = 0.1
    beat = Heartbeat(store, "compute")
    await beat.start()
    [first] = await service.hosts(store, "compute")

    async def later() -> bool:
        return (await service.hosts(store, "compute"))[0].beat > first.beat
    await until(later)
    await beat.stop()


@pytest.mark.parametrize("error", [exception.NovaError("away"), RuntimeError("bug")], ids=["expected", "bug"])
async def test_a_daemon_goes_on_to_beat_when_its_facts_fail_once(store: Store, error: Exception) -> None:
    FLAGS.heartbeat_interval = 0.1
    calls = 0

    async def facts() -> dict:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return {"calls": calls}
    beat = Heartbeat(store, "compute", facts)
    await beat.start()

    async def later() -> bool:
        return (await service.hosts(store, "compute"))[0].facts["calls"] >= 3
    await until(later)
    await beat.stop()


async def test_daemons_of_one_host_do_not_disturb_each_other(store: Store) -> None:
    one, two = Heartbeat(store, "compute"), Heartbeat(store, "network")
    await one.start()
    await two.start()
    await one.stop()
    assert len(await service.hosts(store, "network")) == 1
    await two.stop()
