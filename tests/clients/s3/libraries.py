"""Clients that are libraries: boto3, the MinIO client, boto 2 and Amazon's SDK for JavaScript."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import boto3
import minio
import pytest
import urllib3
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject

from tests.clients.s3.client import Endpoint, Seen, Worker
from tests.clients.support import ROOT

HERE = Path(__file__).parent
#: Debian's Python, which has boto 2
DEBIAN_PYTHON = "/usr/bin/python3"
#: where run_tests.sh has put the packages of package-lock.json
NODE_MODULES = ROOT / ".cache" / "javascript" / "node_modules"


class Boto3:
    """boto3 with its default settings; uploads of files, downloads and copies are those of s3transfer."""

    double_slashes = True

    def __init__(self, endpoint: Endpoint, home: Path, region: str = ""):
        self.api = boto3.client("s3", endpoint_url=endpoint.url, aws_access_key_id=endpoint.access,
                                aws_secret_access_key=endpoint.secret, region_name=region or endpoint.region,
                                verify=endpoint.ca or None)

    def make_bucket(self, bucket: str) -> None:
        self.api.create_bucket(Bucket=bucket)

    def remove_bucket(self, bucket: str) -> None:
        self.api.delete_bucket(Bucket=bucket)

    def buckets(self) -> list[str]:
        return [bucket["Name"] for bucket in self.api.list_buckets()["Buckets"]]

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        extra: dict[str, Any] = {"Metadata": metadata or {}}
        if content_type:
            extra["ContentType"] = content_type
        self.api.upload_file(str(path), bucket, key, ExtraArgs=extra)

    def get(self, bucket: str, key: str, path: Path) -> None:
        self.api.download_file(bucket, key, str(path))

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes:
        return self.api.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()

    def head(self, bucket: str, key: str) -> Seen:
        found = self.api.head_object(Bucket=bucket, Key=key)
        return Seen(found["ContentLength"], found["ETag"].strip('"'), found["ContentType"], found["Metadata"])

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.api.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        pages = list(self.api.get_paginator("list_objects").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"))
        return ([found["Key"] for page in pages for found in page.get("Contents", ())],
                [found["Prefix"] for page in pages for found in page.get("CommonPrefixes", ())])

    def copy(self, bucket: str, key: str, new: str) -> None:
        self.api.copy({"Bucket": bucket, "Key": key}, bucket, new)

    def delete(self, bucket: str, key: str) -> None:
        self.api.delete_object(Bucket=bucket, Key=key)

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        answer = self.api.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
        assert "Errors" not in answer and sorted(found["Key"] for found in answer["Deleted"]) == sorted(keys)

    def presign_get(self, bucket: str, key: str) -> str:
        return self.api.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, 600)

    def presign_put(self, bucket: str, key: str) -> str:
        return self.api.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key}, 600)

    def close(self) -> None:
        self.api.close()


class Minio:
    """The MinIO client for Python; it asks for a bucket's region before it goes there."""

    double_slashes = True

    def __init__(self, endpoint: Endpoint, home: Path):
        pool = urllib3.PoolManager(ca_certs=endpoint.ca or None)
        self.api = minio.Minio(endpoint.address, endpoint.access, endpoint.secret, secure=bool(endpoint.ca),
                               http_client=pool)

    def make_bucket(self, bucket: str) -> None:
        self.api.make_bucket(bucket)

    def remove_bucket(self, bucket: str) -> None:
        self.api.remove_bucket(bucket)

    def buckets(self) -> list[str]:
        return [bucket.name for bucket in self.api.list_buckets()]

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        self.api.fput_object(bucket, key, str(path), content_type or "application/octet-stream", metadata=metadata)

    def get(self, bucket: str, key: str, path: Path) -> None:
        self.api.fget_object(bucket, key, str(path))

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes:
        answer = self.api.get_object(bucket, key, first, last - first + 1)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    def head(self, bucket: str, key: str) -> Seen:
        found = self.api.stat_object(bucket, key)
        metadata = {name.lower().removeprefix("x-amz-meta-"): value for name, value in found.metadata.items()
                    if name.lower().startswith("x-amz-meta-")}
        return Seen(found.size, found.etag, found.content_type, metadata)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        return [found.object_name for found in self.api.list_objects(bucket, prefix, recursive=True)]

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        found = list(self.api.list_objects(bucket, prefix))
        return ([one.object_name for one in found if not one.is_dir], [one.object_name for one in found if one.is_dir])

    def copy(self, bucket: str, key: str, new: str) -> None:
        self.api.copy_object(bucket, new, CopySource(bucket, key))

    def delete(self, bucket: str, key: str) -> None:
        self.api.remove_object(bucket, key)

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        assert list(self.api.remove_objects(bucket, [DeleteObject(key) for key in keys])) == []

    def presign_get(self, bucket: str, key: str) -> str:
        return self.api.presigned_get_object(bucket, key)

    def presign_put(self, bucket: str, key: str) -> str:
        return self.api.presigned_put_object(bucket, key)

    def close(self) -> None:
        """It has nothing to close."""


