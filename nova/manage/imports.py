"""nova-manage image import: a disk image, from a file or a URL, into the cloud.

It goes the way of any client: through S3 into a bucket of its own, and by RegisterImage.  So it has the rights of the
user for whom it is made, and the limits of the cloud.  Nothing but the image is left of it, however it ends.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import re
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import boto3.session
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from nova import events, exception
from nova.auth import credentials
from nova.auth.models import Project, User
from nova.flags import FLAGS
from nova.image import work
from nova.image.models import Image
from nova.manage.command import OK, Refused, Session
from nova.manage.progress import Line, Transfer, mib

T = TypeVar("T")

_BLOCK = 1 << 20
#: bytes of a part of an upload, at least; S3 takes 10,000 parts
_PART, _PARTS = 16 << 20, 9000
#: seconds: for one answer of the cloud or of a web server, and between two looks at an image
_TIMEOUT, _PAUSE = 120, 0.5
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9()\[\] ./\-'@_]+")


async def find(session: Session, image_id: str) -> Image:
    """An image; :raises exception.InvalidAMIIDNotFound:"""
    image = await session.store.get(Image, image_id)
    if image is None:
        raise exception.InvalidAMIIDNotFound(id=image_id)
    return image


# -- acting as a user -------------------------------------------------------------------------------------------------

class _Client:
    """A user's EC2 and S3 clients; calls are made in a thread."""

    def __init__(self, user: User, project: str):
        keys = {"aws_access_key_id": credentials.access_key(user, project), "aws_secret_access_key": user.secret}
        config = Config(connect_timeout=10, read_timeout=_TIMEOUT, retries={"max_attempts": 4, "mode": "standard"},
                        s3={"addressing_style": "path"})
        made = boto3.session.Session(region_name=FLAGS.region)
        ec2 = FLAGS.ec2_url or f"http://{FLAGS.api_host}:{FLAGS.ec2_port}/services/Cloud"
        s3 = FLAGS.s3_url or f"http://{FLAGS.api_host}:{FLAGS.s3_port}"
        self.ec2 = made.client("ec2", endpoint_url=ec2, config=config, **keys)
        self.s3 = made.client("s3", endpoint_url=s3, config=config, **keys)


