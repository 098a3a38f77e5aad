"""Has image files made in a process of their own (nova.image.convert), and does so without one where nothing is to do.

What is small and pure is done here: to find out what a file is takes a few reads of it.
"""

import asyncio
import dataclasses
import json
import logging
import os
import sys

from nova import exception, process
from nova.flags import FLAGS, DEFINE_enum, DEFINE_float, DEFINE_integer
from nova.image import convert, formats
from nova.image.convert import Made, Task
from nova.image.work import Progress
from nova.process import in_thread, wait

DEFINE_enum("image_format", "raw", ["raw", "qcow2"], "format in which the disks of machine images are kept: raw costs "
            "no time to read, qcow2 is compressed")
DEFINE_integer("image_max_gb", 100, "GiB that the disk of an image may have", lower_bound=1)
DEFINE_integer("image_conversions", 1, "images that one host unpacks or converts at the same time", lower_bound=1)
DEFINE_float("image_convert_timeout", 7200, "seconds that unpacking and converting one image may take", lower_bound=1)

log = logging.getLogger(__name__)

_LINE = 64 << 10
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class CannotConvert(exception.NovaError):
    """The host cannot make images; the message tells what it lacks."""


async def as_it_is(path: str, kind: str, sha256: str = "") -> Made | None:
    """What an image is of whose file nothing has to be changed; None for a disk that must be unpacked or converted.

    :param kind: machine, kernel or ramdisk
    :param sha256: of the file, hex, where that is known
    :raises exception.InvalidImage: no such image can be made of it
    """
    found = await wait(in_thread(convert.detect, path))
    formats.check_kind(found, kind)
    if kind == "machine":
        if found.form != formats.RAW or FLAGS.image_format != formats.RAW:
            return None
        formats.check_size(found.virtual_size, FLAGS.image_max_gb)
    size = os.stat(path).st_size
    sha256 = sha256 or await wait(in_thread(convert.sha256, path, size))
    return Made(path, formats.RAW, sha256, size, found.virtual_size or size)


async def make(path: str, directory: str, progress: Progress) -> Made:
    """Have the disk in a file unpacked or converted to --image_format.

    :param directory: for what is made
    :raises exception.InvalidImage: nothing can be made of the file, or not within the limits
    :raises CannotConvert: a tool is missing
    :raises OSError: (ENOSPC) there is no room
    """
    task = Task(path, directory, FLAGS.image_format, FLAGS.image_max_gb, int(FLAGS.image_convert_timeout))
    pipe = asyncio.subprocess.PIPE
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "PYTHONPATH": _ROOT,
                   "MALLOC_ARENA_MAX": "2", "TMPDIR": directory}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nova.image.convert", stdin=pipe, stdout=pipe, stderr=None, cwd=directory,
        env=environment, start_new_session=True, limit=_LINE)
    try:
        async with asyncio.timeout(FLAGS.image_convert_timeout):
            outcome = await _follow(child, task, progress)
    except TimeoutError:
        raise exception.InvalidImage(
            reason=f"to unpack and convert it takes more than {FLAGS.image_convert_timeout:g} s") from None
    finally:
        if child.returncode is None:
            await process.kill(child)
    return _result(outcome)


async def _follow(child: asyncio.subprocess.Process, task: Task, progress: Progress) -> dict:
    """The last line that a worker says; {} if it died before that."""
    if child.stdin is None or child.stdout is None:
        raise CannotConvert("a worker has no pipes")
    child.stdin.write(json.dumps(dataclasses.asdict(task)).encode())
    child.stdin.close()
    line: dict = {}
    async for text in child.stdout:
        line = json.loads(text)
        if "what" in line:
            await progress.tell(line["what"], line["done"], line["total"])
            line = {}
    code = await child.wait()
    if not line:
        log.error("a worker that makes an image ended with %d", code)
    return line


def _result(outcome: dict) -> Made:
    if outcome:
        log.info("a worker that makes an image took at most %d MiB of memory", outcome["peak"] >> 20)
    if "made" in outcome:
        return Made(**outcome["made"])
    if "refused" in outcome:
        raise exception.InvalidImage(outcome["refused"])
    if outcome.get("errno"):
        raise OSError(outcome["errno"], outcome["broken"])
    if "broken" in outcome:
        raise CannotConvert(outcome["broken"])
    raise exception.InvalidImage(reason="to unpack and convert it takes more processor time or memory than is allowed")
