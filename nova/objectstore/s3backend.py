"""The bucket of another S3 that keeps the files: its calls through boto3, and its errors as those of
nova.objectstore.storage.

What a call was answered is all that is known here; nova.objectstore.s3files decides what is written where.  Only calls
that every S3 has are used.  The bodies that are sent are protected by their signature over http, by Content-MD5 over
https, where some servers refuse the checksums that boto3 sends unasked.
"""

import base64
import contextlib
import errno
import hashlib
import http.client
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from botocore.config import Config
from botocore.exceptions import ClientError

from nova import exception
from nova.flags import FLAGS, DEFINE_boolean, DEFINE_integer, DEFINE_string, FlagError

log = logging.getLogger(__name__)

DEFINE_string("objectstore_s3_endpoint", "", "URL of the S3 that keeps the files with --objectstore_driver=s3; empty: "
              "Amazon's own")
DEFINE_string("objectstore_s3_region", "us-east-1", "its region, which signatures name")
DEFINE_string("objectstore_s3_bucket", "", "the bucket there, which is for this cloud alone (or its part below the "
              "prefix) and keeps no versions")
DEFINE_string("objectstore_s3_prefix", "", "what the keys of the files begin with")
DEFINE_string("objectstore_s3_access_key", "", "access key for it; empty: what boto3 finds by itself")
DEFINE_string("objectstore_s3_secret_key", "", "secret key for it; rather in a file of its own:")
DEFINE_string("objectstore_s3_secret_file", "", "a file with nothing but the secret key")
DEFINE_boolean("objectstore_s3_path_style", True, "name the bucket in the path of URLs rather than in the host name")
DEFINE_string("objectstore_s3_ca_file", "", "certificates of the authorities that its server is checked against; "
              "empty: those that boto3 brings")
DEFINE_boolean("objectstore_s3_verify", True, "check the server's certificate; without it everybody on the way can "
               "read and change the files")
DEFINE_integer("objectstore_s3_connections", 16, "threads and connections for it in each process", lower_bound=1)
DEFINE_integer("objectstore_s3_timeout", 60, "seconds that it may leave a request without an answer", lower_bound=1)