async def _ask(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Make a call of a client in a thread.

    :raises exception.NovaError: it was refused or failed, in the cloud's words
    """
    try:
        return await asyncio.to_thread(call, *arguments, **named)
    except botocore.exceptions.ClientError as error:
        details = error.response.get("Error", {})
        raise exception.NovaError(f"{details.get('Code', '')}: {details.get('Message', error)}") from error
    except (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError) as error:
        raise exception.Unavailable(str(error)) from error
    except botocore.exceptions.BotoCoreError as error:
        raise exception.NovaError(" ".join(str(error).split())) from error


async def _acting(session: Session, project: str, user: str, as_admin: bool) -> tuple[User, Project]:
    """For whom an image is imported.

    :param user: the project's manager when empty, or the first administrator in it where only those may do it
    """
    if not project:
        projects = await session.auth.projects()
        if len(projects) != 1:
            raise Refused(f"--project is needed: there are {len(projects)} projects")
        project = projects[0].id
    found = await session.auth.project(project)
    if user:
        return await session.auth.user(user), found
    members = [await session.auth.user(name) for name in (found.manager, *found.members)]
    admins = [member for member in members if member.is_admin]
    if as_admin and not admins:
        raise Refused(f"only administrators register kernels and ramdisks, and none is in the project {project}: "
                      "--project or --user names another")
    return (admins if as_admin else members)[0], found


# -- importing --------------------------------------------------------------------------------------------------------

class _Stopped(Exception):
    """The import was interrupted."""


class _Source:
    """A file or what a URL leads to, read from its beginning to its end, counted and hashed on the way.

    :param limit: bytes that it may have
    """

    def __init__(self, where: str, limit: int, progress: Callable[[int, int], None]):
        self._limit, self._progress = limit, progress
        self._digest = hashlib.sha256()
        self.done, self.size = 0, 0
        self.stop = threading.Event()
        self.failure: exception.NovaError | None = None
        self._file = self._open(where)
        if self.size > limit:
            self.close()
            raise exception.InvalidImage(reason=self._too_large())

    def _open(self, where: str) -> Any:
        if urllib.parse.urlsplit(where).scheme in ("http", "https"):
            try:
                answer = urllib.request.urlopen(where, timeout=_TIMEOUT)
            except (OSError, ValueError) as error:
                raise exception.NovaError(f"cannot fetch {where}: {error}") from error
            self.size = int(answer.headers.get("Content-Length") or 0)
            return answer
        try:
            file: BinaryIO = open(where, "rb")
        except OSError as error:
            raise exception.NovaError(f"cannot read {where}: {error.strerror}") from error
        self.size = os.fstat(file.fileno()).st_size
        return file

    def _too_large(self) -> str:
        return f"it has more than {self._limit >> 30} GiB"

    def read(self, size: int = -1) -> bytes:
        """What an upload calls, in a thread."""
        parts = []
        left = size if size >= 0 else 1 << 62
        while left > 0 and (data := self._read(min(left, _BLOCK))):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        if self.stop.is_set():
            raise _Stopped
        try:
            data = self._file.read(size)
            if not data and self.done < self.size:
                raise OSError(f"it ends after {self.done} of {self.size} bytes")
        except OSError as error:
            self.failure = exception.NovaError(f"cannot read it to its end: {error}")
            raise
        self.done += len(data)
        if self.done > self._limit:
            self.failure = exception.InvalidImage(reason=self._too_large())
            raise _Stopped
        self._digest.update(data)
        self._progress(self.done, self.size)
        return data

    @property
    def sha256(self) -> str:
        """Of what has been read, hex."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


@dataclass(frozen=True)
class _Staged:
    """What was uploaded: the object, its size in bytes and SHA-256."""

    location: str
    size: int
    sha256: str


@contextlib.asynccontextmanager
async def _staged(client: _Client, where: str) -> AsyncIterator[_Staged]:
    """Upload a file into a bucket of its own, which goes when the block ends, whatever becomes of it."""
    progress = Transfer("uploading")
    source = await asyncio.to_thread(_Source, where, FLAGS.image_max_gb << 30, progress)
    bucket, key = f"nova-import-{uuid.uuid4().hex}", "image"
    try:
        await _ask(client.s3.create_bucket, Bucket=bucket)
        try:
            await _upload(client, source, bucket, key)
            progress.end()
            yield _Staged(f"{bucket}/{key}", source.done, source.sha256)
        finally:
            progress.end()
            await asyncio.shield(asyncio.ensure_future(_remove(client, bucket, key)))
    finally:
        source.close()


async def _upload(client: _Client, source: _Source, bucket: str, key: str) -> None:
    config = TransferConfig(multipart_threshold=_PART, multipart_chunksize=max(_PART, source.size // _PARTS),
                            max_concurrency=4)
    upload = asyncio.ensure_future(_ask(client.s3.upload_fileobj, source, bucket, key, Config=config))
    try:
        await asyncio.shield(upload)
    except asyncio.CancelledError:
        source.stop.set()
        await asyncio.wait([upload])
        upload.exception()
        raise
    except (_Stopped, OSError, exception.NovaError):
        if source.failure is not None:
            raise source.failure from None
        raise


async def _remove(client: _Client, bucket: str, key: str) -> None:
    """Remove what was uploaded, and what of it was not completed."""
    for upload in (await _ask(client.s3.list_multipart_uploads, Bucket=bucket)).get("Uploads", ()):
        await _ask(client.s3.abort_multipart_upload, Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    await _ask(client.s3.delete_object, Bucket=bucket, Key=key)
    await _ask(client.s3.delete_bucket, Bucket=bucket)


async def import_image(session: Session, arguments: argparse.Namespace) -> int:
    """Run the command; :raises exception.NovaError: it was refused or failed, in words"""
    kind, wanted = arguments.kind, (arguments.sha256 or "").lower()
    if wanted and not re.fullmatch("[0-9a-f]{64}", wanted):
        raise Refused("--sha256 must be 64 hexadecimal digits")
    if kind != "machine" and (arguments.kernel or arguments.ramdisk):
        raise Refused(f"a {kind} has neither kernel nor ramdisk")
    user, project = await _acting(session, arguments.project or "", arguments.user or "", kind != "machine")
    client = await asyncio.to_thread(_Client, user, project.id)
    async with _staged(client, arguments.source) as staged:
        if wanted and staged.sha256 != wanted:
            raise exception.NovaError(f"its SHA-256 is {staged.sha256}, not {wanted}: nothing was imported")
        image = await _register(session, client, arguments, staged)
    await events.record(session.store, None, "image.import", target=image.id, project=project.id, user=user.id)
    session.say(f"imported {image.id}: {mib(image.size)}, a disk of {mib(image.virtual_size)}" if kind == "machine"
                else f"imported {image.id}: {mib(image.size)}")
    session.show([{"image": image.id, "name": image.name, "project": image.project_id, "kind": image.kind,
                   "public": image.is_public, "format": image.disk_format, "size": image.size,
                   "SHA-256": image.sha256}])
    return OK


def default_name(source: str) -> str:
    """What an image is called that has no name of its own: what its file is called, as far as an image may be."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(source).path) if "://" in source else source
    return _NOT_IN_A_NAME.sub("-", os.path.basename(path))[:128].ljust(3, "-")


async def _register(session: Session, client: _Client, arguments: argparse.Namespace, staged: _Staged) -> Image:
    given = {"KernelId": arguments.kernel, "RamdiskId": arguments.ramdisk, "Description": arguments.description}
    given |= {"KernelId": "true"} if arguments.kind == "kernel" else {}
    given |= {"RamdiskId": "true"} if arguments.kind == "ramdisk" else {}
    answer = await _ask(client.ec2.register_image, Name=arguments.name or default_name(arguments.source),
                        ImageLocation=staged.location, Architecture="x86_64",
                        **{name: value for name, value in given.items() if value})
    image_id = answer["ImageId"]
    try:
        image = await _made(session, image_id)
        if arguments.public and not image.is_public:
            await _ask(client.ec2.modify_image_attribute, ImageId=image_id,
                       LaunchPermission={"Add": [{"Group": "all"}]})
            image = await find(session, image_id)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_ask(client.ec2.deregister_image, ImageId=image_id)))
        raise
    return image


async def _made(session: Session, image_id: str) -> Image:
    """An image, once it is available; :raises exception.NovaError: it failed, with its reason"""
    line = Line()
    try:
        while (image := await find(session, image_id)).state == "pending":
            if seconds := line.due():
                step = (await work.progress_of(session.store, [image_id])).get(image_id)
                line.show(f"{image_id}: {step or 'waiting'}, {seconds:.0f} s")
            await asyncio.sleep(_PAUSE)
    finally:
        line.end()
    if image.state != "available":
        raise exception.NovaError(image.state_reason or f"the image is {image.state}")
    return image
