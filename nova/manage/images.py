"""nova-manage image: images of all projects, disk images brought into the cloud and given back, the starter images."""

import argparse
import asyncio
import os
import tempfile
import time

from nova import exception
from nova.cloud import image_records
from nova.flags import FLAGS
from nova.image import debian, models, starter, work
from nova.image.download import Broken, Download
from nova.image.models import Image
from nova.manage import imports
from nova.manage.command import OK, Argument, Command, Refused, Row, Session
from nova.manage.progress import Transfer
from nova.process import run, wait

_IMAGE = Argument("image", "the image's id")


# -- showing ----------------------------------------------------------------------------------------------------------

async def _list(session: Session, arguments: argparse.Namespace) -> None:
    images = (await session.store.find(Image, project_id=arguments.project) if arguments.project
              else await session.store.all(Image))
    steps = await work.progress_of(session.store, [i.id for i in images if i.state == "pending"])
    session.show([{"image": i.id, "project": i.project_id, "kind": i.kind, "state": _state(i, steps),
                   "public": i.is_public, "MiB": round(i.size / 2**20, 1), "host": i.host, "name": i.name}
                  for i in images])


def _state(image: Image, steps: dict[str, work.Step]) -> str:
    return f"{image.state} ({steps[image.id]})" if image.id in steps else image.state


async def _show(session: Session, arguments: argparse.Namespace) -> None:
    image = await imports.find(session, arguments.image)
    steps = await work.progress_of(session.store, [image.id])
    facts: Row = {
        "image": image.id, "name": image.name, "description": image.description, "project": image.project_id,
        "user": image.user_id, "kind": image.kind, "state": _state(image, steps), "reason": image.state_reason,
        "architecture": image.architecture, "kernel": image.kernel_id, "ramdisk": image.ramdisk_id,
        "public": image.is_public, "projects that may use it": image.launch_permissions,
        "made from": image.source or image.location, "format": image.disk_format, "file size": image.size,
        "disk size": image.virtual_size, "SHA-256": image.sha256, "host": image.host,
        "registered": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(image.created)), "tags": image.tags or None}
    if session.as_json:
        session.show([facts])
    else:
        session.show([{"fact": name, "value": value} for name, value in facts.items() if value not in ("", None, [])])


# -- exporting --------------------------------------------------------------------------------------------------------

async def _export(session: Session, arguments: argparse.Namespace) -> int:
    image = await imports.find(session, arguments.image)
    target = os.path.abspath(arguments.file)
    if image.state != "available":
        raise exception.InvalidAMIIDUnavailable(id=image.id, state=image.state)
    if os.path.exists(target) and not arguments.force:
        raise Refused(f"{target} exists; --force replaces it")
    wanted = arguments.format or image.disk_format
    if image.kind != "machine" and wanted != image.disk_format:
        raise Refused(f"a {image.kind} has no disk: it cannot be exported as {wanted}")
    try:
        with tempfile.TemporaryDirectory(prefix=".nova-export-", dir=os.path.dirname(target)) as directory:
            path = os.path.join(directory, "image")
            await _download(session, image, path)
            if wanted != image.disk_format:
                path = await _convert(path, image.disk_format, wanted, directory)
            os.chmod(path, 0o666 & ~_umask())
            os.replace(path, target)
    except OSError as error:
        raise exception.NovaError(f"cannot write {target}: {error.strerror or error}") from error
    session.say(f"exported {image.id} to {target}")
    session.show([{"image": image.id, "file": target, "format": wanted, "size": os.stat(target).st_size,
                   "SHA-256": image.sha256 if wanted == image.disk_format else None}])
    return OK


async def _download(session: Session, image: Image, path: str) -> None:
    """Fetch an image's file and compare it with its SHA-256."""
    secret = await models.fetch_secret(session.store)
    progress = Transfer("downloading")
    with open(path, "xb+") as file:
        download = Download(
            file, image.id, image.sha256, f"http://{FLAGS.api_host}:{FLAGS.s3_port}/_images/{image.id}",
            lambda: {"X-Nova-Token": models.fetch_token(secret, image.id)},
            time.monotonic() + FLAGS.image_fetch_timeout, 3, lambda done, size: progress(done, size or image.size))
        fetching = asyncio.ensure_future(asyncio.to_thread(download.run))
        try:
            await asyncio.shield(fetching)
        except asyncio.CancelledError:
            download.stop()
            await asyncio.wait([fetching])
            fetching.exception()
            raise
        except Broken as error:
            raise exception.Unavailable(error.message) from error
        finally:
            progress.end()


