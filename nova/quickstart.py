"""The first steps in a new cloud, taken as any client would take them: through the EC2 and S3 endpoints with boto3.

nova-all starts it when the API answers.  It uploads and registers the starter images and, with ``--demo``, makes a key
pair, runs a first instance, waits for its ssh server and says how to go on.  It may be cut short anywhere and run
again: what is there already is found and kept.  It knows nothing of the daemons but their endpoints.

Also a program: ``python -m nova.quickstart --novarc=FILE --state_path=DIRECTORY --starter_path=DIRECTORY [--demo]``.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import boto3
import botocore.exceptions
from botocore.config import Config

BUCKET = "starter"
KERNEL, RAMDISK, MACHINE = "nova-starter-kernel", "nova-starter-ramdisk", "nova-starter"
#: the files in the starter directory
FILES = {KERNEL: "vmlinuz", RAMDISK: "ramdisk.gz", MACHINE: "machine.ext4"}
KEY_NAME = "nova-demo"
#: in the state directory: the private key of the first instance, and what is remembered of it
KEY_FILE, NOTES_FILE = "demo.pem", "demo.json"
INSTANCE_TYPE = "m1.tiny"
#: the line of the guest's console after which ssh gets in
SSH_READY = "SSHD started"

#: seconds: for an image to be registered, an instance to run, its ssh server to be there
IMAGE_TIMEOUT, RUN_TIMEOUT, BOOT_TIMEOUT = 120, 300, 300
CONSOLE_LINES = 16


class QuickStartError(Exception):
    """It cannot go on; the text says why, in one line."""


class Progress:
    """Says what happens, with the seconds since `begun`; on a terminal, waiting is one line that changes.

    :param begun: seconds since the epoch
    """

    def __init__(self, out: TextIO, begun: float):
        self._out, self._begun, self._terminal = out, begun, out.isatty()

    def say(self, text: str) -> None:
        """One line with the time before it."""
        self._write(f"{self._clock()}{text}\n")

    def plain(self, text: str = "") -> None:
        """One line as it is."""
        self._write(text + "\n")

    def bold(self, text: str) -> str:
        """`text` as a heading, where the terminal can show one."""
        return f"\033[1m{text}\033[0m" if self._terminal and "NO_COLOR" not in os.environ else text

    def wait(self, what: str, condition: Callable[[], Any], timeout: float, interval: float = 0.3) -> Any:
        """Poll until `condition` gives something true; that.

        :param timeout: seconds
        :raises QuickStartError: when it takes longer
        """
        started = told = time.monotonic()
        while not (value := condition()):
            now = time.monotonic()
            if now - started > timeout:
                raise QuickStartError(f"{what}: still waiting after {timeout:g} s")
            if self._terminal:
                self._write(f"\r\033[K{self._clock()}{what}: {now - started:.0f} s")
            elif now - told >= 5:
                told = now
                self.say(f"{what}: {now - started:.0f} s so far")
            time.sleep(interval)
        if self._terminal:
            self._write("\r\033[K")
        return value

    def _clock(self) -> str:
        return f"{max(0.0, time.time() - self._begun):6.1f} s     "

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


@dataclass(frozen=True)
class Demo:
    """The first instance and the key that opens it."""

    instance_id: str
    instance_type: str
    address: str
    key_path: Path


class QuickStart:
    """Does the steps with two boto3 clients.

    :param state_path: where the demo's private key and what it remembers are kept
    """

    def __init__(self, ec2: Any, s3: Any, state_path: Path, progress: Progress):
        self._ec2, self._s3, self._state, self._progress = ec2, s3, state_path, progress

    # -- images ------------------------------------------------------------------------------------------------------

    def register_images(self, starter_path: Path) -> str:
        """Upload and register the starter images unless they are there.

        :param starter_path: the directory with the three files
        :returns: the id of the machine image
        """
        registered = self._registered()
        if missing := [name for name in FILES if name not in registered]:
            self._create_bucket()
            for name in missing:
                self._upload(starter_path / FILES[name])
            if KERNEL in missing:
                registered[KERNEL] = self._register(KERNEL, KernelId="true")
            if RAMDISK in missing:
                registered[RAMDISK] = self._register(RAMDISK, RamdiskId="true")
            if MACHINE in missing:
                registered[MACHINE] = self._register(
                    MACHINE, Architecture="x86_64", KernelId=registered[KERNEL], RamdiskId=registered[RAMDISK])
        self._progress.wait("registering the images", lambda: all(map(self._is_available, registered.values())),
                            IMAGE_TIMEOUT)
        self._progress.say("images: " + ", ".join(f"{registered[name]} ({FILES[name]})" for name in FILES))
        return registered[MACHINE]

    def _registered(self) -> dict[str, str]:
        """The ids of the starter images that are registered and not failed, by name."""
        answer = self._ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": list(FILES)}])
        return {image["Name"]: image["ImageId"] for image in answer["Images"]
                if image.get("State", "available") in ("available", "pending")}

    def _create_bucket(self) -> None:
        with _unless("BucketAlreadyOwnedByYou"):
            self._s3.create_bucket(Bucket=BUCKET)

    def _upload(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
                with _unless("404", "NoSuchKey", "NotFound"):
                    if self._s3.head_object(Bucket=BUCKET, Key=path.name)["ETag"].strip('"') == digest:
                        return
                self._progress.say(f"uploading {path.name} ({size / 1e6:.1f} MB)")
                file.seek(0)
                self._s3.put_object(Bucket=BUCKET, Key=path.name, Body=file)
        except OSError as error:
            raise QuickStartError(f"starter image {path}: {error.strerror}") from error

    def _register(self, name: str, **arguments: str) -> str:
        return self._ec2.register_image(Name=name, ImageLocation=f"{BUCKET}/{FILES[name]}", **arguments)["ImageId"]

    def _is_available(self, image_id: str) -> bool:
        images = self._ec2.describe_images(ImageIds=[image_id])["Images"]
        if not images or images[0]["State"] not in ("available", "pending"):
            reason = images[0].get("StateReason", {}).get("Message", "") if images else "it is gone"
            raise QuickStartError(f"image {image_id} cannot be registered: {reason or images[0]['State']}")
        return images[0]["State"] == "available"

    # -- the first instance ------------------------------------------------------------------------------------------

    def run_demo(self, image_id: str, guests: bool = True) -> Demo:
        """Have an instance that runs, and show how its console ends.

        :param guests: whether instances really boot, so that their consoles say something
        """
        key_path, key_is_new = self._key_pair()
        instance = None if key_is_new else self._earlier_instance()
        if instance:
            self._progress.say(f"first instance: {instance['InstanceId']} is there already")
        else:
            instance = self._run_instance(image_id)
            self._progress.say(f"first instance: asked for {instance['InstanceId']} ({INSTANCE_TYPE})")
        instance_id = instance["InstanceId"]
        instance = self._progress.wait(f"{instance_id} is starting", lambda: self._running(instance_id), RUN_TIMEOUT)
        address = instance.get("PrivateIpAddress", "")
        self._progress.say(f"{instance_id} is running, its address is {address}")
        if guests:
            console = self._progress.wait(f"{instance_id} is booting", lambda: self._console_with_ssh(instance_id),
                                          BOOT_TIMEOUT, interval=0.5)
            self._progress.say("its console ends:")
            for line in [line for line in map(_printable, console.splitlines()) if line][-CONSOLE_LINES:]:
                self._progress.plain(f"               | {line}")
        return Demo(instance_id, instance["InstanceType"], address, key_path)

    def _key_pair(self) -> tuple[Path, bool]:
        """The file of the demo's private key, and whether it is a new one."""
        path = self._state / KEY_FILE
        if path.exists():
            with _unless("InvalidKeyPair.NotFound"):
                self._ec2.describe_key_pairs(KeyNames=[KEY_NAME])
                return path, False
        with _unless("InvalidKeyPair.NotFound"):
            self._ec2.delete_key_pair(KeyName=KEY_NAME)
        material = self._ec2.create_key_pair(KeyName=KEY_NAME)["KeyMaterial"]
        _write_private(path, material)
        self._progress.say(f"key pair {KEY_NAME}: the private key is in {path}")
        return path, True

    def _earlier_instance(self) -> dict[str, Any] | None:
        instance_id = self._remembered().get("instance_id")
        if instance_id:
            with _unless("InvalidInstanceID.NotFound"):
                instance = self._describe(instance_id)
                return instance if instance["State"]["Name"] in ("pending", "running") else None
        return None

    def _run_instance(self, image_id: str) -> dict[str, Any]:
        """Run one, and remember it before and after, so that a quick start cut short between does not run a second."""
        remembered = self._remembered()
        if "instance_id" in remembered or remembered.get("image_id") != image_id:
            remembered = {"token": str(uuid.uuid4()), "image_id": image_id}
            self._remember(remembered)
        answer = self._ec2.run_instances(ImageId=image_id, InstanceType=INSTANCE_TYPE, KeyName=KEY_NAME, MinCount=1,
                                         MaxCount=1, ClientToken=remembered["token"])
        instance = answer["Instances"][0]
        self._remember({**remembered, "instance_id": instance["InstanceId"]})
        return instance

    def _remembered(self) -> dict[str, str]:
        try:
            return json.loads((self._state / NOTES_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def _remember(self, what: Mapping[str, str]) -> None:
        _write_private(self._state / NOTES_FILE, json.dumps(what) + "\n")

    def _describe(self, instance_id: str) -> dict[str, Any]:
        return self._ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    def _running(self, instance_id: str) -> dict[str, Any] | None:
        instance = self._describe(instance_id)
        state = instance["State"]["Name"]
        if state not in ("pending", "running"):
            reason = instance.get("StateReason", {}).get("Message", "")
            raise QuickStartError(f"instance {instance_id} is {state}{': ' if reason else ''}{reason}")
        return instance if state == "running" else None

    def _console_with_ssh(self, instance_id: str) -> str | None:
        self._running(instance_id)  # an instance that ended meanwhile says nothing more
        console = self._ec2.get_console_output(InstanceId=instance_id).get("Output", "")
        return console if SSH_READY in console else None


# -- what comes out of it ----------------------------------------------------------------------------------------------

def summary(environment: Mapping[str, str], novarc: Path, state_path: Path, demo: Demo | None, guests: bool,
            bold: Callable[[str], str] = str, flags: str = "") -> list[str]:
    """The lines that tell a newcomer how to go on.

    :param environment: what novarc sets
    :param guests: whether a guest can be reached by ssh
    :param flags: more that run.sh has to be given to find the cloud again
    """
    own_aws = Path(sys.prefix, "bin", "aws")
    aws = str(own_aws) if own_aws.exists() else "aws"
    option = "" if state_path == Path.cwd() / "state" else f" --state_path={shlex.quote(str(state_path))}"
    option += "" if guests else " --compute_driver=fake"
    option += f" {flags}" if flags else ""
    lines = ["", bold("Nova runs."),
             f"  EC2          {environment['AWS_ENDPOINT_URL_EC2']}",
             f"  S3           {environment['AWS_ENDPOINT_URL_S3']}",
             f"  credentials  source {shlex.quote(str(novarc))}",
             f"  then, e.g.   {shlex.quote(aws)} ec2 describe-instances"]
    if demo:
        lines.append(f"  instance     {demo.instance_id} ({demo.instance_type}) {demo.address}")
        if guests and demo.address:
            lines.append(f"  log in       ssh -i {shlex.quote(str(demo.key_path))} -o StrictHostKeyChecking=no "
                         f"-o UserKnownHostsFile=/dev/null root@{demo.address}")
    return [*lines, f"  stop         Ctrl-C; guests run on, and ./run.sh{option} finds them again",
            f"  remove       ./run.sh clean{option}", ""]


def read_novarc(path: Path) -> dict[str, str]:
    """The variables that a novarc file exports with literal values.

    :raises QuickStartError: it cannot be read
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise QuickStartError(f"{path}: {error.strerror}") from error
    values = {}
    for line in lines:
        words = shlex.split(line, comments=True)
        if len(words) == 2 and words[0] == "export" and "=" in words[1]:
            name, value = words[1].split("=", 1)
            values[name] = value
    return values


def clients(environment: Mapping[str, str]) -> tuple[Any, Any]:
    """boto3's EC2 and S3 clients for what novarc sets; this process's own AWS settings do not count."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update({"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                       "AWS_EC2_METADATA_DISABLED": "true"})
    os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
    config = Config(connect_timeout=10, read_timeout=120, retries={"max_attempts": 4, "mode": "standard"})
    session = boto3.session.Session()
    return session.client("ec2", config=config), session.client("s3", config=config)


