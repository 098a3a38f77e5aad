"""Random requests to the object store, compared with S3's rules of versions in plain Python.

The normal run takes the same examples each time.  For a long search among others (minutes; a failure that it finds is
shown as the shortest list of requests that fails)::

    NOVA_MODEL_EXAMPLES=2000 .venv/bin/python -m pytest -q tests/functional/test_objectstore_model.py
"""

import os
from dataclasses import dataclass, field

from botocore.exceptions import ClientError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.functional.s3 import server_fixture  # noqa: F401 (the fixture)

_LONG = int(os.environ.get("NOVA_MODEL_EXAMPLES", "0"))
KEYS = ("a", "a/", "a/b", "b")
keys = st.sampled_from(KEYS)
#: counts from the newest version of a key; beyond the oldest means one that is not there
ages = st.integers(0, 4)
NOBODY_HAS_IT = "f" * 32


@dataclass
class Version:
    """A version of a key; `body` is None for a delete marker."""

    id: str
    body: bytes | None


@dataclass
class Model:
    """A bucket by S3's rules: `keys` has the versions of each key, the newest first."""

    versioning: str = ""
    keys: dict[str, list[Version]] = field(default_factory=lambda: {key: [] for key in KEYS})

    def put(self, key: str, id: str | None, body: bytes | None) -> None:
        """A new version; :param id: what the answer said"""
        assert (id is None) == (not self.versioning)
        if self.versioning == "Enabled":
            assert id != "null" and id not in [v.id for versions in self.keys.values() for v in versions]
        else:
            assert id in (None, "null")
            self.keys[key] = [v for v in self.keys[key] if v.id != "null"]
        self.keys[key].insert(0, Version(id or "null", body))

    def current(self, key: str) -> bytes | None:
        return self.keys[key][0].body if self.keys[key] else None

    def version(self, key: str, age: int) -> Version:
        """The version of an age, or one that is not there."""
        return self.keys[key][age] if age < len(self.keys[key]) else Version(NOBODY_HAS_IT, None)

    def remove(self, key: str, id: str) -> None:
        self.keys[key] = [v for v in self.keys[key] if v.id != id]

    def listed(self) -> list[tuple[str, str, bool, bool]]:
        return [(key, v.id, v is self.keys[key][0], v.body is None) for key in KEYS for v in self.keys[key]]


def failure(call, **named) -> str:
    try:
        call(**named)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return ""


