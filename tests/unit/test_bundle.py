"""Bundles of other tools are unpacked, and damaged ones refused."""

import base64
import gzip
import hashlib
import io
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from nova import crypto, exception
from nova.image import bundle
from nova.image.archive import read_file
from tests import bundles
from tests.bundles import Bundle

IMAGE = random.Random(1).randbytes(300_000) + bytes(50_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca")))
    authority.ensure()
    return authority


@pytest.fixture
def made(authority: crypto.Authority, tmp_path: Path) -> Bundle:
    """A good bundle of IMAGE."""
    return bundles.make(tmp_path / "bundle", authority.certificate_path, IMAGE)


class Unpacker:
    """Unpacks bundles."""

    def __init__(self, authority: crypto.Authority, directory: Path):
        self.authority, self.directory = authority, directory
        self.target = directory / "target" / "image"
        self.target.parent.mkdir()

    def __call__(self, made: Bundle) -> bytes:
        manifest = bundle.read_manifest(made.manifest)
        bundle.unbundle(manifest, lambda name: open(made.directory / name, "rb"), self.authority.key_path,
                        str(self.target))
        return self.target.read_bytes()

    def refuse(self, made: Bundle, reason: str) -> None:
        with pytest.raises(exception.InvalidManifest, match=reason):
            self(made)
        self.target.unlink(missing_ok=True)
        assert list(self.target.parent.iterdir()) == []


@pytest.fixture
def unpack(authority: crypto.Authority, tmp_path: Path) -> Unpacker:
    return Unpacker(authority, tmp_path)


# -- good bundles -----------------------------------------------------------------------------------------------------

def test_a_bundle_is_unpacked(unpack: Unpacker, made: Bundle) -> None:
    assert len(made.parts) > 2
    assert unpack(made) == IMAGE


def test_a_bundle_of_one_part_is_unpacked(unpack: Unpacker, authority: crypto.Authority, tmp_path: Path) -> None:
    made = bundles.make(tmp_path / "b", authority.certificate_path, IMAGE, part_size=10 << 20)
    assert len(made.parts) == 1 and unpack(made) == IMAGE


@pytest.mark.parametrize("size", [0, 1, 511, 512, 3 << 20])
def test_images_of_all_sizes_are_unpacked(unpack: Unpacker, authority: crypto.Authority, tmp_path: Path,
                                          size: int) -> None:
    image = random.Random(size).randbytes(size)
    assert unpack(bundles.make(tmp_path / "b", authority.certificate_path, image, part_size=1 << 20)) == image


#: the forms in which GNU tar writes sparse files
SPARSE = [("--format=gnu", "-S"), *(("--format=posix", "-S", f"--sparse-version={v}") for v in ("0.0", "0.1", "1.0"))]


@pytest.mark.parametrize("options", SPARSE, ids=" ".join)
@pytest.mark.parametrize("regions", [0, 1, 3, 30, 300])
@pytest.mark.parametrize("end", ["data", "hole"])
def test_sparse_files_stay_sparse(unpack: Unpacker, made: Bundle, options: tuple[str, ...], regions: int,
                                  end: str) -> None:
    path = made.directory / "sparse"
    with open(path, "wb") as file:
        for number in range(regions):
            file.seek((number + 1) * 200_000)
            file.write(b"%05d" % number)
        file.truncate(file.tell() + (1 << 20) * (end == "hole"))
    made.pack(made.tar(path, options=options))
    made.size = path.stat().st_size
    assert unpack(made) == path.read_bytes()
    assert unpack.target.stat().st_blocks * 512 <= 2 * regions * 4096


def test_zeros_become_holes(unpack: Unpacker, authority: crypto.Authority, tmp_path: Path) -> None:
    image = bytes(3 << 20) + b"x" + bytes(5 << 20) + b"y" + bytes(1 << 20)
    assert unpack(bundles.make(tmp_path / "b", authority.certificate_path, image)) == image
    assert unpack.target.stat().st_blocks * 512 <= 2 * 4096


@pytest.mark.parametrize("options", [("--format=gnu", "-S"), ("--format=posix", "-S"), ("--format=ustar",),
                                     ("--format=posix",), ("--format=v7",), ("--format=oldgnu",), ("-b", "200")],
                         ids=" ".join)
def test_every_format_of_tar_is_read(unpack: Unpacker, made: Bundle, options: tuple[str, ...]) -> None:
    path = made.directory / "a file of some other name"
    with open(path, "wb") as file:
        file.write(b"begin")
        file.truncate(2 << 20)  # a hole, which -S records
        file.seek(0, 2)
        file.write(b"end")
    made.pack(made.tar(path, options=options))
    made.size = path.stat().st_size
    assert unpack(made) == path.read_bytes()


def test_padding_behind_the_gzip_stream_is_ignored(unpack: Unpacker, made: Bundle) -> None:
    path = made.directory / "image"
    path.write_bytes(IMAGE)
    tar = made.tar(path)
    made.seal(gzip.compress(tar) + bytes(5 << 20))
    made.digest = hashlib.sha1(tar).hexdigest()
    assert unpack(made) == IMAGE


def test_a_manifest_says_what_the_image_is(made: Bundle) -> None:
    made.kernel_id, made.ramdisk_id, made.architecture = "aki-1", "ari-1", "i386"
    manifest = bundle.read_manifest(made.manifest)
    assert (manifest.kind, manifest.kernel_id, manifest.ramdisk_id) == ("machine", "aki-1", "ari-1")
    assert (manifest.architecture, manifest.size) == ("i386", len(IMAGE))
    assert [(p.name, p.sha1) for p in manifest.parts] == made.parts


@pytest.mark.parametrize(("field", "kind"), [("kernel_id", "kernel"), ("ramdisk_id", "ramdisk")])
def test_true_instead_of_an_id_says_that_it_is_one(made: Bundle, field: str, kind: str) -> None:
    setattr(made, field, "true")
    manifest = bundle.read_manifest(made.manifest)
    assert (manifest.kind, manifest.kernel_id, manifest.ramdisk_id) == (kind, "", "")


class Stream(io.RawIOBase):
    """What comes from another host: it can be read once."""

    def __init__(self, data: bytes):
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._data.readinto(buffer)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("held", [16 << 20, 1 << 16])
def test_parts_may_be_streams(unpack: Unpacker, made: Bundle, damaged: bool, held: int,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_HELD", held)
    monkeypatch.setattr(bundle, "_READ", 10_000)

    def open_part(name: str) -> Stream:
        data = (made.directory / name).read_bytes()
        return Stream(data[:-1] + b"x" if damaged and name.endswith("001") else data)
    read = bundle.read_manifest(made.manifest)
    if not damaged:
        bundle.unbundle(read, open_part, unpack.authority.key_path, str(unpack.target))  # type: ignore[arg-type]
        assert unpack.target.read_bytes() == IMAGE
        return
    with pytest.raises(exception.InvalidManifest):
        bundle.unbundle(read, open_part, unpack.authority.key_path, str(unpack.target))  # type: ignore[arg-type]
    assert list(unpack.target.parent.iterdir()) == []


def test_digests_may_be_in_capitals(unpack: Unpacker, made: Bundle) -> None:
    made.parts = [(name, digest.upper()) for name, digest in made.parts]
    assert unpack(made) == IMAGE


def test_unpacking_takes_the_memory_of_a_few_buffers(unpack: Unpacker, authority: crypto.Authority,
                                                     tmp_path: Path) -> None:
    size = 48 << 20
    made = bundles.make(tmp_path / "b", authority.certificate_path, bytes(size), part_size=1 << 20)
    tracemalloc.start()
    try:
        assert len(unpack(made)) == size
        tracemalloc.reset_peak()
        unpack.target.unlink()
        manifest = bundle.read_manifest(made.manifest)
        before = tracemalloc.get_traced_memory()[0]
        bundle.unbundle(manifest, lambda name: open(made.directory / name, "rb"), authority.key_path,
                        str(unpack.target))
        assert tracemalloc.get_traced_memory()[1] - before < 20 << 20
    finally:
        tracemalloc.stop()


# -- damaged parts ----------------------------------------------------------------------------------------------------

def test_a_bundle_for_another_cloud_is_refused(unpack: Unpacker, made: Bundle, tmp_path: Path) -> None:
    another = crypto.Authority(str(tmp_path / "another"))
    another.ensure()
    made.certificate = another.certificate_path
    unpack.refuse(made, "not encrypted for this cloud")


def test_another_key_than_the_parts_were_encrypted_with_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.key = "0" * 32
    unpack.refuse(made, "not gzipped|cannot be decrypted")


@pytest.mark.parametrize("key", ["0" * 30, "0" * 64, "x" * 32, "0" * 32 + "\n"])
def test_a_key_that_is_not_32_hexadecimal_digits_is_refused(unpack: Unpacker, made: Bundle, key: str) -> None:
    made.key = key
    unpack.refuse(made, "not encrypted for this cloud")


@pytest.mark.parametrize("encrypted", [b"\0", b"\xff" * 256, b"\0" * 255, b"\0" * 1000])
def test_what_is_no_rsa_ciphertext_is_refused(unpack: Unpacker, made: Bundle, encrypted: bytes,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "encrypt", lambda digits: encrypted.hex())
    unpack.refuse(made, "not encrypted for this cloud")


def test_a_part_with_another_digest_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.parts[1] = (made.parts[1][0], "0" * 40)
    unpack.refuse(made, "digest of part image.part.001 is wrong")


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_part_with_a_flipped_bit_is_refused(unpack: Unpacker, made: Bundle, number: int) -> None:
    path = made.directory / made.parts[number][0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    unpack.refuse(made, f"digest of part {path.name} is wrong")


def test_a_missing_last_part_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.parts.pop()
    unpack.refuse(made, "not the bundled size")


def test_parts_in_another_order_are_refused(unpack: Unpacker, made: Bundle) -> None:
    made.parts[0], made.parts[1] = made.parts[1], made.parts[0]
    unpack.refuse(made, "gzipped|decrypted")


@pytest.mark.parametrize("cut", [1, 16, 17, 1000])
def test_a_truncated_bundle_is_refused_even_when_the_digests_are_right(unpack: Unpacker, made: Bundle,
                                                                       cut: int) -> None:
    encrypted = b"".join((made.directory / name).read_bytes() for name, _ in made.parts)
    for name, _ in made.parts:
        (made.directory / name).unlink()
    made.split(encrypted[:-cut])
    unpack.refuse(made, "cut off|decrypted|gzipped")


@pytest.mark.parametrize("difference", [-1, 1])
def test_parts_of_another_size_than_the_manifest_says_are_refused(unpack: Unpacker, made: Bundle,
                                                                  difference: int) -> None:
    made.bundled_size = int(made.bundled_size) + difference
    unpack.refuse(made, "not the bundled size")


def test_an_archive_with_another_digest_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.digest = "0" * 40
    unpack.refuse(made, "the image's digest is not what")


def test_the_digest_may_be_the_images_own_as_in_the_first_euca2ools(unpack: Unpacker, made: Bundle) -> None:
    made.digest = hashlib.sha1(IMAGE).hexdigest()
    assert unpack(made) == IMAGE


def test_several_gzip_streams_are_one(unpack: Unpacker, made: Bundle) -> None:
    path = made.directory / "image"
    path.write_bytes(IMAGE)
    tar = made.tar(path)
    made.seal(gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]))
    made.digest = hashlib.sha1(tar).hexdigest()
    assert unpack(made) == IMAGE


def test_what_is_no_gzip_stream_behind_one_is_refused(unpack: Unpacker, made: Bundle) -> None:
    path = made.directory / "image"
    path.write_bytes(IMAGE)
    made.seal(gzip.compress(made.tar(path)) + b"more")
    unpack.refuse(made, "not gzipped")


def test_a_bundle_that_is_not_gzipped_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.seal(b"x" * 10_000)
    unpack.refuse(made, "not gzipped")


def test_a_truncated_gzip_stream_is_refused(unpack: Unpacker, made: Bundle) -> None:
    path = made.directory / "image"
    path.write_bytes(IMAGE)
    made.seal(gzip.compress(made.tar(path))[:-20])
    unpack.refuse(made, "cut off")


# -- damaged archives -------------------------------------------------------------------------------------------------

def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_an_archive_of_two_files_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.pack(archive((member("a"), IMAGE), (member("b"), b"")))
    unpack.refuse(made, "exactly one regular file")


def test_an_empty_archive_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.pack(archive())
    unpack.refuse(made, "exactly one regular file")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
                                  tarfile.BLKTYPE], ids=["symlink", "hard link", "directory", "fifo", "char", "block"])