class _OfWorker:
    """A client in a program of its own that has the same calls under the same names."""

    double_slashes = True
    #: no more than this goes up in one piece, in bytes
    _LARGE = 5 << 20

    def __init__(self, worker: Worker):
        self._worker = worker

    def make_bucket(self, bucket: str) -> None:
        self._worker.call("make_bucket", bucket)

    def remove_bucket(self, bucket: str) -> None:
        self._worker.call("remove_bucket", bucket)

    def buckets(self) -> list[str]:
        return self._worker.call("buckets")

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        if path.stat().st_size > self._LARGE:
            self._worker.call("put_in_parts", bucket, key, str(path))
        else:
            self._worker.call("put", bucket, key, str(path), content_type, metadata or {})

    def get(self, bucket: str, key: str, path: Path) -> None:
        self._worker.call("get", bucket, key, str(path))

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes:
        return bytes.fromhex(self._worker.call("get_range", bucket, key, first, last))

    def head(self, bucket: str, key: str) -> Seen:
        return Seen(*self._worker.call("head", bucket, key))

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        return self._worker.call("keys", bucket, prefix)

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        keys, prefixes = self._worker.call("level", bucket, prefix)
        return keys, prefixes

    def copy(self, bucket: str, key: str, new: str) -> None:
        self._worker.call("copy", bucket, key, new)

    def delete(self, bucket: str, key: str) -> None:
        self._worker.call("delete", bucket, key)

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        self._worker.call("delete_many", bucket, keys)

    def presign_get(self, bucket: str, key: str) -> str:
        return self._worker.call("presign", "GET", bucket, key)

    def presign_put(self, bucket: str, key: str) -> str:
        return self._worker.call("presign", "PUT", bucket, key)

    def close(self) -> None:
        self._worker.close()


class Boto2(_OfWorker):
    """boto 2, the library of 2010, as Debian packages it; Signature Version 2."""

    double_slashes = False

    def __init__(self, endpoint: Endpoint, home: Path):
        if subprocess.run([DEBIAN_PYTHON, "-c", "import boto"], capture_output=True, timeout=30).returncode != 0:
            pytest.skip("Debian's python3-boto is not installed; run_tests.sh installs it")
        super().__init__(Worker(DEBIAN_PYTHON, str(HERE / "boto2_worker.py"), environment=endpoint.environment(home)))


class JavaScript(_OfWorker):
    """Amazon's SDK for JavaScript, version 3."""

    def __init__(self, endpoint: Endpoint, home: Path):
        node = shutil.which("node")
        if node is None or not NODE_MODULES.exists():
            pytest.skip("Amazon's SDK for JavaScript is not installed; run_tests.sh installs it")
        environment = {**endpoint.environment(home), "NODE_PATH": str(NODE_MODULES)}
        super().__init__(Worker(node, str(HERE / "worker.js"), environment=environment))
