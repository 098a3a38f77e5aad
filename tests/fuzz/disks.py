"""Targets that are image files."""

from nova.image import formats
from tests import images
from tests.fuzz.run import Target


def _check_disk(data: bytes) -> str:
    """A file is known, or refused; its size is one that can be compared, and no more of it is read than its headers."""
    read_bytes = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        assert 0 <= length <= 1 << 20 and 0 <= offset < images.SIZE
        found = images.read(data, offset, length)
        read_bytes += len(found)
        return found
    found = formats.detect(read, images.SIZE)
    assert 0 <= found.virtual_size < 1 << 74 and read_bytes < 1 << 20
    return found.form


def disks() -> Target:
    """The headers of all formats."""
    words = (b"QFI\xfb", b"KDMV", b"conectix", b"vhdxfile", b"EFI PART", b"DATA", b"\xe2\x79\x2a\xca", b"\xff" * 8,
             b"\0" * 8, b'RW 1 FLAT "/etc/shadow"\n', b'createType="monolithicSparse"\n', b"parentCID=1\n",
             b"/etc/shadow")
    return Target(_check_disk, list(images.headers().values()), words)
