"""Bundles disk images, uploads them to a bucket, and registers them as machine images.

With an image file as its first argument, nova-bundle does all three at once and needs no room on the disk; run again
after an interruption, it does not send again what is there.  Source novarc first, or give --novarc FILE: keys,
certificates and endpoints come from there.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from nova import exception
from nova.bundler import bucket, local
from nova.bundler.account import Account, Misused, Refused, read_novarc
from nova.bundler.making import Parts, stored_bytes
from nova.bundler.progress import Progress, size
from nova.bundler.unfinished import Note
from nova.image.manifest import Part

OK, FAILED, WRONG, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

_EPILOG = """\
examples:
  nova-bundle debian.img --name debian --bucket images
  nova-bundle debian.img --name debian --bucket images --kernel aki-0f3a5b21 --ramdisk ari-77c01d9e
  nova-bundle bundle debian.img --directory /tmp/debian
  nova-bundle upload /tmp/debian/debian.manifest.xml --bucket images
  nova-bundle register images/debian.manifest.xml --name debian
  nova-bundle download debian --bucket images --directory /tmp/again
  nova-bundle unbundle /tmp/again/debian.manifest.xml --output debian.img
  nova-bundle delete debian --bucket images

environment, as novarc sets it:
  EC2_PRIVATE_KEY, EC2_CERT      the user's key and certificate: they sign bundles, and decrypt one's own
  EUCALYPTUS_CERT                the cloud's certificate, for which images are encrypted
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_EC2, AWS_ENDPOINT_URL_S3
                                 who asks, and where; else EC2_ACCESS_KEY, EC2_SECRET_KEY, EC2_URL and S3_URL
  EC2_USER_ID                    the account that is noted in manifests

files:
  ~/.local/state/nova-bundle/    the keys of bundles that are on their way into a bucket

exit codes: 0 done; 1 refused or failed; 2 the command line, novarc or a file is wrong; 3 the cloud cannot be reached;
130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="nova-bundle", description=__doc__, epilog=_EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="IMAGE|COMMAND")
    for name, (function, help, groups) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        command.set_defaults(run=function)
        for group in groups:
            group(command)
        _common(command)
    return top


def _common(to: argparse.ArgumentParser) -> None:
    to.add_argument("--novarc", type=Path, metavar="FILE", help="read this file instead of the environment")
    to.add_argument("--json", action="store_true", help="print the result as JSON")
    to.add_argument("--quiet", action="store_true", help="do not tell how far it is")


def _image(to: argparse.ArgumentParser) -> None:
    to.add_argument("image", help="the image file, in any format that the cloud takes; holes in it cost nothing")
    to.add_argument("--name", help="what bundle and image are called (default: the file's name without its ending)")
    to.add_argument("--kind", choices=("machine", "kernel", "ramdisk"), default="machine",
                    help="what is in the file; only cloud administrators register kernels and ramdisks")
    to.add_argument("--arch", default="x86_64", help="the architecture that it runs on (default: %(default)s)")
    to.add_argument("--kernel", default="", metavar="AKI", help="the kernel that it boots with")
    to.add_argument("--ramdisk", default="", metavar="ARI", help="the ramdisk that it boots with")
    to.add_argument("--block-device", action="append", default=[], metavar="VIRTUAL=DEVICE", type=_pair,
                    help="where the guest finds a disk, such as ephemeral0=sdb; may be given several times")
    to.add_argument("--product-code", action="append", default=[], metavar="CODE", help="may be given several times")
    _key(to)
    to.add_argument("--cloud-cert", metavar="FILE", help="the cloud's certificate (default: novarc's)")
    to.add_argument("--user", metavar="ID", help="the account that is noted in the manifest (default: novarc's)")


def _key(to: argparse.ArgumentParser) -> None:
    to.add_argument("--private-key", metavar="FILE", help="the user's private key (default: novarc's)")
    to.add_argument("--cert", metavar="FILE", help="the user's certificate (default: novarc's)")


def _directory(to: argparse.ArgumentParser) -> None:
    to.add_argument("--directory", default=".", metavar="DIR", help="where the bundle goes (default: the current one)")


def _force(to: argparse.ArgumentParser) -> None:
    to.add_argument("--force", action="store_true", help="replace what is there")


def _manifest(to: argparse.ArgumentParser) -> None:
    to.add_argument("manifest", help="the manifest of a bundle in a directory, beside its parts")


def _bundle_name(to: argparse.ArgumentParser) -> None:
    to.add_argument("name", help="the bundle's name: its manifest's without .manifest.xml")


def _bucket(to: argparse.ArgumentParser) -> None:
    to.add_argument("--bucket", required=True, metavar="BUCKET[/PREFIX]", help="where in the object store it is")
    to.add_argument("--jobs", type=_count, default=4, metavar="N", help="transfers at once (default: %(default)s)")


def _output(to: argparse.ArgumentParser) -> None:
    to.add_argument("--output", metavar="FILE", help="the image file to write (default: named like the bundle)")
    to.add_argument("--no-verify", action="store_true", help="do not check the signature against the certificate")


