"""What changes with a PUT or DELETE in each state of versioning, and the order of versions."""

import dataclasses

import pytest

from nova.objectstore import errors, versions
from nova.objectstore.models import Object

ID = "c" * 64


def version(name: str, id: str = "", sequence: int = 0, marker: bool = False, current: bool = True) -> Object:
    """A version with a file of this name."""
    return Object(ID if current else f"{ID}.{id or 'null'}", bucket="b", key="k", project_id="p", file=name, size=5,
                  md5="", sha256="", etag="", modified=0.0, version_id=id, sequence=sequence, is_marker=marker)


@pytest.mark.parametrize("versioning, current, null, gone, stays", [
    ("", None, None, [], []), ("", version("old"), None, ["old"], []),
    ("Enabled", version("old"), None, [], [f"{ID}.null"]), ("Enabled", version("old", "1"), None, [], [f"{ID}.1"]),
    ("Suspended", version("old"), None, ["old"], []), ("Suspended", version("old", "1"), None, [], [f"{ID}.1"]),
    ("Suspended", version("old", "1"), version("null", current=False), ["null"], [f"{ID}.1"]),
    ("Enabled", version("old", "1"), version("null", current=False), [], [f"{ID}.1"])])
def test_what_a_put_replaces(versioning, current, null, gone, stays):
    change = versions.put(versioning, current, null, version("new"), "2", 7)
    assert [v.file for v in change.gone] == gone and [v.file for v in change.come] == ["new"]
    assert change.after[0].version_id == ("2" if versioning == "Enabled" else "")
    assert [v.id for v in change.after[1:]] == stays
    assert versions.replaces(versioning, current) == (5 if "old" in gone else 0)


def test_a_new_version_is_the_newest_whatever_the_clock_says():
    change = versions.put("Enabled", version("old", "1", sequence=100), None, version("new"), "2", 7)
    assert change.after[0].sequence == 101


def test_removing_versions():
    current, older = version("new", "2", 9), version("old", "1", 8, current=False)
    assert versions.delete(older, None).gone == [older]
    assert versions.delete(current, None).gone == [current]
    change = versions.delete(current, older)
    assert change.gone == [current] and change.after == (dataclasses.replace(older, id=ID),) and not change.come


def test_the_order_of_the_index():
    keys = ["a", "a\0", "a\0b", "a\x01", "a!", "a~", "b", "\u00e9", "\U0001f600"]
    members = []
    for key in keys:
        assert versions.read_member(versions.live_member(key.encode())) == (key, "")
        members += [versions.before(key), versions.live_member(key.encode())]
        for sequence in (10**16, 10**15, 1, 0):
            record = dataclasses.replace(version("f", "1" * 32, sequence, current=False), key=key)
            member = versions.member(record)
            assert versions.read_member(member) == (key, "1" * 32)
            members.append(member)
        members.append(versions.behind(key))
    assert members == sorted(members)
    lower, upper = versions.of_key("a")
    assert [m for m in members if lower[1:] <= m < upper[1:] and versions.read_member(m)[0] != "a"] == []


@pytest.mark.parametrize("bound, expected", [
    (b"-", b"-"), (b"+", b"+"), (b"[a/", b"[a/"), (b"(a0", b"(a0"), (b"(" + versions.behind("a"), b"(a"),
    (b"(" + versions.before("a"), b"[a"), (b"(" + versions.live_member(b"a"), b"(a"),
    (b"[" + versions.name("a\0"), b"[a\0"), (b"[a\0\xff", b"[a\1")])
def test_bounds_in_the_index_of_keys(bound, expected):
    assert versions.keys_bound(bound) == expected


@pytest.mark.parametrize("text", ["", "1", "NULL", "0" * 31, "0" * 33, "g" * 32, "../../x", "0" * 32 + "\n"])
def test_ids_that_no_version_has(text):
    with pytest.raises(errors.InvalidArgument):
        versions.check_id(text)


def test_the_id_of_a_version_is_that_of_its_file():
    assert versions.new_id(f"ab/o-{ID}-{'0' * 32}") == "0" * 32
    with pytest.raises(ValueError):
        versions.new_id("ab/o-x")