def test_what_is_no_regular_file_is_refused(unpack: Unpacker, made: Bundle, kind: bytes) -> None:
    made.size = 0
    made.pack(archive((member("image", kind, "/etc/passwd"), b"")))
    unpack.refuse(made, "exactly one regular file")


@pytest.mark.parametrize("name", ["/etc/nova-was-here", "../../nova-was-here", "..", "a/b", "./", "/",
                                  "x" * 200 + "/y"])
def test_a_name_with_a_path_is_refused(unpack: Unpacker, made: Bundle, name: str) -> None:
    made.pack(archive((member(name), IMAGE)))
    unpack.refuse(made, "must not have a path")


@pytest.mark.parametrize("size", [len(IMAGE) - 1, len(IMAGE) + 1, 0])
def test_an_image_of_another_size_than_the_manifest_says_is_refused(unpack: Unpacker, made: Bundle, size: int) -> None:
    made.size = size
    unpack.refuse(made, "size is not what the manifest says")


def test_an_image_much_larger_than_the_manifest_says_is_not_unpacked(unpack: Unpacker, made: Bundle) -> None:
    made.size = 1000
    made.pack(archive((member("image"), bytes(20 << 20))))
    unpack.refuse(made, "size is not what the manifest says")


def test_a_bomb_behind_the_image_is_not_unpacked(unpack: Unpacker, made: Bundle) -> None:
    made.pack(archive((member("image"), IMAGE)) + bytes(64 << 20))
    unpack.refuse(made, "too much behind")


