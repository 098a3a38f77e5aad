"""Initial ramdisks without tools: the cpio archive that the kernel unpacks, and the order in which modules load."""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path

from nova import exception


class Archive:
    """A cpio archive in the "newc" form (Linux: Documentation/driver-api/early-userspace/buffer-format).

    :param mtime: time stamp of every member, in epoch seconds
    """

    def __init__(self, mtime: int):
        self._mtime = mtime
        self._members: list[bytes] = []

    def directory(self, name: str) -> None:
        self._add(name, 0o040755)

    def file(self, name: str, data: bytes, executable: bool = False) -> None:
        self._add(name, 0o100755 if executable else 0o100644, data)

    def symlink(self, name: str, target: str) -> None:
        self._add(name, 0o120777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, 0o020600, b"", major, minor)

    def compressed(self) -> bytes:
        """The whole archive, gzipped; the same members give the same bytes."""
        body = b"".join(self._members) + _member("TRAILER!!!", 0, 0, 0, b"", 0, 0)
        return gzip.compress(body, 9, mtime=0)

    def _add(self, name: str, mode: int, data: bytes = b"", major: int = 0, minor: int = 0) -> None:
        self._members.append(_member(name, len(self._members) + 1, mode, self._mtime, data, major, minor))


def _member(name: str, inode: int, mode: int, mtime: int, data: bytes, major: int, minor: int) -> bytes:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, mtime, len(data), 0, 0, major, minor, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def with_dependencies(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """The files of kernel modules and of all that they need, in the order in which insmod must load them.

    :param modules: /lib/modules/RELEASE, or where a package was unpacked; no modules.dep is needed
    :param wanted: module names
    :raises exception.NovaError: one is missing
    """
    files = {_normal(path.name): path for path in (modules / "kernel").rglob("*.ko*")}
    builtin = {_normal(Path(line).name) for line in (modules / "modules.builtin").read_text().split()}
    order: list[Path] = []

    def visit(name: str) -> None:
        key = _normal(name)
        if key in builtin:
            return
        if key not in files:
            raise exception.NovaError(f"kernel module {name} is not in {modules}")
        if files[key] in order:
            return
        for needed in _depends(files[key]):
            visit(needed)
        order.append(files[key])

    for name in wanted:
        visit(name)
    return order


def _depends(path: Path) -> list[str]:
    """What a module file itself says it needs (the field `depends` of its .modinfo section)."""
    found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def _normal(name: str) -> str:
    return name.split(".ko")[0].replace("-", "_")
