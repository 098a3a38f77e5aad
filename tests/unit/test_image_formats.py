"""What an image file is, by its first bytes; tests/functional/test_image_formats.py has files that real tools made."""

import functools
import struct

import pytest

from nova import exception
from nova.image import formats
from nova.image.formats import Found, check_kind, check_size, detect
from tests import images

HEADERS = images.headers()


def look(data: bytes, size: int = images.SIZE) -> Found:
    return detect(functools.partial(images.read, data), size)


def refusal(data: bytes, size: int = images.SIZE) -> str:
    with pytest.raises(exception.InvalidImage) as caught:
        look(data, size)
    return caught.value.message


@pytest.mark.parametrize(("name", "form", "size"), [
    ("qcow2", "qcow2", images.SIZE), ("qcow2 v2", "qcow2", images.SIZE), ("vmdk", "vmdk", images.SIZE),
    ("stream vmdk", "vmdk", images.SIZE), ("vdi", "vdi", images.SIZE), ("dynamic vhd", "vpc", images.SIZE - 512),
    ("fixed vhd", "vpc", images.SIZE - 512), ("vhdx", "vhdx", images.SIZE), ("gpt", "raw", images.SIZE),
    ("mbr", "raw", images.SIZE), ("ext", "raw", images.SIZE), ("xfs", "raw", images.SIZE),
    ("btrfs", "raw", images.SIZE), ("squashfs", "raw", images.SIZE), ("gzip", "gzip", 0), ("xz", "xz", 0),
    ("zstd", "zstd", 0), ("bzip2", "bzip2", 0), ("kernel", "kernel", 0), ("elf", "kernel", 0),
    ("cpio", "ramdisk", 0)])
def test_each_format_is_known_by_its_header(name: str, form: str, size: int) -> None:
    found = look(HEADERS[name])
    assert (found.form, found.virtual_size) == (form, size)


def test_every_header_is_tested() -> None:
    assert {look(data).form for data in HEADERS.values()} == {
        *formats.DISKS, *formats.COMPRESSED, formats.KERNEL, formats.RAMDISK}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("size", [0, 1, 8, 100, 511, 512, 513, 1100, 4096, 70000, 200000, (2 << 20) + 40])
def test_a_header_that_is_cut_off_is_refused_or_read(name: str, size: int) -> None:
    """Nothing but InvalidImage comes out of it."""
    data = HEADERS[name]

    def read(offset: int, length: int) -> bytes:
        return images.read(data, offset, max(0, min(length, size - offset)))
    try:
        assert detect(read, size).virtual_size <= 1 << 64
    except exception.InvalidImage as error:
        assert error.message.startswith("The image cannot be taken: it ")


@pytest.mark.parametrize(("name", "needed"), [("gpt", images.SIZE), ("mbr", 2 << 20), ("ext", 4096),
                                              ("xfs", images.SIZE), ("btrfs", images.SIZE), ("qcow2", (3 << 16) + 8)])
def test_what_is_shorter_than_it_says_is_cut_off(name: str, needed: int) -> None:
    assert look(HEADERS[name], max(needed, 1 << 17)).form in ("raw", "qcow2")
    assert "cut off" in refusal(HEADERS[name], needed - 1)


def test_a_raw_disk_is_counted_in_whole_sectors() -> None:
    assert look(HEADERS["ext"], 5000).virtual_size == 5120


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"hello", b"\x55\xaa" * 2048, b"<html>" + bytes(4000)])
def test_junk_is_refused_with_what_is_known(data: bytes) -> None:
    assert "gzip, xz, zstd or bzip2" in refusal(data)


def test_an_mbr_of_nonsense_is_none() -> None:
    data = bytearray(HEADERS["mbr"])
    data[446] = 0x42
    assert "no disk image" in refusal(bytes(data))


def test_an_endless_header_of_a_qcow2_is_refused() -> None:
    """Extensions of no length that never end."""
    data = HEADERS["qcow2"][:104] + struct.pack(">II", 0x12345678, 0) * 400
    assert "does not end" in refusal(data)


def test_a_descriptor_of_many_lines_takes_no_time() -> None:
    data = bytearray(HEADERS["vmdk"])
    struct.pack_into("<Q", data, 36, 2**40)  # of as many sectors as one likes

    def read(offset: int, length: int) -> bytes:
        return (b" \n=\t" * (length // 4 + 1))[:length] if offset == 512 else images.read(bytes(data), offset, length)
    with pytest.raises(exception.InvalidImage, match="of the kind"):
        detect(read, images.SIZE)


@pytest.mark.parametrize(("form", "kind", "fine"), [
    ("kernel", "kernel", True), ("raw", "kernel", False), ("gzip", "kernel", False), ("gzip", "ramdisk", True),
    ("ramdisk", "ramdisk", True), ("raw", "ramdisk", True), ("qcow2", "ramdisk", False), ("kernel", "ramdisk", False),
    ("raw", "machine", True), ("qcow2", "machine", True), ("xz", "machine", True), ("kernel", "machine", False),
    ("ramdisk", "machine", False)])
def test_what_each_kind_of_image_may_be(form: str, kind: str, fine: bool) -> None:
    try:
        check_kind(Found(form, "something"), kind)
        assert fine
    except exception.InvalidImage:
        assert not fine


def test_the_size_of_a_disk_has_a_limit() -> None:
    check_size(1 << 30, 1)
    for size, reason in (((1 << 30) + 512, "up to 1 GiB"), ((1 << 64) - 1, "up to 1 GiB"), (0, "no bytes")):
        with pytest.raises(exception.InvalidImage) as caught:
            check_size(size, 1)
        assert reason in caught.value.message
