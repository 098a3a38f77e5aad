"""Images of all formats, made by qemu-img, sfdisk, mkfs and the packers: taken, or refused with a reason, in bounds."""

import asyncio
import contextlib
import logging
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nova.flags import FLAGS
from nova.image.models import Image
from nova.process import wait
from tests import images
from tests.functional.image_rig import Rig, authority_fixture, idle_fixture, rig_fixture, until  # noqa: F401

MIB = 1 << 20
#: MiB that no process that works on an image may pass
MOST_MEMORY = 400


def run(*command: str, input: bytes | None = None, cwd: Path | None = None) -> bytes:
    return subprocess.run(command, input=input, check=True, capture_output=True, timeout=60, cwd=cwd).stdout


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole disk of 24 MiB: a GPT, a partition, 2 MiB of noise somewhere in it."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(24 * MIB)
    run("sfdisk", "-q", str(path), input=b"label: gpt\nstart=1MiB, type=linux\n")
    with open(path, "r+b") as file:
        file.seek(5 * MIB + 4096)
        file.write(random.Random(5).randbytes(2 * MIB))
    return path


def converted(source: Path, directory: Path, form: str, *options: str) -> Path:
    target = directory / f"converted.{form}"
    run("qemu-img", "convert", "-f", "raw", "-O", form, *(word for option in options for word in ("-o", option)),
        str(source), str(target))
    return target


async def register(rig: Rig, path: Path | bytes, **fields: object) -> Image:
    await rig.put("bucket", "image", path if isinstance(path, bytes) else path.read_bytes())
    return await rig.ingest("bucket/image", **fields)


async def disk_of(rig: Rig, image: Image) -> bytes:
    """The bytes that a guest sees, as qemu-img reads them."""
    path = rig.directory / "read.raw"
    run("qemu-img", "convert", "-f", image.disk_format, "-O", "raw", str(await rig.file()), str(path))
    return path.read_bytes()


async def check_taken(rig: Rig, image: Image, disk: Path) -> None:
    assert (image.state, image.state_reason) == ("available", "")
    assert image.disk_format == FLAGS.image_format and image.virtual_size == disk.stat().st_size
    assert await disk_of(rig, image) == disk.read_bytes()
    assert image.size == (await rig.file()).stat().st_size
    assert rig.left() == [] and await rig.stray() == []


FORMATS = {
    "qcow2": ("qcow2",), "qcow2 of version 2": ("qcow2", "compat=0.10"), "qcow2 with zstd": ("qcow2",
                                                                                            "compression_type=zstd"),
    "qcow2 with extended L2": ("qcow2", "extended_l2=on"), "vmdk": ("vmdk",),
    "stream-optimized vmdk": ("vmdk", "subformat=streamOptimized"), "vdi": ("vdi",), "fixed vdi": ("vdi", "static=on"),
    "vhd": ("vpc", "force_size=on"), "fixed vhd": ("vpc", "subformat=fixed,force_size=on"), "vhdx": ("vhdx",),
    "fixed vhdx": ("vhdx", "subformat=fixed")}


@pytest.mark.parametrize("wanted", ["raw", "qcow2"])
@pytest.mark.parametrize("name", FORMATS)
async def test_a_disk_of_any_format_is_taken(rig: Rig, disk: Path, tmp_path: Path, name: str, wanted: str) -> None:
    FLAGS.image_format = wanted
    image = await register(rig, converted(disk, tmp_path, *FORMATS[name]))
    await check_taken(rig, image, disk)


async def test_what_was_unpacked_or_converted_to_raw_is_sparse(rig: Rig, disk: Path, tmp_path: Path) -> None:
    await register(rig, converted(disk, tmp_path, "qcow2"))
    assert (await rig.file()).stat().st_blocks * 512 < 4 * MIB


async def test_a_raw_disk_becomes_a_compressed_qcow2(rig: Rig, disk: Path) -> None:
    FLAGS.image_format = "qcow2"
    image = await register(rig, disk)
    await check_taken(rig, image, disk)
    assert image.size < 3 * MIB


