"""Small contents that are what kernels, ramdisks and machine images begin with, for tests that boot none of them."""

import gzip
import random
import struct


def machine(size: int = 64 << 10, seed: int = 1) -> bytes:
    """What passes for a bare ext4 file system of `size` bytes, which is a multiple of 1024; the rest is noise."""
    data = bytearray(random.Random(seed).randbytes(size))
    data[:1024] = bytes(1024)
    block = bytearray(1024)
    struct.pack_into("<II", block, 0, 16, size // 1024)  # inodes, blocks
    struct.pack_into("<I", block, 24, 0)  # blocks of 1024 bytes
    struct.pack_into("<H", block, 56, 0xEF53)
    data[1024:2048] = block
    return bytes(data)


def kernel(size: int = 16 << 10, seed: int = 2) -> bytes:
    """What passes for a bzImage."""
    data = bytearray(random.Random(seed).randbytes(size))
    data[510:512] = b"\x55\xaa"
    data[514:518] = b"HdrS"
    return bytes(data)


def ramdisk(seed: int = 3) -> bytes:
    """A gzipped cpio archive of nothing but noise behind its end."""
    trailer = b"070701" + b"0" * 8 * 4 + b"00000001" + b"0" * 8 * 6 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0\0\0\0"
    return gzip.compress(trailer + random.Random(seed).randbytes(4096), mtime=0)
