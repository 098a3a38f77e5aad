"""What the builders of images share.

Tools run with time limits and tell how far they are; one build is done at a time in a directory; files appear whole or
not at all, and a marker says of which recipe they are.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nova import exception

#: time stamp of every file in the images: fixed, so that a build can be repeated
EPOCH = 1262304000

#: the packages that tools are in
PACKAGES = {"apt-cache": "apt", "apt-get": "apt", "dpkg": "dpkg", "ldd": "libc-bin", "mkfs.ext4": "e2fsprogs",
            "debugfs": "e2fsprogs", "/usr/sbin/resize2fs": "e2fsprogs", "/bin/busybox": "busybox-static",
            "/usr/sbin/dropbear": "dropbear-bin", "mmdebstrap": "mmdebstrap"}
_SEARCH_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def tool(name: str) -> str:
    """The path of a tool; :raises exception.NovaError: it is missing; the message says how to get it"""
    found = shutil.which(name, path=_SEARCH_PATH)
    if not found:
        raise exception.NovaError(f"{name} is missing: apt-get install {PACKAGES[name]}")
    return found


def environment() -> dict[str, str]:
    """The environment in which the same input gives the same bytes."""
    # E2FSPROGS_FAKE_TIME is what e2fsprogs before 1.47.1 knows
    return {"PATH": _SEARCH_PATH, "LC_ALL": "C", "HOME": "/root", "SOURCE_DATE_EPOCH": str(EPOCH),
            "E2FSPROGS_FAKE_TIME": str(EPOCH), "MKE2FS_SKIP_PROGRESS": "1"}


def run(name: str, *arguments: str, check: bool = True, stderr: bool = False, timeout: float = 30) -> str:
    """Run a tool; its standard output, or its standard error.

    :raises exception.NovaError: it is missing, failed, or did not end in time
    """
    try:
        done = subprocess.run([tool(name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                              env=environment(), text=True, errors="replace")
    except subprocess.TimeoutExpired:
        raise exception.Timeout(f"{name}: no end within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise exception.ProcessError(f"{name}: exit code {done.returncode}: {said}")
    return done.stderr if stderr else done.stdout


def run_told(command: Sequence[str], progress: Callable[[str], object], tell: Callable[[float, str], str], limit: float,
             directory: Path | None = None) -> tuple[int, str]:
    """Run a command that takes long, and tell every few seconds how far it is.

    :param tell: makes a line of the seconds that it has run and the last line that it said
    :param limit: seconds after which it is killed, with its children
    :param directory: where it runs
    :returns: its exit code, and all that it said
    :raises exception.Timeout: it did not end in time
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([tool(command[0]), *command[1:]], cwd=directory, stdin=subprocess.DEVNULL, stdout=said,
                                 stderr=said, env=environment(), start_new_session=True)
        try:
            _watch(child, command[0], limit, lambda seconds: progress(tell(seconds, _last_line(said.fileno()))))
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        said.seek(0)
        return child.returncode, said.read().decode(errors="replace").strip()


def _watch(child: subprocess.Popen, name: str, limit: float, told: Callable[[float], object]) -> None:
    started = last = time.monotonic()
    while True:
        try:
            child.wait(0.1)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - started > limit:
                raise exception.Timeout(f"{name}: no end within {limit:g} s") from None
            if now - last >= 3:
                last = now
                told(now - started)


def _last_line(file: int) -> str:
    size = os.fstat(file).st_size
    lines = os.pread(file, 2000, max(0, size - 2000)).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One build at a time in a directory; the lock goes with the process that holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(made: Path, final: Path) -> None:
    """Move a finished file to its name, so that it is there wholly or not at all."""
    with open(made, "rb") as file:
        os.fsync(file.fileno())
    os.replace(made, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- the marker of a finished build: a JSON file that says of what recipe it is, and how its files were left -----------

def recipe(*paths: Path) -> str:
    """A digest of everything of Nova's that goes into an image."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def mark(marker: Path, recipe: str, files: Iterable[Path], **facts: Any) -> None:
    """Say that a build is finished.

    :param files: in the directory of the marker
    :param facts: what else is to be known of it
    """
    described = {}
    for path in files:
        status = path.stat()
        described[path.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}
    made = marker.with_name(f".{marker.name}.part")
    made.write_text(json.dumps({"recipe": recipe, **facts, "files": described}, indent=2) + "\n")
    publish(made, marker)


def describe(marker: Path) -> dict[str, Any]:
    """What a finished build says about itself."""
    return json.loads(marker.read_text())


def is_complete(marker: Path, recipe: str) -> bool:
    """Whether a build of this recipe is finished and its files are as it left them."""
    try:
        said = describe(marker)
        return said["recipe"] == recipe and all(
            (status := marker.with_name(name).stat()).st_size == file["size"]
            and status.st_mtime_ns == file["mtime_ns"] for name, file in said["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