#: seconds for a connection; how often a request is sent; how often a download goes on that broke off
_CONNECT, _ATTEMPTS, _RESUMED = 5, 3, 3
_MISSING = ("NoSuchKey", "404", "NotFound")
_FULL = ("QuotaExceeded", "InsufficientStorage", "507")
_BUSY = ("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "RequestLimitExceeded")
_BROKEN = (botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError, http.client.HTTPException,
           ConnectionError, TimeoutError)
#: objects in a DeleteObjects
_BATCH = 1000


@dataclass(frozen=True)
class Found:
    """A key of a listing: size in bytes, seconds between the last change and the answer by the server's clock."""

    key: str
    size: int
    age: float


class Backend:
    """The bucket.  Keys are without the prefix.

    :param client: boto3's
    :param bucket: its name
    :param prefix: of all keys
    """

    def __init__(self, client: Any, bucket: str, prefix: str = ""):
        self._client, self.bucket, self.prefix = client, bucket, prefix
        self._is_secure = client.meta.endpoint_url.startswith("https:")
        self._quotes = True
        client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self._client.meta.endpoint_url}/{self.bucket}/{self.prefix}"

    # -- calling --

    def _call(self, function: Callable[..., Any], key: str, **arguments: Any) -> Any:
        """Call; errors become those of the contract.

        :raises FileNotFoundError: there is no such key
        """
        try:
            return function(Bucket=self.bucket, **arguments)
        except ClientError as error:
            raise self._translated(error, key) from error
        except _BROKEN as error:
            raise unreachable(self.place, error) from error

    def _translated(self, error: ClientError, key: str) -> Exception:
        code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _MISSING and (code == "NoSuchKey" or self._is_there()):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        if code in _FULL or status == 507:
            return OSError(errno.EDQUOT, f"{self.place} is full ({code})", key)
        if code in _BUSY:
            return exception.Busy(f"{self.place} asks for fewer requests ({code})")
        if status >= 500:
            return exception.Unavailable(f"{self.place} fails: {error}")
        log.error("%s refuses %s: %s", self.place, key, error)
        if code in ("NoSuchBucket", *_MISSING):
            return exception.Unavailable(f"there is no bucket {self.bucket}, which --objectstore_s3_bucket names")
        return exception.Unavailable(f"{self.place} refuses the request ({code}); the flags objectstore_s3_* say what "
                                     "it is asked with")

    def _is_there(self) -> bool:
        """Whether the bucket is: a HEAD of a key does not tell."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError:
            return False
        except _BROKEN as error:
            raise unreachable(self.place, error) from error
        return True

    def _whole(self, data: bytes | bytearray) -> dict[str, Any]:
        """A body, and what protects it on the way."""
        if not self._is_secure:
            return {"Body": data}  # the signature is of its SHA-256
        return {"Body": data, "ContentMD5": _md5(data)}

    # -- objects --

    def put(self, key: str, data: bytes | bytearray, metadata: dict[str, str] | None = None) -> None:
        """Write an object."""
        self._call(self._client.put_object, key, Key=self.prefix + key, Metadata=metadata or {}, **self._whole(data))

    def put_if(self, key: str, data: bytes, etag: str) -> bool:
        """Write an object unless somebody else has written it; whether nobody has.

        :param etag: what it had; empty: there was none
        """
        condition = {"IfMatch": etag if self._quotes else etag.strip('"')} if etag else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, **condition, **self._whole(data))
        except ClientError as error:
            code = code_of(error)
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            if code in _MISSING and etag:
                return False
            if code == "NotImplemented":  # an S3 without conditions: the last one wins
                self.put(key, data)
                return True
            raise self._translated(error, key) from error
        except _BROKEN as error:
            raise unreachable(self.place, error) from error
        return True

    def change(self, key: str, decide: Callable[[bytes | None], bytes | None]) -> None:
        """Replace an object by what `decide` makes of it, with nobody else's change in between.

        :param decide: gets what is there, None if nothing is; gives what is to be there, None to leave it as it is
        """
        seen = ""
        for _ in range(20):
            there, etag = self.find(key)
            wanted = decide(there)
            if wanted is None or self.put_if(key, wanted, etag):
                return
            if etag and etag == seen:  # nobody changed it: this server (radosgw, say) compares without the quotes
                self._quotes = not self._quotes
            seen = etag
        raise exception.Busy(f"{key} changes all the time")

    def get(self, key: str, start: int = 0, length: int | None = None) -> Any:
        """boto3's answer to GetObject; its Body is to be read and closed; :raises FileNotFoundError:"""
        part = {} if not start and length is None else {
            "Range": f"bytes={start}-" + ("" if length is None else str(start + length - 1))}
        return self._call(self._client.get_object, key, Key=self.prefix + key, **part)

    def find(self, key: str) -> tuple[bytes | None, str]:
        """A small object and its ETag; None and '' if there is none."""
        try:
            with contextlib.closing(Download(self, key)) as download:
                return download.read(), download.etag
        except FileNotFoundError:
            return None, ""

    def head(self, key: str) -> Any:
        """boto3's answer to HeadObject; :raises FileNotFoundError:"""
        return self._call(self._client.head_object, key, Key=self.prefix + key)

    def copy(self, source: str, key: str, metadata: dict[str, str]) -> None:
        """Copy an object of at most 5 GiB; :raises FileNotFoundError: there is no source"""
        self._call(self._client.copy_object, source, Key=self.prefix + key, MetadataDirective="REPLACE",
                   Metadata=metadata, CopySource=self._source(source))

    def _source(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; they may be gone already."""
        for at in range(0, len(keys), _BATCH):
            wanted = [{"Key": self.prefix + key} for key in keys[at:at + _BATCH]]
            answer = self._call(self._client.delete_objects, keys[at], Delete={"Objects": wanted, "Quiet": True})
            for failed in answer.get("Errors", ()):
                if failed.get("Code") not in _MISSING:
                    raise exception.Unavailable(f"{self.place} does not remove {failed.get('Key')}: "
                                                f"{failed.get('Code')} {failed.get('Message', '')}")

    def list(self, prefix: str = "") -> Iterator[Found]:
        """All objects whose keys begin with a prefix, in the order of their keys."""
        more: dict[str, str] = {}
        while True:
            page = self._call(self._client.list_objects_v2, prefix, Prefix=self.prefix + prefix, **more)
            now = self._now(page)
            for found in page.get("Contents", ()):
                yield Found(found["Key"][len(self.prefix):], found["Size"],
                            now - found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _now(self, answer: Any) -> float:
        """The time by the server's clock, which the times of its objects are by."""
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(told).timestamp() if told else time.time()

    # -- uploads in parts --

    def begin(self, key: str) -> str:
        """Begin an upload in parts; its id."""
        return self._call(self._client.create_multipart_upload, key, Key=self.prefix + key)["UploadId"]

    def part(self, key: str, upload: str, number: int, data: bytes | bytearray) -> str:
        """Write a part; its ETag."""
        return self._call(self._client.upload_part, key, Key=self.prefix + key, UploadId=upload, PartNumber=number,
                          **self._whole(data))["ETag"]

    def copy_part(self, key: str, upload: str, number: int, source: str, start: int, length: int, size: int) -> str:
        """Have a range of another object as a part; its ETag.

        :param size: of the other object
        :raises FileNotFoundError: there is no source
        """
        part = {} if length == size else {"CopySourceRange": f"bytes={start}-{start + length - 1}"}
        return self._call(self._client.upload_part_copy, source, Key=self.prefix + key, UploadId=upload,
                          PartNumber=number, CopySource=self._source(source), **part)["CopyPartResult"]["ETag"]

    def complete(self, key: str, upload: str, etags: Sequence[str], size: int) -> None:
        """Make the object of the parts.

        :param size: how large it will be: by this it is recognised when an earlier answer got lost
        """
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        try:
            self._client.complete_multipart_upload(Bucket=self.bucket, Key=self.prefix + key, UploadId=upload,
                                                   MultipartUpload={"Parts": parts})
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                with contextlib.suppress(FileNotFoundError):
                    if self.head(key)["ContentLength"] == size:
                        return
            raise self._translated(error, key) from error
        except _BROKEN as error:
            raise unreachable(self.place, error) from error

    def abort(self, key: str, upload: str) -> None:
        """End an upload without an object; it may be over already."""
        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=self.prefix + key, UploadId=upload)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise self._translated(error, key) from error
        except _BROKEN as error:
            raise unreachable(self.place, error) from error

    def uploads(self) -> Iterator[tuple[str, str, float]]:
        """All uploads that are not over: key, id, seconds since each began."""
        more: dict[str, str] = {}
        while True:
            page = self._call(self._client.list_multipart_uploads, "", Prefix=self.prefix, **more)
            now = self._now(page)
            for found in page.get("Uploads", ()):
                yield found["Key"][len(self.prefix):], found["UploadId"], now - found["Initiated"].timestamp()
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Download:
    """An object, or a range of it, on its way here; it goes on where it broke off.

    :param size: how large the whole object has to be, None for any
    :raises FileNotFoundError: there is none
    :raises OSError: (EIO) it is not as large
    """

    def __init__(self, backend: Backend, key: str, start: int = 0, length: int | None = None, size: int | None = None):
        self._backend, self._key, self._size = backend, key, size
        self._at, self._left = start, length
        self._body: Any = None
        self._failed = 0
        self.etag = ""
        self._open()

    def _open(self) -> None:
        answer = self._backend.get(self._key, self._at, self._left)
        self._body, self.etag = answer["Body"], answer["ETag"]
        whole = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        if self._size is not None and whole != self._size:
            self.close()
            raise OSError(errno.EIO, f"it has {whole} bytes, not {self._size}", self._key)
        self._left = whole - self._at if self._left is None else min(self._left, whole - self._at)

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; :raises exception.Unavailable: they do not come, for all patience"""
        left = self._left or 0
        wanted = left if size < 0 else min(size, left)
        if not wanted:
            return b""
        while True:
            try:
                if self._body is None:
                    self._open()
                data = self._body.read(wanted)
                if data:
                    break
                raise http.client.IncompleteRead(b"", wanted)
            except _BROKEN as error:
                self.close()
                self._failed += 1
                if self._failed > _RESUMED:
                    raise unreachable(self._backend.place, error) from error
                log.info("the download of %s goes on at byte %d: %s", self._key, self._at, error)
        self._failed = 0
        self._at += len(data)
        self._left = left - len(data)
        if not self._left:
            self._body.read(1)  # the connection may be used again
        return data

    def close(self) -> None:
        """Let go of it."""
        body, self._body = self._body, None
        if body is not None:
            body.close()


def code_of(error: ClientError) -> str:
    """The code of an error that S3 has answered."""
    return str(error.response.get("Error", {}).get("Code", ""))


def unreachable(place: str, error: Exception) -> exception.Unavailable:
    """What is raised when there is no answer."""
    return exception.Unavailable(f"{place} does not answer: {error}")


def _md5(data: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _add_md5(request: Any, **_: Any) -> None:
    """Older servers insist on it; boto3 sends a CRC-32 instead."""
    request.headers["Content-MD5"] = _md5(request.body)


def open_backend() -> Backend:
    """The bucket that the flags name; nobody is asked for it yet.

    :raises FlagError: the flags name none, or no secret
    """
    if not FLAGS.objectstore_s3_bucket:
        raise FlagError("--objectstore_driver=s3 needs --objectstore_s3_bucket")
    secret = FLAGS.objectstore_s3_secret_key
    if FLAGS.objectstore_s3_secret_file:
        try:
            with open(FLAGS.objectstore_s3_secret_file) as file:
                secret = file.read().strip()
        except OSError as error:
            raise FlagError(f"--objectstore_s3_secret_file: {error}") from None
    if bool(FLAGS.objectstore_s3_access_key) != bool(secret):
        raise FlagError("--objectstore_s3_access_key and a secret key belong together")
    prefix = FLAGS.objectstore_s3_prefix.strip("/")
    client = boto3.client(
        "s3", endpoint_url=FLAGS.objectstore_s3_endpoint or None, region_name=FLAGS.objectstore_s3_region,
        aws_access_key_id=FLAGS.objectstore_s3_access_key or None, aws_secret_access_key=secret or None,
        verify=(FLAGS.objectstore_s3_ca_file or None) if FLAGS.objectstore_s3_verify else False,
        config=Config(
            s3={"addressing_style": "path" if FLAGS.objectstore_s3_path_style else "virtual"},
            connect_timeout=_CONNECT, read_timeout=FLAGS.objectstore_s3_timeout,
            max_pool_connections=FLAGS.objectstore_s3_connections,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS}, tcp_keepalive=True,
            request_checksum_calculation="when_required", response_checksum_validation="when_required"))
    return Backend(client, FLAGS.objectstore_s3_bucket, f"{prefix}/" if prefix else "")