def _location(to: argparse.ArgumentParser) -> None:
    to.add_argument("location", metavar="BUCKET/MANIFEST", help="the manifest in the object store")
    to.add_argument("--name", default="", help="what the image is called")


def _registration(to: argparse.ArgumentParser) -> None:
    to.add_argument("--description", default="", help="what the image is, for people")
    to.add_argument("--no-wait", action="store_true", help="do not wait until the image can be used")
    to.add_argument("--timeout", type=float, default=3600, metavar="SECONDS",
                    help="how long to wait for it (default: %(default)s)")


def _and_bucket(to: argparse.ArgumentParser) -> None:
    to.add_argument("--and-bucket", action="store_true", help="delete the bucket, too, when nothing else is in it")


def _pair(text: str) -> tuple[str, str]:
    virtual, _, device = text.partition("=")
    if not virtual or not device:
        raise argparse.ArgumentTypeError(f"'{text}' is not VIRTUAL=DEVICE")
    return virtual, device


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError("a number from 1 to 32 is wanted")
    return int(text)


class Run:
    """One call of the program: its arguments, and what it says."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.account = Account(read_novarc(arguments.novarc) if arguments.novarc else os.environ)
        self._talk = open(os.devnull, "w") if arguments.quiet else sys.stderr

    def progress(self, what: str, total: int = 0) -> Progress:
        """Something that takes a while."""
        return Progress(self._talk, what, total)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        print(text, file=self._talk, flush=True)

    def result(self, text: str, **facts: Any) -> int:
        """What it all came to: a line, or JSON."""
        print(json.dumps(facts) if self.arguments.json else text, flush=True)
        return OK

    def papers(self) -> local.Papers:
        """The keys and certificates that are asked for."""
        a = self.arguments
        return local.Papers.of(self.account, a.private_key, a.cert, a.cloud_cert)

    def description(self) -> local.Description:
        """What is asked for of the manifest; :raises Misused: a name that cannot be a file's"""
        a = self.arguments
        name = a.name or os.path.splitext(os.path.basename(a.image))[0]
        if not name or "/" in name or name.startswith(".") or len(name.encode()) > 90 or not name.isprintable():
            raise Misused(f"--name {name}: a name of up to 90 bytes without '/' and without '.' in front is wanted")
        return local.Description(name, a.kind, a.arch, a.kernel, a.ramdisk, tuple(a.block_device),
                                 tuple(a.product_code))

    def user(self) -> str:
        """The account for the manifest."""
        return self.arguments.user or self.account.user_id

    def bucket(self) -> bucket.Bucket:
        """The bucket that is asked for."""
        return bucket.Bucket(self.account.client("s3"), self.arguments.bucket, self.arguments.jobs)


# -- commands ---------------------------------------------------------------------------------------------------------

def bundle(run: Run) -> int:
    """bundle: an image file becomes a directory of parts."""
    a, description, papers, user = run.arguments, run.description(), run.papers(), run.user()
    with local.opened(a.image) as image:
        progress = run.progress("bundling", stored_bytes(image))
        path = local.write(image, a.directory, description, papers, user, a.force, progress.add)
    manifest = local.read(path)
    progress.end(f"bundled {size(manifest.size)} into {len(manifest.parts)} parts of {size(manifest.bundled_size)}")
    return run.result(path, manifest=path, parts=len(manifest.parts), size=manifest.size,
                      bundled_size=manifest.bundled_size)


def upload(run: Run) -> int:
    """upload: a bundle goes from a directory into a bucket."""
    path = run.arguments.manifest
    if not path.endswith(local.SUFFIX):
        raise Misused(f"{path}: the name of a manifest ends with {local.SUFFIX}")
    manifest, place = local.read(path), run.bucket()
    if place.make():
        run.say(f"made the bucket {place.name}")
    progress = run.progress("uploading", manifest.bundled_size)
    place.upload(path, manifest, progress)
    progress.end()
    location = place.location(os.path.basename(path).removesuffix(local.SUFFIX))
    return run.result(location, location=location)


def register(run: Run) -> int:
    """register: a bundle in a bucket becomes an image."""
    return _register(run, run.arguments.location, run.arguments.name)


def push(run: Run) -> int:
    """All at once: parts go into the bucket as they are made."""
    a, description, papers, place = run.arguments, run.description(), run.papers(), run.bucket()
    name, user, location = description.name, run.user(), place.location(description.name)
    ec2 = run.account.client("ec2")
    local.signer(papers.private_key, papers.certificate)  # what is wrong with them is said before the long work
    with local.opened(a.image) as image:
        if place.make():
            run.say(f"made the bucket {place.name}")
        note = Note(a.image, f"{run.account.variables.get('AWS_ENDPOINT_URL_S3', '')} {location}")
        if note.is_old:
            run.say("an earlier run was interrupted; what it has sent stays")
        elif not note.keep():
            run.say("the key cannot be noted in ~/.local/state: if this is interrupted, all has to be sent again")
        reading, total, parts = run.progress("bundling and uploading", stored_bytes(image)), 0, list[Part]()
        made = Parts(image, name, note.secret, reading.add)
        with place.sending(name, Progress(open(os.devnull, "w"), "")) as send:
            for data in made:
                parts.append(Part(local.part_name(name, len(parts)), local.sha1(data)))
                total += len(data)
                send(parts[-1].name, data)
        place.put_manifest(name, local.manifest_of(description, papers, user, made, note.secret, parts, total))
    note.drop()
    reading.end(f"bundled {size(made.size)} into {len(parts)} parts of {size(total)}, now in {location}")
    return _register(run, location, name, ec2)