def test_a_truncated_archive_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.pack(archive((member("image"), IMAGE))[:100_000])
    unpack.refuse(made, "no tar archive")


def test_what_is_no_archive_is_refused(unpack: Unpacker, made: Bundle) -> None:
    made.pack(os.urandom(2000))
    unpack.refuse(made, "no tar archive")


@pytest.mark.parametrize("headers", [{"size": "1x0"}, {"size": "9" * 400}, {"GNU.sparse.map": "0,1x"},
                                     {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}])
def test_a_number_that_is_none_in_a_header_is_refused(unpack: Unpacker, made: Bundle, headers: dict[str, str]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("image")
        info.size, info.pax_headers = len(IMAGE), headers
        tar.addfile(info, io.BytesIO(IMAGE))
    made.pack(out.getvalue())
    unpack.refuse(made, "no tar archive|size is not what")


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_archive_is_refused_or_unpacked_but_nothing_else(seed: int, authority: crypto.Authority,
                                                                  tmp_path: Path) -> None:
    """Headers of tar with random bytes changed: whatever is made of them, the answer is one of two."""
    dice = random.Random(seed)
    kinds = ["GNU_FORMAT", "PAX_FORMAT"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=getattr(tarfile, kinds[seed % 2])) as tar:
        info = tarfile.TarInfo("ü" * 80)
        info.size = 100
        info.pax_headers = {"GNU.sparse.map": "0,1", "comment": "x"} if seed % 3 else {}
        tar.addfile(info, io.BytesIO(b"x" * 100))
    data = bytearray(out.getvalue())
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(2048)] = dice.choice([*b"\0 07\x80\xffSxg", dice.randrange(256)])
    for block in range(0, 2048, 512):  # right checksums, so that the rest is looked at
        head = data[block:block + 512]
        head[148:156] = b" " * 8
        data[block + 148:block + 156] = b"%06o\0 " % sum(head) if any(data[block:block + 100]) else data[148:156]
    try:
        bundle.write(read_file([bytes(data)], 100), 100, str(tmp_path / "target"))
    except exception.InvalidManifest:
        return
    assert (tmp_path / "target").stat().st_size == 100


