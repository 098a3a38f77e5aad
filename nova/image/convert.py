"""Makes an image's file from a file of whatever format: unpacks, checks, converts, hashes.

A program of its own, so that what looks into files that nobody has checked has limits of memory, processor time and
file sizes, no network, and nothing to lose.  nova.image.worker starts it.  It reads what to do from standard input, a
:class:`Task` in JSON, and writes a line of JSON for each sign of progress and one for how it ended.
"""

import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from nova import exception
from nova.image import formats
from nova.image.download import write_sparse
from nova.image.formats import Found

#: address space of this process and of each tool, in bytes; what a packed file may want for its window, in MiB
MEMORY = 1 << 30
_WINDOW_MB = 128
#: room that a qcow2 takes beyond its disk
_OVERHEAD = 1 << 30
_BLOCK = 1 << 20
#: what a packed file grows by at most, once it has grown to so many bytes
_RATIO, _RATIO_FROM = 1000, 256 << 20
_OFTEN = 0.5

#: what unpacks a format from standard input to standard output, and the Debian package that has it
_UNPACKERS = {
    formats.GZIP: (("gzip", "-dc"), "gzip"),
    formats.BZIP2: (("bzip2", "-dc"), "bzip2"),
    formats.XZ: (("xz", "-dc", "-T1", f"--memlimit-decompress={_WINDOW_MB}MiB"), "xz-utils"),
    formats.ZSTD: (("zstd", "-dcq", f"--memory={_WINDOW_MB}MB"), "zstd"),
}
#: the formats whose tables 'qemu-img check' compares with the file
_CHECKED = (formats.QCOW2, formats.VMDK, formats.VDI, formats.VHDX)
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

#: is told what is done, how many bytes of it are, of how many (0: nobody knows)
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """What to make: the file at `path` becomes a disk in the format `wanted` (raw or qcow2) of at most `max_gb` GiB.

    New files are made in `directory`.  `seconds` is how much processor time each process may take.
    """

    path: str
    directory: str
    wanted: str
    max_gb: int
    seconds: int


@dataclass(frozen=True)
class Made:
    """What was made: a file (the given one, if there was nothing to change), its format and SHA-256, its size and that
    of its disk in bytes."""

    path: str
    disk_format: str
    sha256: str
    size: int
    virtual_size: int


class Missing(exception.NovaError):
    """A tool is not installed."""

    message = "The object store's host lacks {tool}: apt-get install {package}"


def make(task: Task, tell: Tell) -> Made:
    """Do a task.

    :raises exception.InvalidImage: nothing can be made of the file; the message tells why
    :raises Missing:
    :raises OSError: (ENOSPC) there is no room
    """
    path, found = task.path, detect(task.path)
    formats.check_kind(found, "machine")
    if found.form in formats.COMPRESSED:
        path = _unpack(task, found.form, tell)
        inside = detect(path)
        if inside.form in formats.COMPRESSED:
            raise exception.InvalidImage(reason=f"it is compressed twice, {inside.what} in {found.what}")
        found = inside
        formats.check_kind(found, "machine")
    formats.check_size(found.virtual_size, task.max_gb)
    if found.form != formats.RAW:
        _examine(task, found, path)
    if found.form != task.wanted or not found.plain:
        path = _convert(task, found, path, tell)
    size = os.stat(path).st_size
    return Made(path, task.wanted, sha256(path, size, tell), size, found.virtual_size)


def detect(path: str) -> Found:
    """What a file is; :raises exception.InvalidImage:"""
    with open(path, "rb", buffering=0) as file:
        return formats.detect(lambda offset, length: os.pread(file.fileno(), length, offset),
                              os.fstat(file.fileno()).st_size)


# -- unpacking --------------------------------------------------------------------------------------------------------

def _unpack(task: Task, form: str, tell: Tell) -> str:
    """Unpack the file; what is nothing but zeros takes no room."""
    target = os.path.join(task.directory, "unpacked")
    command, package = _UNPACKERS[form]
    with open(task.path, "rb", buffering=0) as source, open(target, "xb", buffering=0) as out:
        total = os.fstat(source.fileno()).st_size
        written = 0
        for block in _output(task, f"{form} cannot unpack it", command, package, source):
            write_sparse(out.fileno(), memoryview(block), written)
            written += len(block)
            read = os.lseek(source.fileno(), 0, os.SEEK_CUR)  # the tool's place in the file is ours, too
            _check_growth(task, written, read)
            tell("unpacking", read, total)
    return target


def _check_growth(task: Task, written: int, read: int) -> None:
    if written > task.max_gb * formats.GIB + formats.SECTOR:
        raise exception.InvalidImage(reason=f"unpacked it has more than {task.max_gb} GiB")
    if written > _RATIO_FROM and written > _RATIO * read:
        raise exception.InvalidImage(reason=f"unpacked it is more than {_RATIO} times as large, as no image is")


# -- converting -------------------------------------------------------------------------------------------------------