def _register(run: Run, location: str, name: str, ec2: Any = None) -> int:
    a, ec2 = run.arguments, ec2 or run.account.client("ec2")
    image_id = ec2.register_image(ImageLocation=location, Name=name or location, Description=a.description)["ImageId"]
    state = "pending"
    if not a.no_wait:
        state = _wait(run, ec2, image_id, a.timeout)
    return run.result(image_id, image_id=image_id, location=location, state=state)


def _wait(run: Run, ec2: Any, image_id: str, timeout: float) -> str:
    deadline, told = time.monotonic() + timeout, False
    while True:
        found = ec2.describe_images(ImageIds=[image_id])["Images"]
        state = found[0]["State"] if found else "deregistered"
        if state == "failed":
            reason = found[0].get("StateReason", {}).get("Message", "no reason is told")
            raise Refused(f"{image_id} failed: {reason}")
        if state != "pending":
            return str(state)
        if time.monotonic() > deadline:
            raise Refused(f"{image_id} is still pending after {timeout:g} s; it goes on: "
                          f"'aws ec2 describe-images --image-ids {image_id}' tells how it ends")
        if not told:
            run.say(f"{image_id} is being made; waiting until it can be used")
            told = True
        time.sleep(0.5)


def unbundle(run: Run) -> int:
    """unbundle: the image comes back from a directory."""
    a, path = run.arguments, run.arguments.manifest
    private_key = run.account.file(a.private_key, "EC2_PRIVATE_KEY", "--private-key")
    certificate = None if a.no_verify else run.account.file(a.cert, "EC2_CERT", "--cert")
    target = a.output or os.path.basename(path).removesuffix(local.SUFFIX)
    manifest = local.read(path)
    progress = run.progress("unbundling", manifest.bundled_size)
    sha256 = local.unpack(path, target, private_key, certificate, a.force, progress.add)
    progress.end(f"wrote {target}, {size(manifest.size)}")
    return run.result(target, image=target, size=manifest.size, sha256=sha256)


def download(run: Run) -> int:
    """download: a bundle comes from a bucket into a directory."""
    a, place = run.arguments, run.bucket()
    manifest, data = place.manifest(a.name)
    progress = run.progress("downloading", manifest.bundled_size)
    path = place.download(manifest, data, a.name, a.directory, progress)
    progress.end()
    return run.result(path, manifest=path, parts=len(manifest.parts), bundled_size=manifest.bundled_size)


def delete(run: Run) -> int:
    """delete: a bundle leaves its bucket; images that were registered from it stay."""
    a = run.arguments
    count = run.bucket().delete(a.name, a.and_bucket)
    return run.result(f"deleted {count} objects", deleted=count)


COMMANDS: dict[str, tuple[Callable[[Run], int], str, tuple[Callable[[argparse.ArgumentParser], None], ...]]] = {
    "push": (push, "bundle, upload and register in one go; the word may be left out",
             (_image, _bucket, _registration)),
    "bundle": (bundle, "bundle an image file into a directory", (_image, _directory, _force)),
    "upload": (upload, "upload a bundle from a directory; what is in the bucket already is not sent again",
               (_manifest, _bucket)),
    "register": (register, "register a bundle that is in a bucket, and wait until the image can be used",
                 (_location, _registration)),
    "unbundle": (unbundle, "get the image back from a bundle of one's own in a directory",
                 (_manifest, _output, _key, _force)),
    "download": (download, "download a bundle into a directory; what is there already is not fetched again",
                 (_bundle_name, _bucket, _directory)),
    "delete": (delete, "delete a bundle from its bucket; images made from it stay",
               (_bundle_name, _bucket, _and_bucket)),
}


# -- the program ------------------------------------------------------------------------------------------------------

def main(argv: Sequence[str]) -> int:
    """nova-bundle; :returns: its exit code"""
    words = list(argv[1:])
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        words.insert(0, "push")
    arguments = parser().parse_args(words)
    try:
        return arguments.run(Run(arguments))
    except Misused as error:
        return _fail(WRONG, error.message)
    except exception.NovaError as error:
        return _fail(FAILED, error.message)
    except ClientError as error:
        return _fail(FAILED, f"the cloud says {bucket.code_of(error)}: {error.response['Error'].get('Message', '')}")
    except BotoCoreError as error:
        return _fail(UNREACHABLE, f"{error}; is the cloud up, and is novarc's URL right?")
    except OSError as error:
        return _fail(FAILED, f"{error.filename or 'the disk'}: {error.strerror}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted; give the same command again")


def _fail(code: int, text: str) -> int:
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}nova-bundle: {text}", file=sys.stderr)
    return code