# -- damaged manifests ------------------------------------------------------------------------------------------------

def refuse(data: bytes, reason: str) -> None:
    with pytest.raises(exception.InvalidManifest, match=reason):
        bundle.read_manifest(data)


def test_a_manifest_with_a_document_type_is_refused(made: Bundle) -> None:
    bomb = b'<!DOCTYPE manifest [<!ENTITY a "x"><!ENTITY b "&a;&a;"> ]>'
    refuse(made.manifest.replace(b"<manifest>", bomb + b"<manifest>"), "document type")


def test_a_document_type_is_refused_in_any_encoding(made: Bundle) -> None:
    text = made.manifest.decode().replace('encoding="UTF-8"', 'encoding="UTF-16"')
    text = text.replace("<manifest>", '<!DOCTYPE manifest [<!ENTITY a "x">]><manifest>')
    refuse(text.encode("utf-16"), "document type")


def test_an_external_entity_is_refused(made: Bundle) -> None:
    evil = b'<!DOCTYPE manifest SYSTEM "file:///etc/passwd"><manifest>'
    refuse(made.manifest.replace(b"<manifest>", evil), "document type")


@pytest.mark.parametrize("data", [b"", b"hello", b"<manifest>", b"\xff\xfe", b"<manifest>\0</manifest>", b"<m>&a;</m>"])
def test_what_is_no_xml_is_refused(data: bytes) -> None:
    refuse(data, "no XML")


