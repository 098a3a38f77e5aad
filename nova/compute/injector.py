"""Writes files into the file system of a guest's disk: run as a program, by :mod:`nova.compute.injection`.

``injector.py`` in a mount namespace of its own reads from standard input, as JSON, what is to be written where, and
says on standard error why it cannot.  The disk is never mounted: qemu-storage-daemon shows the qcow2 overlay as one raw
file, and debugfs changes the ext file system in it.  What a user put into that file system is read by debugfs alone,
which runs as the user nobody, may write to that one file, and whose time and memory are bounded.  A path with a
symbolic link in it is refused, though debugfs would not leave the image by it either.
"""

import base64
import contextlib
import json
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECTOR = 512
#: bytes that debugfs may say
_MOST_SAID = 8 << 20
#: bytes of a file that is appended to
MOST = 1 << 20
#: paths that debugfs takes as one word
NAME = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
_NOBODY = 65534
_EXT_MAGIC, _EXT_NEEDS_RECOVERY = 0xEF53, 0x4


class Refused(Exception):
    """It cannot be done; the text says why."""


class FileSystem:
    """An ext file system in a file, changed by debugfs.

    :param file: the name of the file, in the working directory
    :param offset: where the file system begins, in bytes
    """

    def __init__(self, file: str, offset: int, timeout: float):
        self._target, self._timeout = f"{file}?offset={offset}", timeout

    def run(self, *commands: str, writes: bool = False) -> tuple[bytes, str]:
        """Have debugfs do commands; what it says, and what it complains of.  The commands are ours, word by word."""
        Path("commands").write_text("".join(f"{command}\n" for command in commands))
        os.chmod("commands", 0o644)
        return self._debugfs(*(["-w"] if writes else []), "-f", "commands")

    def _debugfs(self, *arguments: str) -> tuple[bytes, str]:
        command = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs",
                   "--bounding-set=-all", "debugfs", *arguments, self._target]
        with open("complaints", "w+b") as complaints:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                                     preexec_fn=_limit)
            timer = threading.Timer(self._timeout, child.kill)
            timer.start()
            assert child.stdout is not None
            with child.stdout:
                out = child.stdout.read(_MOST_SAID)
                if len(out) == _MOST_SAID:
                    child.kill()
            child.wait()
            timer.cancel()
            complaints.seek(0)
            lines = complaints.read(65536).decode(errors="replace").splitlines()
        if child.returncode < 0:
            raise Refused(f"debugfs was ended by signal {-child.returncode}: it takes too long, or too much")
        complaints_made = "; ".join(line for line in lines if not re.match(r"debugfs \d", line))[:500]
        if child.returncode and not out:
            raise Refused(f"debugfs: {complaints_made or f'exit code {child.returncode}'}")
        return out, complaints_made

    def kind(self, path: str) -> tuple[str, int]:
        """What is at a path (``directory``, ``regular``, ``symlink``, ...; empty: nothing), and its size in bytes."""
        out = self.run(f"stat {path}")[0].decode(errors="replace")
        found = re.search(r"^Inode: \d+ +Type: (\w+)", out, re.MULTILINE)
        size = re.search(r"Size: (\d+)$", out, re.MULTILINE)
        return (found[1], int(size[1]) if size else 0) if found else ("", 0)

    def check(self, *commands: str) -> None:
        """Have debugfs write; :raises Refused: it complains"""
        _, complaints = self.run(*commands, writes=True)
        if complaints:
            raise Refused(f"debugfs: {complaints}")

    def read(self, path: str) -> bytes:
        """A small regular file; :raises Refused: it is larger than MOST"""
        kind, size = self.kind(path)
        if size > MOST:
            raise Refused(f"{path} in the image is too large to append to")
        return self._debugfs("-R", f"cat {path}")[0] if kind == "regular" and size else b""

    def write(self, number: int, path: str, content: bytes, mode: int) -> None:
        """Put a file in place of what is there; the directories are made that are missing."""
        parent, _, name = path.rpartition("/")
        self._make_directories(parent)
        kind, _ = self.kind(path)
        if kind not in ("", "regular"):
            raise Refused(f"{path} in the image is a {kind}")
        source = f"file{number}"
        Path(source).write_bytes(content)
        os.chmod(source, 0o644)
        commands = [f"rm {path}"] if kind else []
        self.check(*commands, f"cd {parent or '/'}", f"write {source} {name}", f"sif {name} mode 0{0o100000 | mode:o}",
                   f"sif {name} uid 0", f"sif {name} gid 0")
        if self.kind(path) != ("regular", len(content)):
            raise Refused(f"{path} was not written; the file system may be full")

    def _make_directories(self, path: str) -> None:
        here = ""
        for name in [word for word in path.split("/") if word]:
            parent, here = here, f"{here}/{name}"
            kind, _ = self.kind(here)
            if not kind:
                self.check(f"cd {parent or '/'}", f"mkdir {name}", f"sif {name} uid 0", f"sif {name} gid 0",
                           f"sif {name} mode 0{0o40700 if name.startswith('.') else 0o40755:o}")
            elif kind != "directory":
                raise Refused(f"{here} in the image is a {kind}, not a directory")


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# -- where the file system is -----------------------------------------------------------------------------------------

