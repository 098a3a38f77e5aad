"""nova-bundle's bundles, taken apart by openssl, gunzip and tar alone; its command line; how it reads novarc."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from nova import crypto
from nova.bundler import account, docs, making, progress
from nova.bundler.making import Parts, Secret
from nova.image import manifest
from tests.bundles import run

ROOT = Path(__file__).parents[2]


class Papers:
    """What is in a credentials zip, and the cloud's key."""

    def __init__(self, directory: Path):
        self.authority = crypto.Authority(str(directory / "ca"))
        self.authority.ensure()
        self.directory = directory
        key, certificate = self.authority.issue("ann", "proj")
        for name, data in (("pk.pem", key), ("cert.pem", certificate), ("cacert.pem", self.authority.chain("proj"))):
            (directory / name).write_bytes(data)
        self.novarc = directory / "novarc"
        self.novarc.write_text(
            'NOVA_KEY_DIR=$(pwd)\nexport EC2_USER_ID=proj\nexport EC2_PRIVATE_KEY="$NOVA_KEY_DIR/pk.pem"\n'
            'export EC2_CERT="${NOVA_KEY_DIR}/cert.pem"\nexport EUCALYPTUS_CERT="$NOVA_KEY_DIR/cacert.pem"\n')


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


def nova_bundle(*words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program; it must end with this exit code."""
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    done = subprocess.run([sys.executable, ROOT / "bin" / "nova-bundle", *map(str, words)], capture_output=True,
                          text=True, timeout=120, env=clean)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def sparse_image(path: Path, size: int = 60 << 20) -> Path:
    """An image of random data, zeros that are stored, and holes."""
    with open(path, "wb") as file:
        file.write(random.Random(7).randbytes(3 << 20))
        file.write(bytes(1 << 20))
        file.seek(30 << 20)
        file.write(b"in the middle")
        file.truncate(size)
    return path


def take_apart(path: Path, papers: Papers, target: Path, key: str, whose: str) -> ElementTree.Element:
    """Get the image of a bundle with nothing of Nova's, checking whatever the manifest says on the way."""
    root = ElementTree.fromstring(path.read_bytes())
    image = root.find("image")
    assert image is not None
    text = path.read_text()
    signed = "".join(text[text.index(f"<{n}>"):text.index(f"</{n}>") + len(n) + 3] for n in ("machine_configuration",
                                                                                             "image"))
    signature, public = target.parent / "signature", target.parent / "public.pem"
    signature.write_bytes(bytes.fromhex(root.findtext("signature", "")))
    public.write_bytes(run("openssl", "x509", "-in", str(papers.directory / "cert.pem"), "-noout", "-pubkey"))
    run("openssl", "dgst", "-sha1", "-verify", str(public), "-signature", str(signature), input=signed.encode())

    def secret(name: str) -> str:
        return run("openssl", "pkeyutl", "-decrypt", "-inkey", key, "-pkeyopt", "rsa_padding_mode:pkcs1",
                   input=bytes.fromhex(image.findtext(f"{whose}_encrypted_{name}", ""))).decode()  # type: ignore
    whole = target.parent / "whole"
    total = 0
    with open(whole, "wb") as file:
        for element in image.findall("parts/part"):
            data = (path.parent / element.findtext("filename", "")).read_bytes()
            assert run("sha1sum", input=data).split()[0].decode() == element.findtext("digest")
            total += file.write(data)
    assert total == int(image.findtext("bundled_size", ""))
    archive = target.parent / "archive.tar"
    archive.write_bytes(run("gunzip", "-c", input=run(
        "openssl", "enc", "-d", "-aes-128-cbc", "-K", secret("key"), "-iv", secret("iv"), "-in", str(whole))))
    assert run("sha1sum", str(archive)).split()[0].decode() == image.findtext("digest")
    [name] = run("tar", "-tf", str(archive)).decode().split("\n")[:-1]
    run("tar", "-xSf", str(archive), "-C", str(target.parent))
    (target.parent / name).rename(target)
    assert target.stat().st_size == int(image.findtext("size", ""))
    return root


@pytest.mark.parametrize("whose", ["ec2", "user"])
def test_openssl_gunzip_and_tar_take_a_bundle_apart(papers: Papers, tmp_path: Path, whose: str) -> None:
    image = sparse_image(tmp_path / "disk.img")
    done = nova_bundle("bundle", image, "--name", "debian & co", "--kernel", "aki-1", "--ramdisk", "ari-1",
                       "--block-device", "ephemeral0=sdb", "--block-device", "ami=sda1", "--product-code", "AB12",
                       "--directory", tmp_path / "b", "--novarc", papers.novarc, "--json")
    told = json.loads(done.stdout)
    key = papers.authority.key_path if whose == "ec2" else str(papers.directory / "pk.pem")
    (tmp_path / "out").mkdir()
    root = take_apart(Path(told["manifest"]), papers, tmp_path / "out" / "image", key, whose)
    assert (tmp_path / "out" / "image").read_bytes() == image.read_bytes()
    assert (tmp_path / "out" / "image").stat().st_blocks * 512 < 6 << 20
    assert {path: root.findtext(path) for path in (
        "version", "machine_configuration/architecture", "machine_configuration/kernel_id",
        "machine_configuration/ramdisk_id", "machine_configuration/product_codes/product_code", "image/name",
        "image/user", "image/type")} == {
            "version": "2007-10-10", "machine_configuration/architecture": "x86_64",
            "machine_configuration/kernel_id": "aki-1", "machine_configuration/ramdisk_id": "ari-1",
            "machine_configuration/product_codes/product_code": "AB12", "image/name": "debian & co",
            "image/user": "proj", "image/type": "machine"}
    assert told["bundled_size"] < 4 << 20  # what is a hole takes no room


def test_an_image_larger_than_a_part_has_several(papers: Papers, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(3).randbytes(25 << 20))
    nova_bundle("bundle", image, "--directory", tmp_path / "b", "--novarc", papers.novarc)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "b").glob("disk.part.*"))
    assert len(sizes) == 3 and sizes[1:] == [10 << 20, 10 << 20]
    (tmp_path / "out").mkdir()
    take_apart(tmp_path / "b" / "disk.manifest.xml", papers, tmp_path / "out" / "image", papers.authority.key_path,
               "ec2")
    assert (tmp_path / "out" / "image").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("layout", ["empty", "hole", "data", "data then hole", "hole then data", "odd", "zeros"])
