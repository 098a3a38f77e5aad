"""The audit stream: who changed what, without secrets, and no longer than it should be."""

import time

import pytest

from nova import events, exception
from nova.auth import quota
from nova.context import Context
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS

CONTEXT = Context("ann", "proj", frozenset({"member"}), request_id="req-1", remote_address="192.0.2.7")


async def test_an_entry_says_who_what_when_from_where_and_why(store: Store) -> None:
    before = time.time()
    await events.record(store, CONTEXT, "user.create", target="bob", is_admin=False)
    [event] = await events.read(store)
    assert before - 1 < event.when < time.time() + 1
    assert (event.what, event.who, event.project, event.where, event.request_id) == (
        "user.create", "ann", "proj", "192.0.2.7", "req-1")
    assert event.details == {"target": "bob", "is_admin": False}


async def test_the_operator_of_a_host(store: Store) -> None:
    await events.record(store, None, "user.delete", target="bob")
    [event] = await events.read(store)
    assert event.who.endswith(f"@{FLAGS.host}") and event.where == FLAGS.host


async def test_it_comes_with_the_change_or_not_at_all(store: Store) -> None:
    for times in (1, 1):
        tx = store.transaction()
        tx.create(quota.Quota("user:ann"))
        await events.record(tx, CONTEXT, "quota.set", target="user:ann")
        try:
            await tx.commit()
        except exception.Exists:
            pass
        assert len(await events.read(store)) == times


async def test_reading_back(store: Store) -> None:
    for number in range(30):
        await events.record(store, CONTEXT, "role.add" if number % 2 else "user.modify", target=f"u{number % 3}",
                            number=number)
    newest = await events.read(store, 4)
    assert [e.details["number"] for e in newest] == [29, 28, 27, 26]
    assert [e.details["number"] for e in await events.read(store, 2, before=newest[-1].id)] == [25, 24]
    assert {e.what for e in await events.read(store, what="role.")} == {"role.add"}
    assert [e.details["number"] for e in await events.read(store, 2, what="user.", target="u1")] == [28, 22]
    assert len(await events.read(store, 1000)) == 30


@pytest.mark.parametrize("details", [
    {"secret": "s3cret"}, {"old": {"Secret_Key": "s3cret"}}, {"keys": [{"private_key": "s3cret"}]},
    {"password": "s3cret"}, {"session_token": "s3cret"}])
async def test_secrets_are_refused(store: Store, details: dict) -> None:
    with pytest.raises(ValueError):
        await events.record(store, CONTEXT, "user.modify", target="ann", **details)
    assert await events.read(store) == []
    assert b"s3cret" not in repr(await store.redis.xrange(PREFIX + events.STREAM)).encode()


async def test_its_length_is_bounded(store: Store) -> None:
    FLAGS.events_kept = 100
    for number in range(400):
        await events.record(store, CONTEXT, "user.modify", target="ann", number=number)
    kept = await events.read(store, 1000)
    assert 100 <= len(kept) <= 250 and kept[0].details["number"] == 399