class Versions(RuleBasedStateMachine):
    """One bucket, and what it should have."""

    server = s3 = None
    number = 0

    @initialize()
    def begin(self) -> None:
        Versions.number += 1
        self.bucket = f"model-{Versions.number}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.model, self.puts, self.before = Model(), 0, len(self.server.files())

    def body(self) -> bytes:
        self.puts += 1
        return b"%d" % self.puts

    # -- changes --

    @rule(status=st.sampled_from(("Enabled", "Enabled", "Suspended")))
    def set_versioning(self, status: str) -> None:
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})
        self.model.versioning = status

    @rule(key=keys)
    def put(self, key: str) -> None:
        body = self.body()
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        self.model.put(key, answer.get("VersionId"), body)

    @rule(key=keys)
    def put_if_absent(self, key: str) -> None:
        body, there = self.body(), self.model.current(key) is not None
        try:
            answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            assert there and error.response["Error"]["Code"] == "PreconditionFailed"
        else:
            assert not there
            self.model.put(key, answer.get("VersionId"), body)

    @rule(key=keys)
    def multipart(self, key: str) -> None:
        body = self.body()
        named = {"Bucket": self.bucket, "Key": key}
        named["UploadId"] = self.s3.create_multipart_upload(**named)["UploadId"]
        part = self.s3.upload_part(**named, PartNumber=1, Body=body)
        answer = self.s3.complete_multipart_upload(
            **named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
        self.model.put(key, answer.get("VersionId"), body)

    @rule(source=keys, age=ages, to=keys)
    def copy(self, source: str, age: int, to: str) -> None:
        found = self.model.version(source, age)
        named = {"Bucket": self.bucket, "Key": to, "MetadataDirective": "REPLACE",
                 "CopySource": {"Bucket": self.bucket, "Key": source, "VersionId": found.id}}
        if found.id == NOBODY_HAS_IT:
            assert failure(self.s3.copy_object, **named) == "NoSuchVersion"
        elif found.body is None:
            assert failure(self.s3.copy_object, **named) == "InvalidRequest"
        else:
            answer = self.s3.copy_object(**named)
            assert answer.get("CopySourceVersionId") == (found.id if self.model.versioning else None)
            self.model.put(to, answer.get("VersionId"), found.body)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        answer = self.s3.delete_object(Bucket=self.bucket, Key=key)
        assert answer.get("DeleteMarker", False) == bool(self.model.versioning)
        if self.model.versioning:
            self.model.put(key, answer["VersionId"], None)
        else:
            assert "VersionId" not in answer
            self.model.remove(key, "null")

    @rule(key=keys, age=ages)
    def delete_version(self, key: str, age: int) -> None:
        found = self.model.version(key, age)
        answer = self.s3.delete_object(Bucket=self.bucket, Key=key, VersionId=found.id)
        assert answer["VersionId"] == found.id
        assert answer.get("DeleteMarker", False) == (found.body is None and found.id != NOBODY_HAS_IT)
        self.model.remove(key, found.id)

    @precondition(lambda self: self.model.versioning)
    @rule(wanted=st.lists(st.tuples(keys, ages), min_size=1, max_size=4, unique_by=lambda item: item[0]))
    def delete_many(self, wanted: list[tuple[str, int]]) -> None:
        """Versions of different keys, or new markers where there is no such version."""
        found = [(key, self.model.version(key, age)) for key, age in wanted]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [
            {"Key": key} if v.id == NOBODY_HAS_IT else {"Key": key, "VersionId": v.id} for key, v in found]})
        for (key, v), deleted in zip(found, answer["Deleted"], strict=True):
            if v.id == NOBODY_HAS_IT:
                assert deleted["DeleteMarker"] and "VersionId" not in deleted
                self.model.put(key, deleted["DeleteMarkerVersionId"], None)
            else:
                assert deleted["VersionId"] == v.id and deleted.get("DeleteMarker", False) == (v.body is None)
                assert deleted.get("DeleteMarkerVersionId") == (v.id if v.body is None else None)
                self.model.remove(key, v.id)

    # -- questions --

    @rule(key=keys, age=ages)
    def get_version(self, key: str, age: int) -> None:
        found = self.model.version(key, age)
        named = {"Bucket": self.bucket, "Key": key, "VersionId": found.id}
        if found.id == NOBODY_HAS_IT:
            assert failure(self.s3.get_object, **named) == "NoSuchVersion"
        elif found.body is None:
            assert failure(self.s3.get_object, **named) == "MethodNotAllowed"
        else:
            answer = self.s3.get_object(**named)
            assert answer["Body"].read() == found.body
            assert answer.get("VersionId") == (found.id if self.model.versioning else None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        body = self.model.current(key)
        if body is None:
            assert failure(self.s3.get_object, Bucket=self.bucket, Key=key) == "NoSuchKey"
        else:
            assert self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() == body

    @rule(size=st.integers(1, 5), prefix=st.sampled_from(("", "a", "a/")), delimiter=st.sampled_from(("", "/")))
    def list_versions(self, size: int, prefix: str, delimiter: str) -> None:
        expected = [v for v in self.model.listed() if v[0].startswith(prefix)]
        groups = {v[0][:v[0].index("/", len(prefix)) + 1] for v in expected
                  if delimiter and delimiter in v[0][len(prefix):]}
        expected = [v for v in expected if not delimiter or delimiter not in v[0][len(prefix):]]
        found, found_groups = [], []
        for page in self.s3.get_paginator("list_object_versions").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": size}):
            items = [(v["Key"], v["VersionId"], v["IsLatest"], False) for v in page.get("Versions", ())]
            items += [(v["Key"], v["VersionId"], v["IsLatest"], True) for v in page.get("DeleteMarkers", ())]
            items.sort(key=lambda item: expected.index(item))
            found += items
            found_groups += [p["Prefix"] for p in page.get("CommonPrefixes", ())]
            assert len(items) + len(page.get("CommonPrefixes", ())) <= size
        assert found == expected and found_groups == sorted(groups)

    @rule()
    def list_objects(self) -> None:
        found = [o["Key"] for o in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())]
        assert found == [key for key in KEYS if self.model.current(key) is not None]

    @invariant()
    def one_file_for_each_version(self) -> None:
        if hasattr(self, "model"):
            there = sum(len(versions) for versions in self.model.keys.values())
            self.server.wait_for_files(self.before + there)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.list_versions(2, "", "")
            for key, id, _, _ in self.model.listed():
                assert failure(self.s3.delete_bucket, Bucket=self.bucket) == "BucketNotEmpty"
                self.s3.delete_object(Bucket=self.bucket, Key=key, VersionId=id)
            self.s3.delete_bucket(Bucket=self.bucket)
            self.server.wait_for_files(self.before)


def test_versions_are_as_the_model_says(server) -> None:
    Versions.server, Versions.s3 = server, server.client()
    run_state_machine_as_test(Versions, settings=settings(
        max_examples=_LONG or 40, stateful_step_count=30, deadline=None, derandomize=not _LONG, database=None,
        suppress_health_check=list(HealthCheck)))