def test_every_layout_of_an_image_comes_back(papers: Papers, tmp_path: Path, layout: str) -> None:
    image = tmp_path / "disk.img"
    data = random.Random(1).randbytes(100_001)
    with open(image, "wb") as file:
        if layout in ("hole", "hole then data"):
            file.seek(1 << 20)
        file.write({"empty": b"", "hole": b"", "odd": data[:1], "zeros": bytes(1 << 20)}.get(layout, data))
        if layout == "data then hole":
            file.seek(1 << 20, os.SEEK_CUR)
        file.truncate()
    nova_bundle("bundle", image, "--directory", tmp_path / "b", "--novarc", papers.novarc)
    (tmp_path / "out").mkdir()
    path = tmp_path / "b" / "disk.manifest.xml"
    take_apart(path, papers, tmp_path / "out" / "image", papers.authority.key_path, "ec2")
    assert (tmp_path / "out" / "image").read_bytes() == image.read_bytes()
    nova_bundle("unbundle", path, "--output", tmp_path / "again", "--novarc", papers.novarc)
    assert (tmp_path / "again").read_bytes() == image.read_bytes()


def test_the_signature_is_one_that_the_cloud_accepts(papers: Papers, tmp_path: Path) -> None:
    nova_bundle("bundle", sparse_image(tmp_path / "disk.img"), "--directory", tmp_path, "--novarc", papers.novarc)
    read = manifest.read_manifest((tmp_path / "disk.manifest.xml").read_bytes())
    manifest.check_signature(read, papers.authority.certificates_of("ann"))


