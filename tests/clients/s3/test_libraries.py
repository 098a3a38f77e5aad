"""What single libraries can do beyond what all clients can."""

import base64
import io
import zlib
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from minio.commonconfig import ComposeSource
from minio.error import S3Error

from tests.clients.s3.client import MIB, etag_of_parts, random_bytes
from tests.clients.s3.conftest import part_sizes
from tests.clients.s3.libraries import Boto3, Minio


class Pipe(io.RawIOBase):
    """Bytes that can be read once, from the start to the end."""

    def __init__(self, data: bytes):
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._data.readinto(buffer)


@pytest.fixture
def minio(make_client) -> Minio:
    return make_client("minio")


def test_boto3_uploads_a_stream_and_downloads_in_parts(witness: Boto3, bucket: str):
    data = random_bytes(17 * MIB, "stream")
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=2)
    witness.api.upload_fileobj(Pipe(data), bucket, "stream", Config=config)
    assert part_sizes(witness, bucket, "stream") == [5 * MIB, 5 * MIB, 5 * MIB, 2 * MIB]
    back = io.BytesIO()
    witness.api.download_fileobj(bucket, "stream", back, Config=config)
    assert back.getvalue() == data


@pytest.mark.ways("tls")
def test_boto3_sends_checksums_behind_the_body_where_that_is_encrypted(witness: Boto3, bucket: str):
    sent: list = []
    events = witness.api.meta.events
    events.register_first("before-send.s3.PutObject", lambda request, **_: sent.append(request.headers))
    data = random_bytes(300_000, "trailer of boto3")
    answer = witness.api.put_object(Bucket=bucket, Key="key", Body=io.BytesIO(data))
    assert "STREAMING-UNSIGNED-PAYLOAD-TRAILER" in str(sent[0]["x-amz-content-sha256"])
    assert base64.b64decode(answer["ChecksumCRC32"]) == zlib.crc32(data).to_bytes(4, "big")
    assert witness.api.get_object(Bucket=bucket, Key="key")["Body"].read() == data


def test_boto3_copies_in_parts(witness: Boto3, bucket: str):
    data = random_bytes(11 * MIB, "copy")
    witness.api.put_object(Bucket=bucket, Key="one", Body=data, Metadata={"colour": "blue"})
    witness.api.copy({"Bucket": bucket, "Key": "one"}, bucket, "two",
                     Config=TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB))
    assert witness.head(bucket, "two").etag == etag_of_parts(data, [5 * MIB, 5 * MIB, MIB])
    assert witness.api.get_object(Bucket=bucket, Key="two")["Body"].read() == data


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_boto3_checks_what_it_reads(witness: Boto3, bucket: str, algorithm: str):
    witness.api.put_object(Bucket=bucket, Key="key", Body=b"data", ChecksumAlgorithm=algorithm)
    answer = witness.api.get_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
    assert answer[f"Checksum{algorithm}"] and answer["ChecksumType"] == "FULL_OBJECT"
    assert answer["Body"].read() == b"data"


def test_boto3_writes_only_what_is_not_there(witness: Boto3, bucket: str):
    witness.api.put_object(Bucket=bucket, Key="key", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as error:
        witness.api.put_object(Bucket=bucket, Key="key", Body=b"second", IfNoneMatch="*")
    assert error.value.response["Error"]["Code"] == "PreconditionFailed"
    assert witness.api.get_object(Bucket=bucket, Key="key")["Body"].read() == b"first"


def test_boto3_paginates_by_what_it_was_told(witness: Boto3, bucket: str):
    keys = [f"{folder}/{number}" for folder in "abc" for number in range(3)]
    for key in keys:
        witness.api.put_object(Bucket=bucket, Key=key)
    for operation in ("list_objects", "list_objects_v2"):
        pages = list(witness.api.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 2}))
        assert [len(page["Contents"]) for page in pages] == [2, 2, 2, 2, 1]
        assert [found["Key"] for page in pages for found in page["Contents"]] == keys
        pages = list(witness.api.get_paginator(operation).paginate(Bucket=bucket, Delimiter="/",
                                                                   PaginationConfig={"PageSize": 1}))
        assert [[found["Prefix"] for found in page["CommonPrefixes"]] for page in pages] == [["a/"], ["b/"], ["c/"]]


def test_javascript_checksum_behind_the_body_is_kept(make_client, witness: Boto3, bucket: str, tmp_path: Path):
    """It sends a stream as chunks of no known length, and the checksum after them."""
    data = random_bytes(300_000, "trailer")
    (tmp_path / "file").write_bytes(data)
    make_client("javascript").put(bucket, "key", tmp_path / "file")
    found = witness.api.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
    assert base64.b64decode(found["ChecksumCRC32"]) == zlib.crc32(data).to_bytes(4, "big")
    assert "ContentEncoding" not in found or found["ContentEncoding"] == ""


def test_minio_uploads_what_has_no_known_length(minio: Minio, witness: Boto3, bucket: str):
    data = random_bytes(11 * MIB, "no length")
    minio.api.put_object(bucket, "key", Pipe(data), -1, part_size=5 * MIB)
    assert part_sizes(witness, bucket, "key") == [5 * MIB, 5 * MIB, MIB]
    answer = minio.api.get_object(bucket, "key")
    assert answer.read() == data
    answer.close()
    answer.release_conn()


def test_minio_puts_objects_together(minio: Minio, witness: Boto3, bucket: str):
    one, two = random_bytes(5 * MIB, "one"), random_bytes(1000, "two")
    witness.api.put_object(Bucket=bucket, Key="one", Body=one)
    witness.api.put_object(Bucket=bucket, Key="two", Body=two)
    minio.api.compose_object(bucket, "both", [ComposeSource(bucket, "one"), ComposeSource(bucket, "two")])
    assert witness.api.get_object(Bucket=bucket, Key="both")["Body"].read() == one + two


def test_minio_finds_the_code_of_errors(minio: Minio, bucket: str):
    for call, code in ((lambda: minio.api.stat_object(bucket, "no key"), "NoSuchKey"),
                       (lambda: minio.api.get_object(bucket, "no key"), "NoSuchKey"),
                       (lambda: minio.api.make_bucket(bucket), "BucketAlreadyOwnedByYou"),
                       (lambda: list(minio.api.list_objects("no-such-bucket")), "NoSuchBucket")):
        with pytest.raises(S3Error) as error:
            call()
        assert error.value.code == code

