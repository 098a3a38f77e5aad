"""What the tests of versions share: short names for requests with versions."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.functional.s3 import code_of

NOBODY_HAS_IT = "0123456789abcdef" * 2


@pytest.fixture(name="versioned")
def versioned_fixture(s3, bucket) -> str:
    enable(s3, bucket)
    return bucket


def enable(s3, bucket: str, status: str = "Enabled") -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})


def suspend(s3, bucket: str) -> None:
    enable(s3, bucket, "Suspended")


def put(s3, bucket: str, body: bytes, key: str = "k", **more: Any) -> str | None:
    return s3.put_object(Bucket=bucket, Key=key, Body=body, **more).get("VersionId")


def delete(s3, bucket: str, version: str | None = None, key: str = "k") -> dict[str, Any]:
    answer = s3.delete_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))
    return {name: answer[name] for name in ("VersionId", "DeleteMarker") if name in answer}


def get(s3, bucket: str, version: str | None = None, key: str = "k") -> bytes:
    answer = s3.get_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))
    return answer["Body"].read()


def refused(call, *arguments, **named) -> tuple[str, int]:
    with pytest.raises(ClientError) as error:
        call(*arguments, **named)
    return code_of(error)


def listed(s3, bucket: str, **how: Any) -> list[tuple[str, str, bool, bool]]:
    """Key, id, whether it is the latest and whether it is a marker, of every version and marker, by key and age."""
    found = []
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, **how):
        found += [(v["Key"], v["VersionId"], v["IsLatest"], False) for v in page.get("Versions", ())]
        found += [(v["Key"], v["VersionId"], v["IsLatest"], True) for v in page.get("DeleteMarkers", ())]
    return found