def test_equal_keys_and_images_make_equal_parts(tmp_path: Path) -> None:
    """An upload that was cut short relies on it."""
    image = sparse_image(tmp_path / "disk.img")
    secret = Secret()
    with open(image, "rb") as file:
        first, second = (hashlib.sha1(b"".join(Parts(file.fileno(), "x", secret))).digest() for _ in range(2))
        assert first == second != hashlib.sha1(b"".join(Parts(file.fileno(), "x", Secret()))).digest()


def test_memory_does_not_grow_with_the_image(papers: Papers, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    code = ("import re, sys; from nova import bundler; code = bundler.main(sys.argv[1:]); "
            "print(*re.findall('VmHWM: *([0-9]+) kB', open('/proc/self/status').read().replace(chr(9), ' ')), "
            "file=sys.stderr); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "nova-bundle", "bundle", image, "--directory", tmp_path / "b",
                           "--novarc", papers.novarc, "--quiet"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 140 << 10


def test_a_gzip_stream_made_in_pieces_is_one() -> None:
    data = [random.Random(5).randbytes(400_000), b"abc" * 900_000, b"", bytes(1 << 21), b"x"]
    assert run("gunzip", "-c", input=b"".join(making.gzipped(data))) == b"".join(data)


# -- what can go wrong ------------------------------------------------------------------------------------------------

def test_a_bundle_that_is_there_is_not_replaced_unasked(papers: Papers, tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "disk.img")
    words = ("bundle", image, "--directory", tmp_path / "b", "--novarc", papers.novarc)
    nova_bundle(*words)
    before = (tmp_path / "b" / "disk.manifest.xml").read_bytes()
    assert "--force" in nova_bundle(*words, code=1).stderr
    assert (tmp_path / "b" / "disk.manifest.xml").read_bytes() == before
    nova_bundle(*words, "--force")
    assert (tmp_path / "b" / "disk.manifest.xml").read_bytes() != before


def test_a_bundle_that_was_cut_short_leaves_no_manifest_and_is_made_anew(papers: Papers, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(3).randbytes(40 << 20))
    words = [sys.executable, ROOT / "bin" / "nova-bundle", "bundle", image, "--directory", tmp_path / "b", "--novarc",
             papers.novarc]
    process = subprocess.Popen(words)
    try:
        while not (tmp_path / "b" / "disk.part.001").exists():
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "b" / "disk.manifest.xml").exists()
    nova_bundle(*words[2:])
    nova_bundle("unbundle", tmp_path / "b" / "disk.manifest.xml", "--output", tmp_path / "again", "--novarc",
                papers.novarc)
    assert (tmp_path / "again").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(("damage", "reason"), [
    ("part", "digest of part"), ("missing", "No such file"), ("manifest", "signature"), ("other", "signature"),
    ("xml", "no XML")])
def test_a_damaged_bundle_is_not_unpacked(papers: Papers, tmp_path: Path, damage: str, reason: str) -> None:
    path, part = tmp_path / "disk.manifest.xml", tmp_path / "disk.part.000"
    nova_bundle("bundle", sparse_image(tmp_path / "disk.img"), "--directory", tmp_path, "--novarc", papers.novarc)
    novarc = papers.novarc
    if damage == "part":
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        part.unlink()
    elif damage == "manifest":
        path.write_bytes(path.read_bytes().replace(b"x86_64", b"x86_65"))
    elif damage == "other":
        (tmp_path / "other").mkdir()
        novarc = Papers(tmp_path / "other").novarc
    else:
        path.write_bytes(b"hello")
    done = nova_bundle("unbundle", path, "--output", tmp_path / "again", "--novarc", novarc, code=1)
    assert reason in done.stderr
    assert not list(tmp_path.glob("again*"))


def test_a_bundle_of_somebody_elses_key_is_not_decrypted(papers: Papers, tmp_path: Path) -> None:
    nova_bundle("bundle", sparse_image(tmp_path / "disk.img"), "--directory", tmp_path, "--novarc", papers.novarc)
    (tmp_path / "other").mkdir()
    done = nova_bundle("unbundle", tmp_path / "disk.manifest.xml", "--output", tmp_path / "again", "--no-verify",
                       "--novarc", Papers(tmp_path / "other").novarc, code=1)
    assert "not encrypted for this private key" in done.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["bundle", "/nonexistent/disk.img"], "No such file"), (["bundle", "/dev/null"], "not a file"),
    (["bundle", "{image}", "--name", "../x"], "--name"), (["bundle", "{image}", "--private-key", "/x"], "/x"),
    (["bundle", "{image}", "--private-key", "{image}"], "too large"),
    (["bundle", "{image}", "--private-key", "{cloud}"], "no RSA private key"),
    (["bundle", "{image}", "--cert", "{novarc}"], "no certificate"),
    (["bundle", "{image}", "--cert", "{cloud}"], "do not belong together"),
    (["bundle", "{image}", "--block-device", "sdb"], "VIRTUAL=DEVICE"),
    (["{image}"], "--bucket"), (["upload", "{image}", "--bucket", "b"], "manifest.xml"),
    (["delete", "x", "--bucket", "b"], "AWS_ENDPOINT_URL_S3 is not set"), ([], "required")])
