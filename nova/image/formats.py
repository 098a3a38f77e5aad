"""What an image file is, by its content: pure functions over a few bytes of it, which nobody has checked before.

A file that names other files is refused here, before any tool opens it: backing files, external data files, parents,
extents.  So is what is encrypted, was not closed properly, is cut off, or is no image at all.  Layouts: QEMU's
docs/interop/qcow2.txt; VMware "Virtual Disk Format 5.0"; VirtualBox VDICore.h; Microsoft "Virtual Hard Disk Image
Format Specification" and [MS-VHDX]; UEFI 2.10 section 5 (GPT); Linux Documentation/arch/x86/boot.rst and
filesystems/ext4.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from nova import exception

#: reads bytes of a file: offset and length; shorter at its end
Read = Callable[[int, int], bytes]

RAW, QCOW2, VMDK, VDI, VHD, VHDX = "raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"
KERNEL, RAMDISK = "kernel", "ramdisk"
GZIP, XZ, ZSTD, BZIP2 = "gzip", "xz", "zstd", "bzip2"
#: what has a disk in it, called as qemu-img calls it; what is unpacked first
DISKS = (RAW, QCOW2, VMDK, VDI, VHD, VHDX)
COMPRESSED = (GZIP, XZ, ZSTD, BZIP2)

SECTOR = 512
GIB = 1 << 30
_HEAD = 4096
#: bytes of a vmdk's descriptor, or of a qcow2's header with its extensions, that are looked at
_MAX_TEXT = 64 << 10
_MAX_EXTENSIONS = 256


@dataclass(frozen=True)
class Found:
    """What a file is.

    `form` is one of the constants above, `what` the same in words.  `virtual_size` is what a guest would see of a disk,
    in bytes.  A `plain` disk has nothing in it that a conversion would leave out.
    """

    form: str
    what: str
    virtual_size: int = 0
    plain: bool = True


def detect(read: Read, size: int) -> Found:
    """What a file is.

    :param size: of the file, in bytes
    :raises exception.InvalidImage: it is nothing that an image can be made from; the message tells why
    """
    if size == 0:
        _refuse("it is empty")

    def within(offset: int, length: int) -> bytes:  # a header may name any place
        return read(offset, length) if offset < size else b""
    return _detect(within, size)


def _detect(read: Read, size: int) -> Found:
    head = read(0, _HEAD)
    for looks, look in _DISK_FORMATS:
        if looks(head):
            return look(read, size)
    footer = read(size - SECTOR, SECTOR) if size > SECTOR else b""
    if footer.startswith(b"conectix"):
        return _vhd(footer, read, size)
    for magic, offset, what in _REFUSED:
        if head[offset:offset + len(magic)] == magic:
            _refuse(what)
    for magic, form, what in _MAGIC:
        if head.startswith(magic):
            return Found(form, what)
    if head[510:512] == b"\x55\xaa" and head[514:518] == b"HdrS":
        return Found(KERNEL, "a Linux kernel (bzImage)")
    what = _raw(head, read, size)
    if what:
        return Found(RAW, what, -(-size // SECTOR) * SECTOR)
    _refuse("it is no disk image, kernel or ramdisk that is known: neither a partition table nor a file system begins "
            "it, nor qcow2, vmdk, vdi, vhd, vhdx, or one of these in gzip, xz, zstd or bzip2")


def check_kind(found: Found, kind: str) -> None:
    """Refuse what cannot be an image of this kind.

    :param kind: machine, kernel or ramdisk
    :raises exception.InvalidImage:
    """
    if kind == "kernel" and found.form != KERNEL:
        _refuse(f"a kernel is wanted (bzImage or ELF), and it is {found.what}")
    if kind == "ramdisk" and found.form not in (RAMDISK, RAW, *COMPRESSED):
        _refuse(f"a ramdisk is wanted (a cpio archive, perhaps compressed), and it is {found.what}")
    if kind == "machine" and found.form in (KERNEL, RAMDISK):
        _refuse(f"a machine image is wanted, and it is {found.what}; it has to be registered as one")


def check_size(virtual_size: int, max_gb: int) -> None:
    """:raises exception.InvalidImage: a disk is larger than the cloud takes"""
    if virtual_size > max_gb * GIB:
        _refuse(f"its disk has {virtual_size / GIB:.6g} GiB, and this cloud takes images of up to {max_gb} GiB")
    if virtual_size <= 0:
        _refuse("its disk has no bytes")


def _refuse(reason: str) -> NoReturn:
    raise exception.InvalidImage(reason=reason)


def _cut_off(what: str, wanted: int, size: int) -> None:
    if wanted > size:
        _refuse(f"it is cut off: {what} reaches to byte {wanted}, and the file has {size}")


def _unpack(layout: str, data: bytes, offset: int, what: str) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(layout, data, offset)
    except struct.error:
        _refuse(f"it is cut off in the header of {what}")


# -- disk formats -----------------------------------------------------------------------------------------------------

#: incompatible features of a qcow2: dirty and corrupt, external data, and those that QEMU can read (compression type,
#: extended L2 entries)
_DIRTY, _CORRUPT, _EXTERNAL, _KNOWN = 1, 2, 4, 8 | 16
_END, _BACKING_FORMAT, _EXTERNAL_NAME = 0, 0xE2792ACA, 0x44415441


def _qcow2(read: Read, size: int) -> Found:
    head = read(0, _MAX_TEXT)
    (version, backing, backing_size, cluster_bits, virtual, crypt, l1_size, l1_offset, refcounts, refcount_clusters,
     snapshots, _) = _unpack(">IQIIQIIQQIIQ", head, 4, "a qcow2")
    if version not in (2, 3):
        _refuse(f"it is a qcow of version {version}; 2 and 3 are taken")
    length, features = 72, 0
    if version == 3:
        features, _, _, _, length = _unpack(">QQQII", head, 72, "a qcow2")
    if backing or backing_size:
        _refuse("it is a qcow2 that has a backing file; 'qemu-img convert' makes one that is whole")
    if features & _EXTERNAL:
        _refuse("it is a qcow2 whose data are in another file")
    if features & _CORRUPT:
        _refuse("it is a qcow2 that is marked as corrupt; 'qemu-img check -r all' may repair it")
    if features & _DIRTY:
        _refuse("it is a qcow2 that was not closed properly; 'qemu-img check -r all' repairs it")
    if features & ~(_DIRTY | _CORRUPT | _EXTERNAL | _KNOWN):
        _refuse(f"it is a qcow2 with features that are not known ({features:#x})")
    if crypt:
        _refuse("it is an encrypted qcow2")
    if not 9 <= cluster_bits <= 21:
        _refuse("it is a damaged qcow2: its clusters have no sensible size")
    _check_extensions(head, length)
    _cut_off("its L1 table", l1_offset + 8 * l1_size, size)
    _cut_off("its refcount table", refcounts + (refcount_clusters << cluster_bits), size)
    return Found(QCOW2, f"a qcow2 of version {version}", virtual, plain=version == 3 and not snapshots)


def _check_extensions(head: bytes, offset: int) -> None:
    for _ in range(_MAX_EXTENSIONS):
        if offset + 8 > len(head):
            return
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _END:
            return
        if kind in (_BACKING_FORMAT, _EXTERNAL_NAME):
            _refuse("it is a qcow2 whose header names another file")
        offset += 8 + -(-length // 8) * 8
    _refuse("it is a damaged qcow2: its header does not end")


_FOOTER_AT_END = (1 << 64) - 1


def _vmdk(read: Read, size: int) -> Found:
    head = read(0, SECTOR)
    version, _, capacity, _, where, sectors, _, _, directory = _unpack("<IIQQQQIQQ", head, 4, "a vmdk")
    if not 1 <= version <= 3:
        _refuse(f"it is a vmdk of version {version}, which is not known")
    if capacity == 0 or where == 0 or sectors == 0:
        _refuse("it is a vmdk that is only one of several files; VMware's ovftool or 'qemu-img convert' makes one file")
    if head[72:73] not in (b"\0", b""):
        _refuse("it is a vmdk that was not closed properly")
    _check_descriptor(read(where * SECTOR, min(sectors * SECTOR, _MAX_TEXT)).rstrip(b"\0").decode("latin-1"))
    if directory == _FOOTER_AT_END:
        footer = read(size - 2 * SECTOR, SECTOR) if size > 3 * SECTOR else b""
        if not footer.startswith(b"KDMV"):
            _refuse("it is cut off: it is a stream-optimized vmdk, and its end is not there")
        [again] = struct.unpack_from("<Q", footer, 12)
        if again != capacity:
            _refuse("it is a damaged vmdk: it ends with another size than it begins with")
    else:
        _cut_off("its grain directory", directory * SECTOR, size)
    return Found(VMDK, "a vmdk", capacity * SECTOR)


def _check_descriptor(text: str) -> None:
    values, extents = {}, []
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        words = line.split(None, 3)
        if words and words[0] in ("RW", "RDONLY", "NOACCESS"):
            extents.append(words[2] if len(words) > 2 else "")
        elif equals:
            values[name.strip()] = value.strip().strip('"')
    kind = values.get("createType", "")
    if kind not in ("monolithicSparse", "streamOptimized"):
        _refuse(f"it is a vmdk of the kind '{kind[:40]}'; taken are monolithicSparse and streamOptimized")
    if values.get("parentCID", "ffffffff").lower() != "ffffffff" or "parentFileNameHint" in values:
        _refuse("it is a vmdk that has a parent")
    if extents != ["SPARSE"]:
        _refuse("it is a vmdk whose descriptor names other files or devices")


def _descriptor_only(read: Read, size: int) -> NoReturn:
    _refuse("it is only the descriptor of a vmdk, which names other files")


def _vdi(read: Read, size: int) -> Found:
    head = read(0, SECTOR)
    kind, = _unpack("<I", head, 0x4C, "a vdi")
    data, _, _, _, _, _, virtual, block, _, _, allocated = _unpack("<IIIIIIQIIII", head, 0x158, "a vdi")
    if kind not in (1, 2) or any(head[0x1A8:0x1C8]):
        _refuse("it is a vdi that has a parent or is of another kind than dynamic and fixed")
    _cut_off("its last block", data + allocated * block, size)
    return Found(VDI, "a vdi", virtual)


def _vhd_dynamic(read: Read, size: int) -> Found:
    footer = read(size - SECTOR, SECTOR) if size > SECTOR else b""
    if not footer.startswith(b"conectix"):
        _refuse("it is cut off: it is a vhd, and its end is not there")
    return _vhd(footer, read, size)


def _vhd(footer: bytes, read: Read, size: int) -> Found:
    where, = _unpack(">Q", footer, 16, "a vhd")
    virtual, = _unpack(">Q", footer, 48, "a vhd")
    kind, checksum = _unpack(">II", footer, 60, "a vhd")
    if ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF != checksum:
        _refuse("it is a damaged vhd: the checksum of its footer is wrong")
    if kind == 4:
        _refuse("it is a vhd that has a parent")
    if kind == 2:
        _cut_off("its disk", virtual + SECTOR, size)
    elif kind != 3 or read(where, 8) != b"cxsparse":
        _refuse("it is a damaged vhd, or of another kind than dynamic and fixed")
    return Found(VHD, "a vhd", virtual)


#: of a vhdx: the region of its metadata, and in there what its disk is like and how large
_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_DISK_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_HEADERS, _REGIONS = (64 << 10, 128 << 10), 192 << 10
_MAX_ENTRIES = 2047
_HAS_PARENT = 2


def _vhdx(read: Read, size: int) -> Found:
    headers = [read(where, SECTOR) for where in _HEADERS]
    valid = [header for header in headers if header.startswith(b"head")]
    if not valid:
        _refuse("it is a damaged or cut off vhdx: it has no header")
    newest = max(valid, key=lambda header: _unpack("<Q", header, 8, "a vhdx"))
    if any(newest[48:64]):
        _refuse("it is a vhdx that was not closed properly: its log has not been replayed")
    items = _vhdx_items(read)
    if _PARAMETERS not in items or _DISK_SIZE not in items:
        _refuse("it is a damaged vhdx: it does not tell how large its disk is")
    flags, = _unpack("<I", read(items[_PARAMETERS] + 4, 4), 0, "a vhdx")
    if flags & _HAS_PARENT:
        _refuse("it is a vhdx that has a parent")
    virtual, = _unpack("<Q", read(items[_DISK_SIZE], 8), 0, "a vhdx")
    return Found(VHDX, "a vhdx", virtual)


def _vhdx_items(read: Read) -> dict[bytes, int]:
    """Where the metadata of a vhdx are, by their ids."""
    table = read(_REGIONS, 64 << 10)
    count, = _unpack("<I", table, 8, "a vhdx")
    if not table.startswith(b"regi") or count > _MAX_ENTRIES:
        _refuse("it is a damaged vhdx: it has no table of regions")
    entries = [_unpack("<16sQ", table, 16 + 32 * n, "a vhdx") for n in range(count)]
    regions = [where for id, where in entries if id == _METADATA]
    table = read(regions[0], 64 << 10) if regions else b""
    if not table.startswith(b"metadata"):
        _refuse("it is a damaged vhdx: it has no metadata")
    count, = _unpack("<H", table, 10, "a vhdx")
    items: dict[bytes, int] = {}
    for n in range(min(count, _MAX_ENTRIES)):
        id, where = _unpack("<16sI", table, 32 + 32 * n, "a vhdx")
        items[id] = regions[0] + where
    return items


#: how the first bytes of a format look, and what looks closer
_DISK_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Read, int], Found]], ...] = (
    (lambda head: head.startswith(b"QFI\xfb"), _qcow2),
    (lambda head: head.startswith(b"KDMV"), _vmdk),
    (lambda head: head.startswith((b"# Disk DescriptorFile", b"# Disk Descriptor File")), _descriptor_only),
    (lambda head: head[0x40:0x44] == b"\x7f\x10\xda\xbe", _vdi),
    (lambda head: head.startswith(b"vhdxfile"), _vhdx),
    (lambda head: head.startswith(b"conectix"), _vhd_dynamic),
)

_UNPACK_FIRST = "unpack it, and take the disk image that is in it"
_REFUSED = (
    (b"COWD", 0, "it is a vmdk of the kind vmfsSparse; taken are monolithicSparse and streamOptimized"),
    (b"LUKS\xba\xbe", 0, "it is encrypted (LUKS)"),
    (b"QED\0", 0, "it is a qed image; 'qemu-img convert' makes a qcow2 of it"),
    (b"WithoutFreeSpace", 0, "it is a Parallels image; 'qemu-img convert' makes a qcow2 of it"),
    (b"WithouFreSpacExt", 0, "it is a Parallels image; 'qemu-img convert' makes a qcow2 of it"),
    (b"PK\x03\x04", 0, f"it is a zip archive: {_UNPACK_FIRST}"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"it is a 7z archive: {_UNPACK_FIRST}"),
    (b"ustar", 257, f"it is a tar archive (an OVA is one): {_UNPACK_FIRST}"),
)
_MAGIC = (
    (b"\x1f\x8b\x08", GZIP, "gzip"),
    (b"\xfd7zXZ\0", XZ, "xz"),
    (b"\x28\xb5\x2f\xfd", ZSTD, "zstd"),
    *((bytes([0x50 + n]) + b"\x2a\x4d\x18", ZSTD, "zstd") for n in range(16)),
    *((b"BZh%d" % level, BZIP2, "bzip2") for level in range(1, 10)),
    (b"\x7fELF", KERNEL, "an ELF file, as a kernel may be"),
    *((magic, RAMDISK, "a ramdisk (a cpio archive)") for magic in (b"070701", b"070702", b"070707")),
    (b"\x02\x21\x4c\x18", RAMDISK, "something in lz4, as a ramdisk may be"),
    (b"\x04\x22\x4d\x18", RAMDISK, "something in lz4, as a ramdisk may be"),
    (b"\x5d\0\0", RAMDISK, "something in lzma, as a ramdisk may be"),
    (b"\x89LZO\0\r\n\x1a\n", RAMDISK, "something in lzo, as a ramdisk may be"),
)


# -- disks as they are ------------------------------------------------------------------------------------------------

def _raw(head: bytes, read: Read, size: int) -> str:
    """What a disk without a format of its own has on it, in words; nothing if it is none that is known."""
    if head[512:520] == b"EFI PART":
        alternate, = _unpack("<Q", head, 512 + 32, "a GPT")
        _cut_off("its GPT", (alternate + 1) * SECTOR, size)
        return "a disk with a GPT"
    if partitions := _mbr(head):
        for number, kind, start, count in partitions:
            if kind != 0xEE:  # what stands for a GPT may be as large as it likes
                _cut_off(f"its partition {number}", (start + count) * SECTOR, size)
        return "a disk with an MBR"
    return _file_system(head, read, size)


def _mbr(head: bytes) -> list[tuple[int, int, int, int]]:
    """Number, type, first sector and sectors of the partitions of an MBR; none if it is no sensible one."""
    if head[510:512] != b"\x55\xaa":
        return []
    found = []
    for number in range(4):
        flag, kind, start, count = struct.unpack_from("<B3xB3xII", head, 446 + 16 * number)
        if flag not in (0, 0x80):
            return []
        if kind and count:
            found.append((number + 1, kind, start, count))
    return found


def _file_system(head: bytes, read: Read, size: int) -> str:
    """The file system that a disk without partitions has, in words."""
    if head[1080:1082] == b"\x53\xef":
        low, block, features, high = (*_unpack("<I16xI", head, 1028, "an ext file system"),
                                      *_unpack("<I", head, 1120, "an ext file system"),
                                      *_unpack("<I", head, 1360, "an ext file system"))
        blocks = low + ((high << 32) if features & 0x80 else 0)
        if block > 6:
            _refuse("it is a damaged ext file system: its blocks have no sensible size")
        _cut_off("its file system", blocks << (10 + block), size)
        return "an ext file system"
    if head.startswith(b"XFSB"):
        block, blocks = _unpack(">IQ", head, 4, "an xfs file system")
        _cut_off("its file system", block * blocks, size)
        return "an xfs file system"
    if head.startswith(b"hsqs"):
        used, = _unpack("<Q", head, 40, "a squashfs file system")
        _cut_off("its file system", used, size)
        return "a squashfs file system"
    if head[1024:1028] == b"\x10\x20\xf5\xf2":
        return "an f2fs file system"
    if head[3:11] == b"NTFS    " or (head[510:512] == b"\x55\xaa" and b"FAT" in (head[54:57], head[82:85])):
        return "an NTFS or FAT file system"
    for where, magic, what in _FAR:
        if read(where, len(magic)) == magic:
            if what == "btrfs":
                total, = _unpack("<Q", read(where + 0x30, 8), 0, "a btrfs file system")
                _cut_off("its file system", total, size)
            return f"a {what} file system"
    return ""


#: file systems that are known by bytes that are not among the first
_FAR = ((0x10040, b"_BHRfS_M", "btrfs"), (0x8001, b"CD001", "iso9660"), (0x8000, b"JFS1", "jfs"),
        (0x10034, b"ReIsEr", "reiserfs"))
