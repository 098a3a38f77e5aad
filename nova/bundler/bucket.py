"""Bundles in a bucket: the manifest goes there last and leaves first, so what has one is whole.

What is there already with the right size and MD5 is not sent again, in whatever run it was sent.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from botocore.exceptions import ClientError

from nova import exception
from nova.bundler import local
from nova.bundler.account import Refused
from nova.bundler.progress import Progress
from nova.image.manifest import MAX_MANIFEST, Manifest, read_manifest

#: lets the cloud read what the bucket's owner has put there for it
ACL = "aws-exec-read"


def code_of(error: ClientError) -> str:
    """The code of an answer that is an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


class Bucket:
    """One bucket, and the bundles under a prefix of it.

    :param place: ``BUCKET`` or ``BUCKET/PREFIX``
    :param jobs: how many transfers run at once
    """

    def __init__(self, s3: Any, place: str, jobs: int):
        self._s3, self._jobs = s3, jobs
        self.name, _, prefix = place.strip("/").partition("/")
        self._prefix = prefix + "/" if prefix else ""

    def location(self, name: str) -> str:
        """What RegisterImage wants to be told of the bundle of this name."""
        return f"{self.name}/{self._prefix}{name}{local.SUFFIX}"

    def make(self) -> bool:
        """Have the bucket; whether it was made now.  :raises Refused: it is somebody else's"""
        try:
            self._s3.head_bucket(Bucket=self.name)
            return False
        except ClientError as error:
            if code_of(error) in ("403", "AccessDenied"):
                raise Refused(f"the bucket {self.name} is somebody else's; choose another name") from error
            if code_of(error) not in ("404", "NoSuchBucket"):
                raise
        try:
            self._s3.create_bucket(Bucket=self.name)
        except ClientError as error:
            if code_of(error) != "BucketAlreadyOwnedByYou":
                raise
        return True

    # -- uploading ---------------------------------------------------------------------------------------------------

    def upload(self, path: str, manifest: Manifest, progress: Progress) -> None:
        """Upload a bundle from a directory.

        :param path: of its manifest
        :raises Refused: a part is missing or damaged
        """
        directory, name = os.path.dirname(path), os.path.basename(path).removesuffix(local.SUFFIX)
        with self.sending(name, progress) as send:
            for part in manifest.parts:
                try:
                    with open(os.path.join(directory, part.name), "rb") as file:
                        data = file.read()
                except OSError as error:
                    raise Refused(f"{error.filename}: {error.strerror}; bundle the image again") from error
                if local.sha1(data) != part.sha1:
                    raise Refused(f"{part.name} is not what the manifest says; bundle the image again")
                send(part.name, data)
        with open(path, "rb") as file:
            self.put_manifest(name, file.read())

    @contextlib.contextmanager
    def sending(self, name: str, progress: Progress) -> Iterator[Callable[[str, bytes], None]]:
        """Gives a function that sends a part (its name and data) while others are on their way; it waits when enough
        are.  At the end of the context all are there, and no others.

        :param name: of the bundle; its manifest leaves the bucket before a part in it changes
        """
        there = self._there(f"{name}.part.")
        wanted, sent = set[str](), list[str]()
        pending: set[Future[None]] = set()

        def put(key: str, data: bytes) -> None:
            self._s3.put_object(Bucket=self.name, Key=key, Body=data, ACL=ACL, ContentType="application/octet-stream")
            progress.add(len(data))

        def send(part: str, data: bytes) -> None:
            key = self._prefix + part
            wanted.add(key)
            if there.get(key) == (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()):
                progress.add(len(data), skipped=True)
                return
            if len(pending) >= self._jobs:
                ended, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in ended:
                    pending.discard(future)
                    future.result()
            if not sent:
                self._s3.delete_object(Bucket=self.name, Key=self._prefix + name + local.SUFFIX)
            sent.append(key)
            pending.add(pool.submit(put, key, data))
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="upload") as pool:
            try:
                yield send
                for future in list(pending):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for key in there.keys() - wanted:  # of an earlier bundle of this name, which was larger
            self._s3.delete_object(Bucket=self.name, Key=key)

    def put_manifest(self, name: str, data: bytes) -> None:
        """Put the manifest, which makes the bundle whole."""
        self._s3.put_object(Bucket=self.name, Key=self._prefix + name + local.SUFFIX, Body=data, ACL=ACL,
                            ContentType="application/xml")

    def _there(self, begin: str) -> dict[str, tuple[int, str]]:
        """Sizes and MD5s of the objects whose keys begin so, by key."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self._prefix + begin)
        return {found["Key"]: (found["Size"], found["ETag"].strip('"'))
                for page in pages for found in page.get("Contents", [])}

    # -- downloading and deleting ------------------------------------------------------------------------------------

    def manifest(self, name: str) -> tuple[Manifest, bytes]:
        """The manifest of a bundle; :raises Refused: there is none, or none that can be read"""
        try:
            answer = self._s3.get_object(Bucket=self.name, Key=self._prefix + name + local.SUFFIX)
            data = answer["Body"].read(MAX_MANIFEST + 1)
            return read_manifest(data), data
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "NoSuchBucket"):
                raise Refused(f"there is no {self.location(name)}; "
                              f"'aws s3 ls s3://{self.name}/' lists what is there") from error
            raise
        except exception.InvalidManifest as error:
            raise Refused(f"{self.location(name)}: {error.message}") from error

    def download(self, manifest: Manifest, data: bytes, name: str, directory: str, progress: Progress) -> str:
        """Download a bundle into a directory; what is there and right is kept.

        :param data: the manifest as it is in the bucket
        :returns: the path of the manifest
        :raises Refused: a part is missing or not what the manifest says, or the directory cannot be written
        """
        def get(part_name: str, sha1: str) -> None:
            path = os.path.join(directory, part_name)
            if _has(path, sha1):
                progress.add(os.path.getsize(path), skipped=True)
                return
            digest = hashlib.sha1(usedforsecurity=False)
            body = self._s3.get_object(Bucket=self.name, Key=self._prefix + part_name)["Body"]
            with open(path + ".new", "wb") as file:
                for chunk in body.iter_chunks(1 << 18):
                    digest.update(chunk)
                    file.write(chunk)
                    progress.add(len(chunk))
            if digest.hexdigest() != sha1:
                os.unlink(path + ".new")
                raise Refused(f"{part_name} in the bucket is not what the manifest says; upload the bundle again")
            os.rename(path + ".new", path)
        try:
            os.makedirs(directory, exist_ok=True)
            with ThreadPoolExecutor(self._jobs, thread_name_prefix="download") as pool:
                futures = [pool.submit(get, part.name, part.sha1) for part in manifest.parts]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            path = os.path.join(directory, name + local.SUFFIX)
            local.write_whole(path, data)
            return path
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                raise Refused(f"a part of {self.location(name)} is missing; upload the bundle again") from error
            raise
        except OSError as error:
            raise Refused(f"{error.filename or directory}: {error.strerror}") from error

    def delete(self, name: str, and_bucket: bool) -> int:
        """Delete a bundle, or what an interrupted upload has left of one; the number of objects.

        :raises Refused: there is nothing of it
        """
        manifest = self._prefix + name + local.SUFFIX
        keys = [key for key in self._there(name + local.SUFFIX) if key == manifest] + list(self._there(f"{name}.part."))
        if not keys:
            raise Refused(f"there is nothing of {self.location(name)}")
        for key in keys:
            self._s3.delete_object(Bucket=self.name, Key=key)
        if and_bucket:
            self._s3.delete_bucket(Bucket=self.name)
        return len(keys)


def _has(path: str, sha1: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest() == sha1
    except FileNotFoundError:
        return False