def partitions(read: Any) -> list[int]:
    """Where a file system may begin, in bytes: at 0, and at each partition of a table (MBR or GPT).

    :param read: gives bytes by offset and length
    """
    found = [0]
    table = read(0, SECTOR)
    if table[510:512] != b"\x55\xaa":
        return found
    entries = [struct.unpack("<4xB3xII", table[at:at + 16]) for at in range(446, 510, 16)]
    if any(kind == 0xEE for kind, _, _ in entries):
        return found + _gpt(read)
    return found + [first * SECTOR for kind, first, count in entries if kind and count]


def _gpt(read: Any) -> list[int]:
    """The partitions of a GUID partition table (UEFI specification, 5.3)."""
    head = read(SECTOR, SECTOR)
    if head[:8] != b"EFI PART":
        return []
    where, count, size = struct.unpack("<QII", head[72:88])
    if not (128 <= size <= 4096 and count <= 1024):
        return []
    entries = [read(where * SECTOR + n * size, 48) for n in range(min(count, 128))]
    return [struct.unpack("<Q", entry[32:40])[0] * SECTOR for entry in entries
            if len(entry) == 48 and any(entry[:16])]


def _find(file: str, timeout: float) -> FileSystem:
    """The file system that has /etc."""
    with open(file, "rb") as disk:
        size = os.fstat(disk.fileno()).st_size

        def read(offset: int, length: int) -> bytes:
            return os.pread(disk.fileno(), length, offset) if offset + length <= size else b""
        for offset in partitions(read):
            head = read(offset + 1024, 1024)
            if len(head) == 1024 and struct.unpack_from("<H", head, 56)[0] == _EXT_MAGIC:
                found = FileSystem(file, offset, timeout)
                if struct.unpack_from("<I", head, 96)[0] & _EXT_NEEDS_RECOVERY:
                    found.check("jr")  # or the guest would replay it over what is written
                if found.kind("/etc")[0] == "directory":
                    return found
    raise Refused("the image has no ext2, ext3 or ext4 file system with a directory /etc")


# -- the disk as a file -----------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _exposed(disk: str, base: str, base_format: str, file: str, timeout: float) -> Iterator[None]:
    """Show an overlay as a raw file, which the user nobody may write.

    :param file: its name, in the working directory
    """
    Path(file).touch()
    below: dict[str, Any] = {"driver": base_format, "file": {"driver": "file", "filename": base}, "read-only": True}
    if base_format == "qcow2":
        below["backing"] = None
    nodes = [{"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": disk}, "backing": below}]
    export = {"type": "fuse", "id": "export", "node-name": "disk", "mountpoint": os.path.abspath(file),
              "writable": True, "allow-other": "on"}
    daemon = subprocess.Popen(["qemu-storage-daemon", *(word for node in nodes for word in ("--blockdev",
                                                                                           json.dumps(node))),
                               "--export", json.dumps(export)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + timeout
        while not os.path.getsize(file):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise Refused(f"qemu-storage-daemon: {_said(daemon)}")
            time.sleep(0.005)
        os.chown(file, _NOBODY, _NOBODY)
        yield
    finally:
        daemon.terminate()
        try:
            code = daemon.wait(timeout)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise Refused("qemu-storage-daemon does not end") from None
    if code:
        raise Refused(f"qemu-storage-daemon: {_said(daemon)}")


def _said(daemon: subprocess.Popen) -> str:
    if daemon.poll() is None:
        return "it does not come up"
    assert daemon.stderr is not None
    return daemon.stderr.read().decode(errors="replace").strip()[-500:] or f"exit code {daemon.returncode}"


def inject(order: dict[str, Any]) -> None:
    """Do what is ordered; see :func:`nova.compute.injection.inject`."""
    os.chdir(order["directory"])
    timeout = order["timeout"]
    with _exposed(order["disk"], order["base"], order["base_format"], "disk", timeout):
        system = _find("disk", timeout)
        for number, file in enumerate(order["files"]):
            if not NAME.fullmatch(file["path"]) or ".." in file["path"].split("/"):
                raise Refused(f"{file['path']!r} is no path for a file")
            if file["beside"] and system.kind(file["beside"])[0] != "directory":
                continue
            content = base64.b64decode(file["content"])
            if file["append"]:
                before = system.read(file["path"])
                content = before + (b"\n" if before and not before.endswith(b"\n") else b"") + content
            system.write(number, file["path"], content, file["mode"])


def main() -> None:
    """Exit code 0: done; 1: refused, with the reason on standard error."""
    try:
        inject(json.load(sys.stdin))
    except (Refused, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
