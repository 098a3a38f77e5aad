"""Listings in each client: more keys than fit a page, and one level of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.s3.client import Client
from tests.clients.s3.conftest import empty_and_remove, new_name
from tests.clients.s3.libraries import Boto3

# nginx neither looks into a listing nor holds it back, and test_objects.py lists through it
pytestmark = pytest.mark.ways("direct")

#: in S3's order; listed whole and below many/, they need a second page
KEYS = sorted([*(f"many/{number:04}" for number in range(1001)), "many/sub one/x", "many/sub+two/y", "other", "one/x"])


@pytest.fixture(scope="module")
def full(witness: Boto3) -> Iterator[str]:
    """A bucket with KEYS in it."""
    bucket = new_name()
    witness.make_bucket(bucket)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: witness.api.put_object(Bucket=bucket, Key=key), KEYS))
    yield bucket
    empty_and_remove(witness, bucket)


def test_all_keys(client: Client, full: str):
    assert client.keys(full) == KEYS


def test_prefix(client: Client, full: str):
    assert client.keys(full, "many/sub one/") == ["many/sub one/x"]


def test_one_level(client: Client, full: str):
    keys, prefixes = client.level(full, "many/")
    assert keys == [key for key in KEYS if key.startswith("many/") and key.count("/") == 1]
    assert prefixes == ["many/sub one/", "many/sub+two/"]