@contextlib.contextmanager
def _unless(*codes: str) -> Iterator[None]:
    """Go on after an answer with one of these error codes."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise


def _printable(line: str) -> str:
    return "".join(c for c in line.expandtabs() if c.isprintable()).strip()[:110]


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is there wholly or not at all."""
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nova.quickstart", description="First steps in a new cloud.")
    parser.add_argument("--novarc", type=Path, required=True, help="the file with endpoints and credentials")
    parser.add_argument("--state_path", type=Path, required=True, help="where the demo's key and notes are kept")
    parser.add_argument("--starter_path", type=Path, required=True, help="the directory with the starter images")
    parser.add_argument("--demo", action="store_true", help="run a first instance")
    parser.add_argument("--compute_driver", default="libvirt", help="fake: instances are records, nothing boots")
    parser.add_argument("--flags", default="", help="what else run.sh has to be given to find the cloud again")
    parser.add_argument("--logfile", default="", help="where the daemons log, to say so when something goes wrong")
    arguments = parser.parse_args()
    begun = float(os.environ.get("NOVA_STARTED", "").replace(",", ".") or time.time())
    progress = Progress(sys.stdout, begun)
    guests = arguments.compute_driver != "fake"
    try:
        environment = read_novarc(arguments.novarc)
        start = QuickStart(*clients(environment), arguments.state_path.absolute(), progress)
        image_id = start.register_images(arguments.starter_path)
        demo = start.run_demo(image_id, guests) if arguments.demo else None
    except (QuickStartError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        logfile = arguments.logfile or arguments.state_path / "logs" / "nova-all.log"
        print(f"quick start: {' '.join(str(error).split())} (the log is {logfile})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in summary(environment, arguments.novarc.absolute(), arguments.state_path.absolute(), demo, guests,
                        progress.bold, arguments.flags):
        progress.plain(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