async def test_a_clean_qcow2_is_kept_as_it_is_where_that_is_wanted(rig: Rig, disk: Path, tmp_path: Path) -> None:
    FLAGS.image_format = "qcow2"
    path = converted(disk, tmp_path, "qcow2")
    image = await register(rig, path)
    source = await rig.open("bucket", "image")
    assert image.sha256 == source.sha256 and os.path.samefile(source.path, await rig.file())


async def test_internal_snapshots_are_left_out(rig: Rig, disk: Path, tmp_path: Path) -> None:
    FLAGS.image_format = "qcow2"
    path = converted(disk, tmp_path, "qcow2")
    run("qemu-img", "snapshot", "-c", "before", str(path))
    image = await register(rig, path)
    await check_taken(rig, image, disk)
    assert b"before" not in await rig.content()


PACKERS = {"gz": ("gzip", "-c"), "xz": ("xz", "-c", "-1"), "xz with all its blocks": ("xz", "-c", "--block-size=1MiB"),
           "zst": ("zstd", "-c", "-q"), "bz2": ("bzip2", "-c")}


@pytest.mark.parametrize("inner", ["raw", "qcow2"])
@pytest.mark.parametrize("name", PACKERS)
async def test_what_is_compressed_is_unpacked(rig: Rig, disk: Path, tmp_path: Path, name: str, inner: str) -> None:
    path = disk if inner == "raw" else converted(disk, tmp_path, "qcow2")
    image = await register(rig, run(*PACKERS[name], input=path.read_bytes()))
    await check_taken(rig, image, disk)
    assert (await rig.file()).stat().st_blocks * 512 < 4 * MIB


@pytest.mark.parametrize("name", PACKERS)
async def test_several_streams_one_after_the_other_are_one_file(rig: Rig, disk: Path, name: str) -> None:
    data, middle = disk.read_bytes(), 6 * MIB + 12345
    image = await register(rig, b"".join(run(*PACKERS[name], input=part) for part in (data[:middle], data[middle:])))
    await check_taken(rig, image, disk)


@pytest.mark.parametrize(("label", "options"), [
    ("ext4", ("mkfs.ext4", "-q")), ("dos", ()), ("protective", ())])
async def test_what_is_raw_is_kept_as_it_is(rig: Rig, tmp_path: Path, label: str, options: tuple[str, ...]) -> None:
    path = tmp_path / "raw"
    with open(path, "wb") as file:
        file.truncate(8 * MIB)
    if options:
        run(*options, str(path))
    else:
        kind = "ee" if label == "protective" else "83"
        run("sfdisk", "-q", str(path), input=f"label: dos\nstart=1MiB, type={kind}\n".encode())
    if label == "protective":  # as large as such a partition may be said to be
        patched(path, (446 + 12, b"\xff" * 4))
    image = await register(rig, path)
    source = await rig.open("bucket", "image")
    assert image.state == "available" and os.path.samefile(source.path, await rig.file())


async def test_kernels_and_ramdisks_are_kept_as_they_are(rig: Rig) -> None:
    for kind, data in (("kernel", images.kernel()), ("ramdisk", images.ramdisk()),
                       ("ramdisk", run("xz", "-c", input=b"070701" + bytes(2000)))):
        image = await register(rig, data, kind=kind)
        assert (image.state, image.disk_format, image.size) == ("available", "raw", len(data))
        assert await rig.content() == data
        await rig.store.delete(image)
        await rig.manager.look_at_image(image.id)


# -- what is refused --------------------------------------------------------------------------------------------------

def patched(path: Path, *changes: tuple[int, bytes]) -> Path:
    with open(path, "r+b") as file:
        for offset, data in changes:
            file.seek(offset)
            file.write(data)
    return path


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    """With other bytes of the same length in place of some."""
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def cut(path: Path, keep: int) -> Path:
    os.truncate(path, keep)
    return path


def created(directory: Path, form: str, *options: str) -> Path:
    path = directory / f"created.{form}"
    run("qemu-img", "create", "-q", "-f", form, *options, cwd=directory)
    return path


