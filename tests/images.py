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


# -- headers ----------------------------------------------------------------------------------------------------------

#: size of a file that has a header of :func:`headers`, and the places of which it has bytes that are not zero
SIZE = 4 << 20
PLACES = ((0, 4096), (64 << 10, 512), (128 << 10, 512), (192 << 10, 512), (2 << 20, 1024), (SIZE - 1024, 1024))


def read(data: bytes, offset: int, length: int) -> bytes:
    """Bytes of the file of `SIZE` bytes whose `PLACES` have `data` one after the other."""
    length = max(0, min(length, SIZE - offset))
    out, begin = bytearray(length), 0
    for place, room in PLACES:
        start, stop = max(offset, place), min(offset + length, place + room)
        if start < stop:
            piece = data[begin + start - place:begin + stop - place]
            out[start - offset:start - offset + len(piece)] = piece
        begin += room
    return bytes(out)


def _laid_out(*pieces: tuple[int, bytes]) -> bytes:
    data = bytearray(sum(room for _, room in PLACES))
    for offset, piece in pieces:
        begin = 0
        for place, room in PLACES:
            if place <= offset < place + room:
                data[begin + offset - place:begin + offset - place + len(piece)] = piece
            begin += room
    return bytes(data)


def _vhd(kind: int) -> bytes:
    footer = bytearray(struct.pack(">8sIIQI4sI4sQQIII", b"conectix", 2, 0x10000, 512 if kind == 3 else 2**64 - 1, 0,
                                   b"qemu", 0, b"Wi2k", SIZE - 512, SIZE - 512, 0, kind, 0)).ljust(512, b"\0")
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


def headers() -> dict[str, bytes]:
    """What files of each format begin (and end) with, as :func:`read` lays it out."""
    descriptor = b'# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType="%s"\nRW 8192 SPARSE "a.vmdk"\n'
    vmdk = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, SIZE // 512, 128, 1, 2, 512, 3, 4, 128)
    stream = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 3, 3, SIZE // 512, 128, 1, 2, 512, 0, 2**64 - 1, 128)
    qcow2 = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, SIZE, 0, 1, 3 << 16, 1 << 16, 1, 0, 0)
    vhdx_head = struct.pack("<4sIQ", b"head", 0, 1)
    metadata = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
    parameters, disk_size = (bytes.fromhex(id) for id in ("3767a1ca36fa434db3b633f0aa44e76b",
                                                          "2442a52f1bcd7648b2115dbed83bf4b8"))
    mbr = bytearray(512)
    struct.pack_into("<B3xB3xII", mbr, 446, 0x80, 0x83, 2048, 2048)
    mbr[510:] = b"\x55\xaa"
    ext = machine(4096)[1024:2048]
    return {
        "qcow2": _laid_out((0, qcow2 + struct.pack(">QQQII8x", 0, 0, 0, 4, 104) + struct.pack(">II", 0x6803F857, 16))),
        "qcow2 v2": _laid_out((0, qcow2.replace(b"\xfb\0\0\0\3", b"\xfb\0\0\0\2"))),
        "vmdk": _laid_out((0, vmdk), (512, descriptor % b"monolithicSparse")),
        "stream vmdk": _laid_out((0, stream), (512, descriptor % b"streamOptimized"), (SIZE - 1024, stream)),
        "vdi": _laid_out((0x40, b"\x7f\x10\xda\xbe\1\0\1\0\x80\1\0\0\1\0\0\0"),
                         (0x158, struct.pack("<IIIIIIQIIII", 1 << 20, 0, 0, 0, 0, 0, SIZE, 1 << 20, 0, 4, 3))),
        "dynamic vhd": _laid_out((0, _vhd(3)), (512, b"cxsparse"), (SIZE - 512, _vhd(3))),
        "fixed vhd": _laid_out((SIZE - 512, _vhd(2))),
        "vhdx": _laid_out(
            (0, b"vhdxfile"), (64 << 10, vhdx_head), (128 << 10, vhdx_head),
            (192 << 10, struct.pack("<4sII4x", b"regi", 0, 1) + metadata + struct.pack("<QII", 2 << 20, 1 << 20, 1)),
            (2 << 20, struct.pack("<8sHH20x", b"metadata", 0, 2)
             + parameters + struct.pack("<IIII", 512, 8, 0, 0) + disk_size + struct.pack("<IIII", 520, 8, 0, 0)),
            ((2 << 20) + 512, struct.pack("<IIQ", 1 << 20, 0, SIZE))),
        "gpt": _laid_out((0, bytes(mbr)),
                         (512, struct.pack("<8sIII4xQQ", b"EFI PART", 0x10000, 92, 0, 1, SIZE // 512 - 1))),
        "mbr": _laid_out((0, bytes(mbr))),
        "ext": _laid_out((1024, ext)),
        "xfs": _laid_out((0, struct.pack(">4sIQ", b"XFSB", 4096, SIZE // 4096))),
        "btrfs": _laid_out((0x10040, b"_BHRfS_M"), (0x10070, struct.pack("<Q", SIZE))),
        "squashfs": _laid_out((0, b"hsqs"), (40, struct.pack("<Q", 4096))),
        "gzip": _laid_out((0, b"\x1f\x8b\x08\0")), "xz": _laid_out((0, b"\xfd7zXZ\0\0\4")),
        "zstd": _laid_out((0, b"\x28\xb5\x2f\xfd\4")), "bzip2": _laid_out((0, b"BZh91AY&SY")),
        "kernel": _laid_out((510, b"\x55\xaa\0\0HdrS")), "elf": _laid_out((0, b"\x7fELF\2\1\1")),
        "cpio": _laid_out((0, b"070701"))}
