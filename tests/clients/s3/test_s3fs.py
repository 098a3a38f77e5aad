"""s3fs: a bucket as a file system."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.s3.client import MIB, PATIENCE, Endpoint, etag_of_parts, md5, random_bytes
from tests.clients.s3.conftest import WAYS, part_sizes
from tests.clients.s3.libraries import Boto3
from tests.clients.support import need_isolation
from tests.conftest import wait_until


@pytest.fixture
def mounted(endpoint: Endpoint, bucket: str, tmp_path: Path) -> Iterator[Path]:
    """The test's bucket, mounted with s3fs's default settings."""
    need_isolation()
    if shutil.which("s3fs") is None or not Path("/dev/fuse").exists():
        pytest.skip("no s3fs (run_tests.sh installs it), or no /dev/fuse")
    password, place, log = tmp_path / "passwd-s3fs", tmp_path / "bucket", tmp_path / "log"
    # the form of the file for an access key with a colon in it
    password.write_text(f"AWSAccessKeyId={endpoint.access}\nAWSSecretKey={endpoint.secret}\n")
    password.chmod(0o600)
    place.mkdir()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["s3fs", bucket, str(place), "-f", "-o", f"url={endpoint.url},passwd_file={password}",
             "-o", "use_path_request_style"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=endpoint.environment(tmp_path))
    try:
        wait_until(lambda: place.is_mount() or process.poll() is not None, PATIENCE, "s3fs")
        assert process.poll() is None, log.read_text()
        yield place
    finally:
        if process.poll() is None:
            subprocess.run(["umount", str(place)], check=True, timeout=PATIENCE)
            process.wait(PATIENCE)


@pytest.mark.ways(*WAYS)
def test_files_and_directories(mounted: Path, witness: Boto3, bucket: str):
    file = mounted / "a b+ü"
    file.write_bytes(b"one line\n")
    assert witness.api.get_object(Bucket=bucket, Key="a b+ü")["Body"].read() == b"one line\n"
    with file.open("ab") as more:
        more.write(b"another\n")
    assert witness.head(bucket, "a b+ü").etag == md5(b"one line\nanother\n")
    file.chmod(0o640)
    os.chown(file, 1234, 5678)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    status = file.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid, status.st_mtime) == (0o640, 1234, 5678, 1_000_000_000)
    assert witness.head(bucket, "a b+ü").metadata["uid"] == "1234"

    (mounted / "folder").mkdir()
    file.rename(mounted / "folder/file")
    (mounted / "link").symlink_to("folder/file")
    assert (mounted / "link").read_bytes() == b"one line\nanother\n"
    (mounted / "folder").rename(mounted / "renamed")
    assert sorted(witness.keys(bucket)) == ["link", "renamed/", "renamed/file"]
    assert sorted(path.name for path in mounted.iterdir()) == ["link", "renamed"]
    with (mounted / "renamed/file").open("r+b") as part:
        part.seek(4)
        part.write(b"LINE")
    assert witness.api.get_object(Bucket=bucket, Key="renamed/file")["Body"].read() == b"one LINE\nanother\n"

    (mounted / "link").unlink()
    shutil.rmtree(mounted / "renamed")
    assert witness.keys(bucket) == [] and list(mounted.iterdir()) == []


def test_what_others_put_is_there(mounted: Path, witness: Boto3, bucket: str):
    witness.api.put_object(Bucket=bucket, Key="by another/deep/key", Body=b"x" * 1000)
    assert (mounted / "by another/deep/key").read_bytes() == b"x" * 1000


def test_large_file(mounted: Path, witness: Boto3, bucket: str, tmp_path: Path):
    """It goes up in parts; renaming it copies the parts."""
    data = random_bytes(25 * MIB + 1, "s3fs")
    (tmp_path / "file").write_bytes(data)
    shutil.copyfile(tmp_path / "file", mounted / "large")
    sizes = part_sizes(witness, bucket, "large")
    assert len(sizes) > 1 and witness.head(bucket, "large").etag == etag_of_parts(data, sizes)
    (mounted / "large").rename(mounted / "renamed")
    witness.get(bucket, "renamed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data == (mounted / "renamed").read_bytes()