def test_what_is_wrong_is_said_with_what_to_do(papers: Papers, tmp_path: Path, words: list[str], said: str) -> None:
    image = sparse_image(tmp_path / "disk.img")
    places = {"image": image, "cloud": papers.directory / "cacert.pem", "novarc": papers.novarc}
    done = nova_bundle(*(word.format(**places) for word in words), *(["--novarc", papers.novarc] if words else []),
                       code=2)
    assert said in done.stderr
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob("*.xml"))


def test_without_novarc_it_says_so(tmp_path: Path) -> None:
    done = nova_bundle("bundle", sparse_image(tmp_path / "disk.img"), code=2)
    assert "source novarc first" in done.stderr
    assert "nonexistent" in nova_bundle("bundle", tmp_path / "disk.img", "--novarc", "/nonexistent", code=2).stderr


def test_a_cloud_that_is_down_has_an_exit_code_of_its_own() -> None:
    done = nova_bundle("delete", "x", "--bucket", "b", code=3, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b",
                       AWS_ENDPOINT_URL_S3="http://127.0.0.1:1")
    assert "is the cloud up" in done.stderr


# -- the client's surroundings ----------------------------------------------------------------------------------------

def test_it_needs_nothing_of_the_daemons(papers: Papers, tmp_path: Path) -> None:
    """With boto3 and M2Crypto it works; what only servers need is not imported."""
    code = ("import sys\nfor name in ('tornado', 'twisted', 'redis', 'kombu', 'ldap3', 'libvirt', 'gflags', "
            "'cryptography'):\n    sys.modules[name] = None\n"
            "from nova import bundler\nsys.exit(bundler.main(sys.argv[1:]))")
    subprocess.run([sys.executable, "-c", code, "nova-bundle", "bundle", sparse_image(tmp_path / "disk.img"),
                    "--directory", tmp_path, "--novarc", papers.novarc], check=True, timeout=60, cwd=ROOT)


def test_the_page_of_the_manual_is_up_to_date() -> None:
    assert (ROOT / "docs" / "nova-bundle.rst").read_text() == docs.page(), \
        "python -m nova.bundler.docs > docs/nova-bundle.rst"


def test_novarc_is_read_as_a_shell_reads_it(papers: Papers) -> None:
    told = account.read_novarc(papers.novarc)
    bash = shutil.which("bash")
    assert bash is not None
    sourced = run(bash, "-c", f"cd {papers.directory}; . ./novarc; env").decode().splitlines()
    assert set(told.items()) == {tuple(line.split("=", 1)) for line in sourced if line.startswith(("EC2", "EUCA"))}


def test_progress_tells_rate_and_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return True
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen()
    bar = progress.Progress(screen, "uploading", 100 << 20)  # type: ignore[arg-type]
    bar.add(20 << 20, skipped=True)
    now[0] = 110.0
    bar.add(20 << 20)
    assert "uploading  40 % 40.0 MiB of 100.0 MiB, 2.0 MiB/s 0:30 left [####" in screen.text