async def _convert(path: str, have: str, wanted: str, directory: str) -> str:
    made = os.path.join(directory, "converted")
    packed = ("-c",) if wanted == "qcow2" else ()
    await wait(run("qemu-img", "convert", "-f", have, "-O", wanted, *packed, f"file:{path}", f"file:{made}",
                   timeout=FLAGS.image_convert_timeout))
    return made


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# -- removing, starter images -----------------------------------------------------------------------------------------

async def _delete(session: Session, arguments: argparse.Namespace) -> None:
    image = await imports.find(session, arguments.image)
    session.confirm(f"deregistering {image.id} ({image.name}) of {image.project_id}")
    await image_records.forget(session.store, session.bus, None, image)
    session.say(f"deregistered {image.id}")


async def _build_starter(session: Session, arguments: argparse.Namespace) -> int:
    built = await asyncio.to_thread(starter.build, arguments.directory, session.say, arguments.kernel_package)
    told = starter.describe(arguments.directory)
    session.show([{"file": str(path), "size": told["files"][path.name]["size"],
                   "SHA-256": told["files"][path.name]["sha256"]}
                  for path in (built.kernel, built.ramdisk, built.machine)])
    return OK


async def _build_debian(session: Session, arguments: argparse.Namespace) -> int:
    path = await asyncio.to_thread(debian.build, arguments.directory, session.say, arguments.mirror)
    session.show([{"file": str(path), "size": path.stat().st_size}])
    return OK


COMMANDS = (
    Command("image", "list", "List the images of all projects.", _list,
            (Argument("--project", "only those of this project"),), ("image list", "image list --project web")),
    Command("image", "show", "Show what is known of an image, and how far it is while it is being made.", _show,
            (_IMAGE,), ("image show ami-12345678", "--json image show ami-12345678")),
    Command("image", "import", "Bring a disk image into the cloud, from a file or an http(s) URL: raw, qcow2, vmdk, "
            "vdi, vhd or vhdx, also compressed with gzip, xz, zstd or bzip2.", imports.import_image,
            (Argument("source", "the file, or its URL"),
             Argument("--name", "what the image is called (as the file when left out)"),
             Argument("--description", "what it is"),
             Argument("--project", "whose image it becomes (not needed where there is only one project)"),
             Argument("--user", "for whom it is imported (the project's manager when left out)"),
             Argument("--public", "let everybody use it", {"action": "store_true"}),
             Argument("--kind", "what it is (machine)", {"choices": ["machine", "kernel", "ramdisk"],
                                                         "default": "machine"}),
             Argument("--kernel", "id of the kernel that boots it; a disk with a boot loader needs none"),
             Argument("--ramdisk", "id of the ramdisk that boots it"),
             Argument("--sha256", "what the SHA-256 of the file must be", {"metavar": "HEX"})),
            ("image import debian-12-generic-amd64.qcow2 --project web --public",
             "image import https://example.com/disk.raw.xz --project web --name disk",
             "image import vmlinuz --kind kernel --project admin")),
    Command("image", "export", "Write an image to a file, compared with its SHA-256.", _export,
            (_IMAGE, Argument("file", "the file"),
             Argument("--format", "another format than the one it is kept in", {"choices": ["raw", "qcow2"]}),
             Argument("--force", "replace a file that is there", {"action": "store_true"})),
            ("image export ami-12345678 disk.raw", "image export ami-12345678 disk.qcow2 --format qcow2")),
    Command("image", "delete", "Deregister an image of any project; instances of it run on.", _delete, (_IMAGE,),
            ("image delete --yes ami-12345678",), destroys=True),
    Command("image", "build-starter", "Build the starter images (kernel, ramdisk, machine) from Debian packages, the "
            "same from the same packages.", _build_starter,
            (Argument("directory", "where they are kept"),
             Argument("--kernel-package", "a .deb file to take the kernel from instead of asking apt",
                      {"metavar": "FILE"})),
            ("image build-starter /var/lib/nova/starter",), offline=True),
    Command("image", "build-debian", "Build Debian with cloud-init as a machine image, from Debian's packages; the "
            "kernel and the ramdisk of the starter images boot it. Only root can.", _build_debian,
            (Argument("directory", "where it is kept"),
             Argument("--mirror", f"where the packages come from ({debian.MIRROR})",
                      {"default": debian.MIRROR, "metavar": "URL"})),
            ("image build-debian /var/lib/nova/debian",), offline=True),
)
