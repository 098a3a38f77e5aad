"""What is made of the answers of another S3, where a real one would have to be made to fail just so."""

import io
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.response import StreamingBody
from botocore.stub import Stubber

from nova import exception
from nova.objectstore.s3backend import Backend, Download

DATA = bytes(range(256)) * 8


@pytest.fixture(name="stub")
def stub_fixture() -> Any:
    client = boto3.client("s3", endpoint_url="http://127.0.0.1:1", region_name="r", aws_access_key_id="a",
                          aws_secret_access_key="s")
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture(name="backend")
def backend_fixture(stub: Stubber) -> Backend:
    return Backend(stub.client, "bucket", "p/")


class Breaking(io.BytesIO):
    """Bytes of which only the first come."""

    def __init__(self, data: bytes, whole: int):
        super().__init__(data[:whole])

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise ConnectionClosedError(endpoint_url="http://127.0.0.1:1")
        return data


def answer(stub: Stubber, start: int, count: int, range_asked: str | None) -> None:
    """The next answer has DATA from `start` on, of which `count` bytes come."""
    rest = len(DATA) - start
    body = StreamingBody(Breaking(DATA[start:], count) if count < rest else io.BytesIO(DATA[start:]), rest)
    told = {"Body": body, "ContentLength": rest, "ETag": '"e"'}
    asked = {"Bucket": "bucket", "Key": "p/k"}
    if range_asked:
        told["ContentRange"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        asked["Range"] = range_asked
    stub.add_response("get_object", told, asked)


def test_a_download_goes_on_where_it_broke_off(stub: Stubber, backend: Backend) -> None:
    answer(stub, 0, 700, None)
    answer(stub, 700, 300, "bytes=700-2047")
    answer(stub, 1000, 5000, "bytes=1000-2047")
    download = Download(backend, "k", size=len(DATA))
    got = b""
    while block := download.read(500):
        got += block
    assert got == DATA
    download.close()


def test_a_download_that_breaks_off_all_the_time_ends(stub: Stubber, backend: Backend) -> None:
    answer(stub, 0, 100, None)
    for _ in range(3):
        answer(stub, 100, 0, "bytes=100-2047")
    download = Download(backend, "k")
    assert download.read(100) == DATA[:100]
    with pytest.raises(exception.Unavailable, match="does not answer"):
        download.read(100)


def test_a_download_that_is_another_one_after_a_break_is_refused(stub: Stubber, backend: Backend) -> None:
    answer(stub, 0, 100, None)
    stub.add_response("get_object", {"Body": StreamingBody(io.BytesIO(b"xx"), 2), "ContentLength": 2, "ETag": '"f"',
                                     "ContentRange": "bytes 100-101/102"})
    download = Download(backend, "k", size=len(DATA))
    download.read(100)
    with pytest.raises(OSError, match="102 bytes, not 2048"):
        download.read(100)


@pytest.mark.parametrize(("code", "status", "kind", "said"), [
    ("SlowDown", 503, exception.Busy, "fewer requests"), ("TooManyRequests", 429, exception.Busy, "fewer requests"),
    ("InternalError", 500, exception.Unavailable, "fails"), ("QuotaExceeded", 403, OSError, "full"),
    ("XMinioStorageFull", 507, OSError, "full"), ("AccessDenied", 403, exception.Unavailable, "objectstore_s3_"),
    ("SignatureDoesNotMatch", 403, exception.Unavailable, "objectstore_s3_"),
    ("NoSuchBucket", 404, exception.Unavailable, "no bucket bucket"), ("NoSuchKey", 404, FileNotFoundError, "k")])
def test_errors(stub: Stubber, backend: Backend, code: str, status: int, kind: type[Exception], said: str) -> None:
    stub.add_client_error("put_object", code, http_status_code=status)
    with pytest.raises(kind, match=said) as raised:
        backend.put("k", b"x")
    assert not isinstance(raised.value, exception.S3Error)


def test_a_completion_whose_answer_got_lost(stub: Stubber, backend: Backend) -> None:
    stub.add_client_error("complete_multipart_upload", "NoSuchUpload", http_status_code=404)
    stub.add_response("head_object", {"ContentLength": 12})
    backend.complete("k", "u", ["e"], 12)
    stub.add_client_error("complete_multipart_upload", "NoSuchUpload", http_status_code=404)
    stub.add_response("head_object", {"ContentLength": 11})
    with pytest.raises(exception.Unavailable):
        backend.complete("k", "u", ["e"], 12)


def test_an_object_that_changes_meanwhile_is_looked_at_again(stub: Stubber, backend: Backend) -> None:
    def there(data: bytes, etag: str) -> None:
        stub.add_response("get_object", {"Body": StreamingBody(io.BytesIO(data), len(data)), "ETag": etag,
                                         "ContentLength": len(data)})

    def refused(etag: str) -> None:
        stub.add_client_error("put_object", "PreconditionFailed", http_status_code=412, expected_params={
            "Bucket": "bucket", "Key": "p/k", "Body": b"12+", "IfMatch": etag})
    there(b"1", '"e1"')
    stub.add_client_error("put_object", "PreconditionFailed", http_status_code=412)
    there(b"12", '"e2"')
    refused('"e2"')
    there(b"12", '"e2"')  # as it was: this server wants the ETag without its quotes
    refused('"e2"')
    there(b"12", '"e2"')
    stub.add_response("put_object", {}, {"Bucket": "bucket", "Key": "p/k", "Body": b"12+", "IfMatch": "e2"})
    backend.change("k", lambda data: (data or b"") + b"+")


def test_what_is_not_removed_is_an_error(stub: Stubber, backend: Backend) -> None:
    stub.add_response("delete_objects", {"Errors": [{"Key": "p/k", "Code": "InternalError", "Message": "no"}]})
    with pytest.raises(exception.Unavailable, match="p/k: InternalError no"):
        backend.delete(["k"])