def with_footer(path: Path, kind: int) -> Path:
    """A fixed vhd of another type, its checksum right."""
    data = bytearray(path.read_bytes())
    footer = data[-512:]
    footer[60:64], footer[64:68] = struct.pack(">I", kind), bytes(4)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    path.write_bytes(bytes(data[:-512] + footer))
    return path


def packed_zeros(size: int, *packer: str) -> bytes:
    head = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE)
    out = subprocess.run(packer, stdin=head.stdout, capture_output=True, check=True, timeout=120).stdout
    assert head.wait(10) == 0
    return out


Hostile = Callable[[Path, Path], "Path | bytes"]
HOSTILE: dict[str, tuple[Hostile, str]] = {
    "qcow2 over /etc/shadow": (lambda d, p: created(p, "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", "created.qcow2",
                                                    "1M"), "backing file"),
    "qcow2 over json:": (lambda d, p: created(p, "qcow2", "-u", "-b", 'json:{"driver":"nbd","host":"127.0.0.1"}', "-F",
                                              "raw", "created.qcow2", "1M"), "backing file"),
    "qcow2 with its data elsewhere": (lambda d, p: created(p, "qcow2", "-o", f"data_file={p}/data", "created.qcow2",
                                                           "1M"), "data are in another file"),
    "qcow2 that names data without the feature": (
        lambda d, p: patched(created(p, "qcow2", "-o", f"data_file={p}/data", "created.qcow2", "1M"),
                             (72, bytes(8))), "names another file"),
    "qcow2 of 16 EiB": (lambda d, p: patched(converted(d, p, "qcow2"), (24, b"\xff" * 8)), "and this cloud takes"),
    "qcow2 of no bytes": (lambda d, p: patched(converted(d, p, "qcow2"), (24, bytes(8))), "no bytes"),
    "encrypted qcow2": (lambda d, p: patched(converted(d, p, "qcow2"), (32, struct.pack(">I", 2))), "encrypted"),
    "LUKS": (lambda d, p: b"LUKS\xba\xbe\0\1" + bytes(4096), "encrypted (LUKS)"),
    "dirty qcow2": (lambda d, p: patched(converted(d, p, "qcow2"), (79, b"\1")), "not closed properly"),
    "corrupt qcow2": (lambda d, p: patched(converted(d, p, "qcow2"), (79, b"\2")), "marked as corrupt"),
    "qcow2 of the future": (lambda d, p: patched(converted(d, p, "qcow2"), (76, b"\1")), "features that are not known"),
    "qcow of version 1": (lambda d, p: converted(d, p, "qcow"), "version 1"),
    "cut off qcow2": (lambda d, p: cut(converted(d, p, "qcow2"), 2 * MIB), "damaged"),
    "cut off qcow2 header": (lambda d, p: cut(converted(d, p, "qcow2"), 60), "cut off"),
    "qcow2 with rubbish for tables": (lambda d, p: patched(converted(d, p, "qcow2"), (3 << 16, b"\xa5" * 4096)),
                                      "damaged"),
    "vmdk descriptor": (lambda d, p: b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\n'
                                     b'RW 100 FLAT "/etc/shadow" 0\n', "names other files"),
    "vmdk over another file": (lambda d, p: replaced(converted(d, p, "vmdk"), b'SPARSE "converted.vmdk"',
                                                     b'FLAT "/etc/shadow" 0   '), "names other files"),
    "vmdk of another kind": (lambda d, p: replaced(converted(d, p, "vmdk"), b'"monolithicSparse"',
                                                   b'"twoGbMaxExtentFlat'[:17] + b'"'), "of the kind"),
    "vmdk with a parent": (lambda d, p: replaced(converted(d, p, "vmdk"), b"parentCID=ffffffff", b"parentCID=12345678"),
                           "parent"),
    "vmdk of no capacity": (lambda d, p: patched(converted(d, p, "vmdk"), (12, bytes(8))), "one of several files"),
    "vmdk of 8 EiB": (lambda d, p: patched(converted(d, p, "vmdk"), (12, b"\xff" * 6 + b"\x3f\0")), "cloud takes"),
    "cut off vmdk": (lambda d, p: cut(converted(d, p, "vmdk"), MIB), "damaged"),
    "cut off stream": (lambda d, p: cut(converted(d, p, "vmdk", "subformat=streamOptimized"), MIB), "damaged"),
    "stream without its end": (lambda d, p: patched(converted(d, p, "vmdk", "subformat=streamOptimized"),
                                                    (56, b"\xff" * 8)), "cut off"),
    "vdi with a parent": (lambda d, p: patched(converted(d, p, "vdi"), (0x1A8, b"\1")), "has a parent"),
    "cut off vdi": (lambda d, p: cut(converted(d, p, "vdi"), 2 * MIB), "cut off"),
    "vdi of 16 EiB": (lambda d, p: patched(converted(d, p, "vdi"), (0x170, b"\xff" * 8)), "cloud takes"),
    "differencing vhd": (lambda d, p: with_footer(converted(d, p, "vpc", "subformat=fixed"), 4), "has a parent"),
    "cut off vhd": (lambda d, p: cut(converted(d, p, "vpc"), MIB), "cut off"),
    "vhd with a wrong checksum": (lambda d, p: patched(converted(d, p, "vpc", "subformat=fixed,force_size=on"),
                                                       (24 * MIB + 48, b"\1")), "checksum"),
    "cut off vhdx": (lambda d, p: cut(converted(d, p, "vhdx"), MIB), "damaged"),
    "vhdx with a log": (lambda d, p: patched(converted(d, p, "vhdx"), (65536 + 48, b"\1"), (131072 + 48, b"\1")),
                        "log"),
    "cut off GPT disk": (lambda d, p: d.read_bytes()[:20 * MIB], "cut off: its GPT"),
    "cut off file system": (lambda d, p: images.machine(MIB)[:MIB - 1024], "cut off: its file system"),
    "zstd bomb": (lambda d, p: packed_zeros(2 << 30, "zstd", "-qc"), "times as large"),
    "bzip2 bomb": (lambda d, p: packed_zeros(600 * MIB, "bzip2", "-c"), "times as large"),
    "zstd with a window of 2 GiB": (lambda d, p: packed_zeros(600 * MIB, "zstd", "-qc", "--long=31"), "zstd cannot"),
    "xz with a dictionary of 1 GiB": (lambda d, p: packed_zeros(MIB, "xz", "-c", "--lzma2=preset=0,dict=1GiB"),
                                      "xz cannot"),
    "gzip twice": (lambda d, p: run("gzip", "-c", input=run("gzip", "-c", input=d.read_bytes())), "compressed twice"),
    "gzip of junk": (lambda d, p: run("gzip", "-c", input=b"hello" * 1000), "no disk image"),
    "gzip of a ramdisk": (lambda d, p: run("gzip", "-c", input=b"070701" + bytes(1000)), "a ramdisk"),
    "gzip of a qcow2 with a backing file": (lambda d, p: run("gzip", "-c", input=created(
        p, "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", "created.qcow2", "1M").read_bytes()), "backing file"),
    "gzip and junk behind": (lambda d, p: run("gzip", "-c", input=d.read_bytes()) + b"junk", "gzip cannot"),
    "kernel": (lambda d, p: images.kernel(), "Linux kernel"),
    "zip": (lambda d, p: b"PK\3\4" + bytes(1000), "zip archive"),
    "tar": (lambda d, p: run("tar", "-c", "-C", str(d.parent), d.name), "tar archive"),
    "text": (lambda d, p: b"hello\n", "no disk image"),
    "nothing": (lambda d, p: b"", "empty"),
    "junk": (lambda d, p: random.Random(7).randbytes(MIB), "no disk image"),
    **{f"cut off {name}": (lambda d, p, packer=packer: run(*packer, input=d.read_bytes())[:MIB],  # type: ignore[misc]
                           "cannot unpack it") for name, packer in PACKERS.items()},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_hostile_or_damaged_is_refused_within_the_limits(
        rig: Rig, disk: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = HOSTILE[name]
    caplog.set_level(logging.INFO, "nova.image.worker")
    made = make(disk, tmp_path)
    size = len(made) if isinstance(made, bytes) else made.stat().st_size
    image = await register(rig, made)
    assert (image.state, image.state_code) == ("failed", "Client.InvalidFormat"), (size, image)
    assert reason in image.state_reason and str(tmp_path) not in image.state_reason, image.state_reason
    assert rig.left() == [] and await rig.stray() == [] and await rig.image_files.ids() == set()
    peaks = [int(found) for found in re.findall(r"at most (\d+) MiB of memory", caplog.text)]
    assert all(peak < MOST_MEMORY for peak in peaks)


async def test_what_is_larger_than_allowed_is_refused(rig: Rig, disk: Path, tmp_path: Path) -> None:
    FLAGS.image_max_gb = 1
    block = random.Random(1).randbytes(4096) + bytes(MIB - 4096)
    data = run("zstd", "-c", "-q", input=disk.read_bytes() + block * 1100)
    image = await register(rig, data)
    assert image.state == "failed" and "unpacked it has more than 1 GiB" in image.state_reason
    assert rig.left() == []


@pytest.mark.parametrize(("kind", "data", "reason"), [
    ("kernel", images.machine(), "a kernel is wanted"), ("kernel", images.ramdisk(), "a kernel is wanted"),
    ("ramdisk", images.kernel(), "a ramdisk is wanted"), ("ramdisk", b"hello", "no disk image")])
async def test_kernels_and_ramdisks_must_be_such(rig: Rig, kind: str, data: bytes, reason: str) -> None:
    image = await register(rig, data, kind=kind)
    assert image.state == "failed" and reason in image.state_reason


async def test_memory_stays_flat_for_a_large_image(rig: Rig, tmp_path: Path, disk: Path,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nova.image.worker")
    path = tmp_path / "large.raw"
    path.write_bytes(disk.read_bytes())
    os.truncate(path, 600 * MIB)
    run("sfdisk", "-q", "--relocate", "gpt-bak-std", str(path))
    with open(path, "r+b") as file:
        for n in range(40):
            file.seek((30 + 10 * n) * MIB)
            file.write(random.Random(n).randbytes(MIB))
    FLAGS.image_format = "qcow2"
    image = await register(rig, run("zstd", "-q", "-c", input=path.read_bytes()))
    assert image.state == "available" and image.virtual_size == 600 * MIB
    [peak] = [int(found) for found in re.findall(r"at most (\d+) MiB of memory", caplog.text)]
    assert peak < 150


# -- trouble on the way -----------------------------------------------------------------------------------------------

@pytest.fixture
def slow_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zstd that says that it has begun, and does no more; the file that it writes its processes into."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "zstd").write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/begun\nexec sleep 600\n")
    (tools / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path / "begun"


async def begun(note: Path) -> int:
    """The process of the one that has begun."""
    async def there() -> bool:
        return note.exists() and note.read_text().endswith("\n")
    await until(there, 30)
    [process] = note.read_text().split()
    return int(process)


async def test_what_takes_too_long_is_ended(rig: Rig, disk: Path, slow_zstd: Path) -> None:
    FLAGS.image_convert_timeout = 2.0
    image = await register(rig, run("/usr/bin/zstd", "-qc", input=disk.read_bytes()))
    assert image.state == "failed" and "more than 2 s" in image.state_reason
    assert not Path(f"/proc/{await begun(slow_zstd)}").exists()
    assert rig.left() == []


async def test_a_manager_that_stops_leaves_no_process_and_the_next_one_makes_the_image(
        rig: Rig, disk: Path, slow_zstd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.put("bucket", "image", run("/usr/bin/zstd", "-qc", input=disk.read_bytes()))
    await rig.record("bucket/image")
    task = asyncio.ensure_future(rig.manager.ingest_image("ami-00000001"))
    child = await begun(slow_zstd)
    await rig.manager.stop()
    await task
    assert not Path(f"/proc/{child}").exists() and rig.left() == []
    assert (await rig.image()).state == "pending"
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    rig.manager = rig.new_manager(rig.open)
    await rig.manager.start()

    async def available() -> bool:
        return (await rig.image()).state == "available"
    await until(available, 30)
    await check_taken(rig, await rig.image(), disk)


async def test_a_killed_manager_takes_its_worker_along(disk: Path, tmp_path: Path, slow_zstd: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(run("/usr/bin/zstd", "-qc", input=disk.read_bytes()))
    program = ("import asyncio, sys\nfrom nova.image import worker\nfrom nova.flags import FLAGS\n"
               "FLAGS(['x'])\nasyncio.run(worker.make(sys.argv[1], sys.argv[2], None))")
    manager = subprocess.Popen([sys.executable, "-c", program, str(packed), str(tmp_path)])
    child = await begun(slow_zstd)
    manager.kill()
    manager.wait(30)

    async def gone() -> bool:
        return not Path(f"/proc/{child}").exists()
    await until(gone)


async def test_tools_have_limits_and_no_network(rig: Rig, disk: Path, slow_zstd: Path) -> None:
    """What the tool that unpacks is left with, as it sees it."""
    (slow_zstd.parent / "tools" / "zstd").write_text(
        f"#!/bin/sh\n(ulimit -v; ulimit -t; ulimit -c; cat /proc/net/dev) > {slow_zstd}\nexit 1\n")
    FLAGS.image_convert_timeout = 77.0
    image = await register(rig, run("/usr/bin/zstd", "-qc", input=disk.read_bytes()))
    assert image.state == "failed"
    memory, seconds, core, *network = slow_zstd.read_text().split("\n")
    assert (memory, seconds, core) == (str(1 << 20), "77", "0")
    assert [line.split(":")[0].strip() for line in network if ":" in line] == ["lo"]


async def test_a_missing_tool_fails_the_image_and_names_the_package(rig: Rig, disk: Path, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    data = run("zstd", "-qc", input=disk.read_bytes())
    monkeypatch.setenv("PATH", str(tmp_path))
    image = await register(rig, data)
    assert (image.state, image.state_code) == ("failed", "Server.InternalError")
    assert "apt-get install zstd" in image.state_reason


@contextlib.contextmanager
def mounted_tmpfs(path: Path, size: int) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield
    finally:
        run("umount", str(path))


async def test_a_full_disk_fails_the_image_and_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    noise = images.machine(12 * MIB)
    path = tmp_path / "noise.raw"
    path.write_bytes(noise)
    for data in (run("gzip", "-c", input=noise), converted(path, tmp_path, "qcow2").read_bytes()):
        with mounted_tmpfs(rig.work, 8 * MIB):
            image = await register(rig, data)
            assert (image.state, image.state_code) == ("failed", "Server.InternalError")
            assert "no room" in image.state_reason
            assert rig.left() == [] and await rig.stray() == []
        await rig.store.delete(image)


async def test_what_is_made_in_another_file_system_is_copied_sparsely(rig: Rig, disk: Path) -> None:
    with mounted_tmpfs(rig.work, 64 * MIB):
        image = await register(rig, run("gzip", "-c", input=disk.read_bytes()))
        await check_taken(rig, image, disk)
        assert (await rig.file()).stat().st_blocks * 512 < 4 * MIB


async def test_conversions_wait_for_each_other_and_others_do_not(rig: Rig, disk: Path, slow_zstd: Path) -> None:
    await rig.put("bucket", "image", run("/usr/bin/zstd", "-qc", input=disk.read_bytes()))
    for number in (1, 2):
        await rig.record("bucket/image", id=f"ami-0000000{number}")
    tasks = [asyncio.ensure_future(rig.manager.ingest_image(f"ami-0000000{number}")) for number in (1, 2)]
    await begun(slow_zstd)
    await rig.put("bucket", "plain", disk.read_bytes())
    await rig.record("bucket/plain", id="ami-00000003")
    await wait(rig.bus.call("objectstore.h1", "ingest_image", image_id="ami-00000003"))
    third = await rig.store.get(Image, "ami-00000003")
    assert third is not None and third.state == "available"
    await begun(slow_zstd)  # and no other
    await rig.manager.stop()
    await asyncio.gather(*tasks)
