"""URLs that clients sign and anybody may use, with no client at all."""

from urllib.request import urlopen

import pytest

from tests.clients.s3.client import PATIENCE, Client, Endpoint, fetch, strict_context
from tests.clients.s3.conftest import WAYS
from tests.clients.s3.libraries import Boto3

KEY = "a b+c/ü"


def check_get(url: str, data: bytes, ca: str) -> None:
    with urlopen(url, timeout=PATIENCE, context=strict_context(ca) if ca else None) as answer:
        assert answer.read() == data
    status, said = fetch("GET", url.replace("/%C3%BC", "/other"), ca=ca)
    assert status == 403 and b"SignatureDoesNotMatch" in said
    status, said = fetch("PUT", url, b"not for this", ca)
    assert status == 403 and b"SignatureDoesNotMatch" in said


def check_put(url: str, witness: Boto3, bucket: str, ca: str) -> None:
    assert fetch("PUT", url, b"put by anybody", ca) == (200, b"")
    assert witness.api.get_object(Bucket=bucket, Key=KEY)["Body"].read() == b"put by anybody"


@pytest.mark.ways(*WAYS)
@pytest.mark.needs("presign_get")
def test_get(client: Client, witness: Boto3, endpoint: Endpoint, bucket: str):
    witness.api.put_object(Bucket=bucket, Key=KEY, Body=b"for anybody")
    check_get(client.presign_get(bucket, KEY), b"for anybody", endpoint.ca)


@pytest.mark.ways(*WAYS)
@pytest.mark.needs("presign_put")
def test_put(client: Client, witness: Boto3, endpoint: Endpoint, bucket: str):
    check_put(client.presign_put(bucket, KEY), witness, bucket, endpoint.ca)


def test_boto3_in_its_default_region(endpoint: Endpoint, witness: Boto3, bucket: str, tmp_path):
    """There it signs URLs with version 2."""
    boto3 = Boto3(endpoint, tmp_path, region="us-east-1")
    url = boto3.presign_put(bucket, KEY)
    assert "AWSAccessKeyId=" in url
    check_put(url, witness, bucket, endpoint.ca)
    check_get(boto3.presign_get(bucket, KEY), b"put by anybody", endpoint.ca)
    boto3.close()