@pytest.mark.parametrize("tag", ["size", "ec2_encrypted_key", "ec2_encrypted_iv"])
def test_a_manifest_without_what_is_needed_is_refused(made: Bundle, tag: str) -> None:
    refuse(made.manifest.replace(f"<{tag}".encode(), b"<other").replace(f"</{tag}>".encode(), b"</other>"), tag)


@pytest.mark.parametrize("size", ["-1", "x", "1e3", str(1 << 41), "9" * 5000, "１２"],
                         ids=["negative", "word", "float", "2 TiB", "5000 digits", "wide digits"])
def test_a_size_that_makes_no_sense_is_refused(made: Bundle, size: str) -> None:
    made.size = size
    refuse(made.manifest, "no sensible size")


def test_a_manifest_without_parts_is_refused(made: Bundle) -> None:
    made.parts = []
    refuse(made.manifest, "no parts")


@pytest.mark.parametrize("name", ["../image.part.000", "/etc/passwd", "a/b", "", " "])
def test_a_part_that_does_not_lie_beside_the_manifest_is_refused(made: Bundle, name: str) -> None:
    made.parts[0] = (name, made.parts[0][1])
    refuse(made.manifest, "no file name")


@pytest.mark.parametrize("digest", ["", "0" * 39, "0" * 64, "x" * 40, base64.b64encode(bytes(20)).decode()])
def test_a_part_without_a_sha1_is_refused(made: Bundle, digest: str) -> None:
    made.parts[0] = (made.parts[0][0], digest)
    refuse(made.manifest, "no SHA-1")


@pytest.mark.parametrize("digits", ["x", "0", "0 0", "0x00"])
def test_an_encrypted_key_that_is_not_hexadecimal_is_refused(made: Bundle, digits: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "encrypt", lambda _: digits)
    refuse(made.manifest, "not hexadecimal")