def _examine(task: Task, found: Found, path: str) -> None:
    """Have qemu-img say of a file what the header said, and whether its tables are whole."""
    told = json.loads(_qemu_img(task, "info", "--output=json", "-f", found.form, f"file:{path}"))
    details = (told.get("format-specific") or {}).get("data") or {}
    names = [extent.get("filename") for extent in details.get("extents", ())]
    if any(told.get(name) for name in ("backing-filename", "full-backing-filename", "encrypted")) or (
            details.get("data-file") or any(name not in (path, f"file:{path}") for name in names)):
        raise exception.InvalidImage(reason=f"it is {found.what} that names other files or is encrypted")
    formats.check_size(told["virtual-size"], task.max_gb)
    if found.form in _CHECKED:
        _qemu_img(task, "check", "-q", "-f", found.form, f"file:{path}")


def _convert(task: Task, found: Found, path: str, tell: Tell) -> str:
    target = os.path.join(task.directory, f"disk.{task.wanted}")
    packed = ["-c", "-o", "compat=1.1"] if task.wanted == formats.QCOW2 else []
    command = ("qemu-img", "convert", "-p", "-f", found.form, "-O", task.wanted, *packed, f"file:{path}",
               f"file:{target}")
    for said in _output(task, "qemu-img cannot convert it", command, "qemu-utils"):
        if percents := _PERCENT.findall(said):
            tell("converting", int(float(percents[-1]) / 100 * found.virtual_size), found.virtual_size)
    if path != task.path:
        os.unlink(path)
    return target


def sha256(path: str, size: int, tell: Tell = lambda what, done, total: None) -> str:
    """The SHA-256 of a file of `size` bytes, hex."""
    digest, done = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            tell("hashing", done, size)
    return digest.hexdigest()


# -- tools ------------------------------------------------------------------------------------------------------------

def _output(task: Task, what: str, command: Sequence[str], package: str, stdin: BinaryIO | None = None,
            fine: tuple[int, ...] = (0,)) -> Iterator[bytes]:
    """What a tool writes, as it comes, in blocks of up to a MiB.

    :param what: what is said where it fails
    :param package: that has it
    :param fine: the exit codes that are no failure
    """
    with open(os.memfd_create("complaints"), "r+b") as complaints:  # in memory: the disk may be full
        try:
            child = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0,
                                     stderr=complaints, preexec_fn=_die_with_parent)
        except FileNotFoundError:
            raise Missing(tool=command[0], package=package) from None
        try:
            while child.stdout is not None and (block := child.stdout.read(_BLOCK)):
                yield block
        except BaseException:
            child.kill()
            raise
        finally:
            child.wait()
        if child.returncode not in fine:
            complaints.seek(0)
            raise _failure(child.returncode, complaints.read(4000), task, what)


def _qemu_img(task: Task, verb: str, *arguments: str) -> bytes:
    """What qemu-img says of a file; leaked clusters, which harm nobody, are no failure."""
    return b"".join(_output(task, f"'qemu-img {verb}' finds it damaged", ("qemu-img", verb, *arguments), "qemu-utils",
                            fine=(0, 3) if verb == "check" else (0,)))


def _failure(code: int, said: bytes, task: Task, what: str) -> Exception:
    """What to raise after a tool has failed, from its exit code and what it said."""
    if os.strerror(errno.ENOSPC).encode() in said:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code == -signal.SIGXCPU:
        return exception.InvalidImage(reason=f"{what}: it takes more than {task.seconds} s of processor time")
    if code in (-signal.SIGABRT, -signal.SIGTRAP) or b"annot allocate memory" in said:
        return exception.InvalidImage(reason=f"{what}: it takes more memory than is allowed")
    text = re.sub(r"(file:)?/\S*/", "", said.decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return exception.InvalidImage(reason=f"{what}: {lines[0][:300] if lines else f'it ended with {code}'}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(task: Task) -> None:
    """Take away from this process, and from the tools that it runs, what they do not need."""
    most = (task.max_gb << 30) + _OVERHEAD
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, task.seconds),
                         (resource.RLIMIT_FSIZE, most), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 256)):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, hard if limit == resource.RLIMIT_CPU else value))  # SIGXCPU says why
    os.nice(5)
    libc = ctypes.CDLL(None)
    _die_with_parent()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # where neither is allowed, no tool is given an address anyway


def _peak() -> int:
    """The most memory that this process or one of its tools took, in bytes."""
    with open("/proc/self/status") as file:  # getrusage counts what this process was before it became this program
        own = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def main() -> int:
    """Read a task, do it, write how it ended."""
    task = Task(**json.load(sys.stdin))
    confine(task)
    last, due = "", 0.0

    def say(**line: object) -> None:
        print(json.dumps({**line, "peak": _peak()}), flush=True)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, due
        now = time.monotonic()
        if what != last or now > due:
            last, due = what, now + _OFTEN
            say(what=what, done=done, total=total)
    try:
        made = make(task, tell)
    except exception.InvalidImage as error:
        say(refused=error.message)
    except Missing as error:
        say(broken=error.message)
    except MemoryError:
        say(refused=exception.InvalidImage(reason="it takes more memory than is allowed").message)
    except OSError as error:
        if error.errno == errno.EFBIG:
            say(refused=exception.InvalidImage(reason=f"it has more than {task.max_gb} GiB").message)
        else:
            say(errno=error.errno, broken=str(error))
    else:
        say(made=dataclasses.asdict(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
