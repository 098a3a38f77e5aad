"""Many versions of objects over HTTP: listing and removing them, races, the sweep."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.conftest import wait_until
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    bucket_fixture,
    own_fixture,
    s3_fixture,
    server_fixture,
    start,
    stop,
)
from tests.functional.s3_versions import (  # noqa: F401 (the fixture)
    NOBODY_HAS_IT,
    delete,
    enable,
    get,
    listed,
    put,
    refused,
    suspend,
    versioned_fixture,
)

# -- many at once -----------------------------------------------------------------------------------------------------

def test_delete_objects_tells_of_markers(s3, versioned):
    first = put(s3, versioned, b"1")
    old_marker = delete(s3, versioned, key="gone")["VersionId"]
    answer = s3.delete_objects(Bucket=versioned, Delete={"Objects": [
        {"Key": "k"}, {"Key": "k", "VersionId": first}, {"Key": "gone", "VersionId": old_marker},
        {"Key": "never", "VersionId": NOBODY_HAS_IT}]})
    assert "Errors" not in answer
    marked, removed, unmarked, never = answer["Deleted"]
    assert marked["DeleteMarker"] and marked["DeleteMarkerVersionId"] and "VersionId" not in marked
    assert removed == {"Key": "k", "VersionId": first}
    assert unmarked == {"Key": "gone", "VersionId": old_marker, "DeleteMarker": True,
                        "DeleteMarkerVersionId": old_marker}
    assert never == {"Key": "never", "VersionId": NOBODY_HAS_IT}
    assert listed(s3, versioned) == [("k", marked["DeleteMarkerVersionId"], True, True)]


def filled(s3, bucket: str) -> list[tuple[str, str, bool, bool]]:
    """Put versions of some keys; what a listing of all tells, in its order."""
    expected = []
    for key in ("a", "b/1", "b/2", "c", "c\u00e9", "d e+&<", "z"):
        ids = [put(s3, bucket, b"x", key=key) for _ in range(3)]
        marked = key in ("a", "b/2")
        if marked:
            expected.append((key, delete(s3, bucket, key=key)["VersionId"], True, True))
        expected += [(key, id, not marked and id == ids[-1], False) for id in reversed(ids)]
    return expected


def in_order(pages: list[dict[str, Any]]) -> list[tuple[str, str, bool, bool]]:
    """As :func:`listed`, from pages of one version each."""
    found = []
    for page in pages:
        found += [(v["Key"], v["VersionId"], v["IsLatest"], False) for v in page.get("Versions", ())]
        found += [(v["Key"], v["VersionId"], v["IsLatest"], True) for v in page.get("DeleteMarkers", ())]
    return found


def test_listing_versions_page_by_page(s3, versioned):
    expected = filled(s3, versioned)
    paginate = s3.get_paginator("list_object_versions").paginate
    pages = list(paginate(Bucket=versioned, PaginationConfig={"PageSize": 1}))
    assert in_order(pages) == expected and len(pages) == len(expected)
    for size in (2, 3, 7, 1000):
        found = in_order(list(paginate(Bucket=versioned, PaginationConfig={"PageSize": size})))
        assert sorted(found) == sorted(expected)


def test_listing_versions_by_prefix_and_delimiter(s3, versioned):
    expected = filled(s3, versioned)
    assert sorted(listed(s3, versioned, Prefix="b/")) == sorted(v for v in expected if v[0].startswith("b/"))
    for size in (1, 2, 1000):
        pages = list(s3.get_paginator("list_object_versions").paginate(
            Bucket=versioned, Delimiter="/", PaginationConfig={"PageSize": size}))
        assert sorted(in_order(pages)) == sorted(v for v in expected if not v[0].startswith("b/"))
        assert [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", ())] == ["b/"]


def test_markers_of_a_listing_of_versions(server, s3, versioned):
    first, second = put(s3, versioned, b"1"), put(s3, versioned, b"2")
    last = put(s3, versioned, b"3", key="l")
    page = s3.list_object_versions(Bucket=versioned, MaxKeys=1)
    assert page["IsTruncated"] and (page["NextKeyMarker"], page["NextVersionIdMarker"]) == ("k", second)
    assert in_order([s3.list_object_versions(Bucket=versioned, KeyMarker="k")]) == [("l", last, True, False)]
    rest = s3.list_object_versions(Bucket=versioned, KeyMarker="k", VersionIdMarker=second)
    assert in_order([rest]) == [("k", first, False, False), ("l", last, True, False)]
    assert not rest["IsTruncated"] and "NextVersionIdMarker" not in rest
    assert refused(s3.list_object_versions, Bucket=versioned, VersionIdMarker=second) == ("InvalidArgument", 400)
    assert refused(s3.list_object_versions, Bucket=versioned, KeyMarker="k", VersionIdMarker="x") == (
        "InvalidArgument", 400)
    assert s3.list_object_versions(Bucket=versioned, MaxKeys=0).get("Versions") is None


def test_what_is_listed_is_removed_page_by_page(s3, versioned):
    filled(s3, versioned)
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=versioned, PaginationConfig={"PageSize": 2}):
        s3.delete_objects(Bucket=versioned, Delete={"Objects": [
            {"Key": key, "VersionId": id} for key, id, _, _ in in_order([page])]})
    assert listed(s3, versioned) == []


def test_keys_with_a_null_character_keep_their_order(server, s3, versioned):
    keys = ["a", "a\x00", "a\x00b", "a\x01"]
    for key in reversed(keys):
        put(s3, versioned, b"1", key=key)
        put(s3, versioned, b"2", key=key)
    shown = []
    for page in s3.get_paginator("list_object_versions").paginate(
            Bucket=versioned, PaginationConfig={"PageSize": 1}):
        shown += [v["Key"] for v in page["Versions"]]
    assert shown == [key for key in keys for _ in range(2)]
    for key in keys:
        current = s3.head_object(Bucket=versioned, Key=key)["VersionId"]
        delete(s3, versioned, current, key)
        assert get(s3, versioned, key=key) == b"1"
        s3.delete_object(Bucket=versioned, Key=key, VersionId=s3.head_object(Bucket=versioned, Key=key)["VersionId"])


# -- conditions and races ---------------------------------------------------------------------------------------------

def test_a_marker_counts_as_absent(s3, versioned):
    put(s3, versioned, b"1", IfNoneMatch="*")
    assert refused(put, s3, versioned, b"2", IfNoneMatch="*") == ("PreconditionFailed", 412)
    delete(s3, versioned)
    assert refused(put, s3, versioned, b"2", IfMatch=hashlib.md5(b"1").hexdigest()) == ("NoSuchKey", 404)
    put(s3, versioned, b"2", IfNoneMatch="*")
    put(s3, versioned, b"3", IfMatch=hashlib.md5(b"2").hexdigest())
    assert get(s3, versioned) == b"3"


def test_parallel_writers_lose_no_version(s3, versioned):
    def write(n: int) -> tuple[str, bytes]:
        body = b"%d" % n
        return put(s3, versioned, body), body
    with ThreadPoolExecutor(8) as threads:
        written = dict(threads.map(write, range(40)))
    assert len(written) == 40
    found = listed(s3, versioned)
    assert {id for _, id, _, _ in found} == set(written)
    assert [latest for _, _, latest, _ in found] == [True] + [False] * 39
    for id, body in written.items():
        assert get(s3, versioned, id) == body


def test_one_of_many_wins_where_there_must_be_nothing(s3, versioned):
    for _ in range(3):
        def write(n: int) -> str | None:
            try:
                return put(s3, versioned, b"%d" % n, IfNoneMatch="*")
            except ClientError as error:
                assert error.response["Error"]["Code"] == "PreconditionFailed"
                return None
        with ThreadPoolExecutor(8) as threads:
            won = [id for id in threads.map(write, range(16)) if id]
        assert len(won) == 1 and s3.head_object(Bucket=versioned, Key="k")["VersionId"] == won[0]
        delete(s3, versioned)


def test_parallel_puts_marks_and_removals_agree_in_the_end(server, s3, versioned):
    before = len(server.files())

    def work(n: int) -> None:
        first = put(s3, versioned, b"%d" % n)
        second = put(s3, versioned, b"%d" % n)
        marker = delete(s3, versioned)["VersionId"]
        delete(s3, versioned, first)
        delete(s3, versioned, marker)
        assert get(s3, versioned, second) == b"%d" % n
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(16)))
    found = listed(s3, versioned)
    assert len(found) == 16 and [latest for _, _, latest, _ in found] == [True] + [False] * 15
    server.wait_for_files(before + 16)
    assert s3.list_objects_v2(Bucket=versioned)["KeyCount"] == 1


def test_a_listing_misses_no_version_that_others_bury(s3, versioned):
    keys = [f"k{n}" for n in range(5)]
    ids = {put(s3, versioned, b"1", key=key) for key in keys}

    def write(key: str) -> None:
        for _ in range(10):
            put(s3, versioned, b"2", key=key)
            delete(s3, versioned, s3.head_object(Bucket=versioned, Key=key)["VersionId"], key)
    with ThreadPoolExecutor(6) as threads:
        writing = [threads.submit(write, key) for key in keys]
        while not all(task.done() for task in writing):
            missing = ids - {id for _, id, _, _ in listed(s3, versioned)}
            assert not missing
        for task in writing:
            task.result()


def test_enabling_while_others_put_loses_nothing_that_was_there_then(s3, bucket):
    def write(n: int) -> str | None:
        return put(s3, bucket, b"%d" % n)
    with ThreadPoolExecutor(8) as threads:
        writing = [threads.submit(write, n) for n in range(40)]
        enable(s3, bucket)
        after = put(s3, bucket, b"after")
        made = {task.result() for task in writing} - {None}
    assert after and {id for _, id, _, _ in listed(s3, bucket)} - {"null"} == made - {"null"} | {after}


# -- the sweep, crashes -----------------------------------------------------------------------------------------------

def test_the_sweep_keeps_every_version(own):
    own_redis, directory = own
    flags = ("--objects_orphan_age=0", "--objects_sweep_interval=1")
    server = start(own_redis.url, directory)
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    put(s3, "bucket", b"null")
    enable(s3, "bucket")
    ids = ["null", *(put(s3, "bucket", b"%d" % n) for n in range(3))]
    delete(s3, "bucket", ids.pop())  # one that was an older one becomes the current one
    orphan = server.objects / "00" / f"o-00{'0' * 62}-{NOBODY_HAS_IT}"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    stop(server)
    server = start(own_redis.url, directory, *flags)
    wait_until(lambda: not orphan.exists(), 60)
    assert [get(server.client(), "bucket", id) for id in ids] == [b"null", b"0", b"1"]
    stop(server)


def test_crash_behind_a_marker_is_swept(own):
    own_redis, directory = own
    server = start(own_redis.url, directory, "--failpoint=objectstore.mark.committed")
    s3 = server.client(retries={"max_attempts": 0, "mode": "legacy"})
    s3.create_bucket(Bucket="bucket")
    put(s3, "bucket", b"null")
    suspend(s3, "bucket")
    with pytest.raises(Exception, match="Connection|closed"):
        delete(s3, "bucket")
    server.process.wait(15)
    assert len(server.files()) == 2  # the marker's, and what it replaced
    server = start(own_redis.url, directory, "--objects_orphan_age=0", "--objects_sweep_interval=1")
    wait_until(lambda: len(server.files()) == 1, 60)
    assert listed(server.client(), "bucket") == [("k", "null", True, True)]
    stop(server)
