"""What single commands can do beyond what all clients can."""

from pathlib import Path

import pytest

from tests.clients.s3.client import MIB, Endpoint, random_bytes
from tests.clients.s3.commands import AwsCommand, Rclone, S3cmd
from tests.clients.s3.conftest import new_name, part_sizes
from tests.clients.s3.libraries import Boto3


@pytest.fixture
def aws(make_client) -> AwsCommand:
    return make_client("aws")


@pytest.fixture
def s3cmd(make_client) -> S3cmd:
    return make_client("s3cmd")


@pytest.fixture
def rclone(make_client) -> Rclone:
    return make_client("rclone")


def make_tree(directory: Path) -> list[str]:
    """Some files; their paths in the directory."""
    names = ["one", "a b+ü/three", "deep/er/two"]
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return sorted(names)


def test_aws_moves_and_removes_all(aws: AwsCommand, witness: Boto3, tmp_path: Path):
    bucket, names = new_name(), make_tree(tmp_path / "tree")
    aws.make_bucket(bucket)
    aws.command("s3", "cp", "--recursive", str(tmp_path / "tree"), f"s3://{bucket}/here/")
    aws.command("s3", "mv", "--recursive", f"s3://{bucket}/here/", f"s3://{bucket}/there/")
    assert witness.keys(bucket) == [f"there/{name}" for name in names]
    aws.command("s3", "rb", "--force", f"s3://{bucket}")
    assert bucket not in witness.buckets()


def test_s3cmd_tells_about_a_bucket(s3cmd: S3cmd, endpoint: Endpoint):
    """It asks for location, access control list, policy, CORS and more, set or not."""
    bucket = new_name()
    s3cmd.make_bucket(bucket)
    said = [line.split(None, 1) for line in s3cmd.command("info", f"s3://{bucket}").splitlines()[1:]]
    assert ["Location:", endpoint.region] in said and ["Policy:", "none"] in said and ["CORS:", "none"] in said
    assert any(line[0] == "ACL:" and line[1].endswith(": FULL_CONTROL") for line in said)
    s3cmd.remove_bucket(bucket)


def test_s3cmd_goes_on_where_a_download_broke_off(s3cmd: S3cmd, witness: Boto3, bucket: str, tmp_path: Path):
    data = random_bytes(MIB, "broken off")
    witness.api.put_object(Bucket=bucket, Key="key", Body=data)
    (tmp_path / "file").write_bytes(data[:1000])
    s3cmd.command("get", "--continue", f"s3://{bucket}/key", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == data


def test_s3cmd_with_signature_version_2(s3cmd: S3cmd, witness: Boto3, bucket: str, tmp_path: Path):
    data = random_bytes(6 * MIB, "version 2")
    (tmp_path / "file").write_bytes(data)
    url = f"s3://{bucket}/a b+ü"
    s3cmd.command("put", "--signature-v2", "--multipart-chunk-size-mb=5", str(tmp_path / "file"), url)
    assert part_sizes(witness, bucket, "a b+ü") == [5 * MIB, MIB]
    s3cmd.command("get", "--signature-v2", url, str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_rclone_with_signature_version_2(endpoint: Endpoint, witness: Boto3, bucket: str, tmp_path: Path):
    """It signs `?uploads` and sends `?uploads=`."""
    rclone = Rclone(endpoint, tmp_path, RCLONE_S3_V2_AUTH="true")
    data = random_bytes(9 * MIB, "rclone, version 2")
    (tmp_path / "file").write_bytes(data)
    rclone.put(bucket, "a b+ü", tmp_path / "file")
    assert part_sizes(witness, bucket, "a b+ü") == [5 * MIB, 4 * MIB]
    rclone.get(bucket, "a b+ü", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_rclone_gives_up_uploads_and_removes_all(rclone: Rclone, witness: Boto3, tmp_path: Path):
    bucket, names = new_name(), make_tree(tmp_path / "tree")
    rclone.make_bucket(bucket)
    rclone.command("copy", str(tmp_path / "tree"), f"nova:{bucket}/here")
    rclone.command("move", f"nova:{bucket}/here", f"nova:{bucket}/there")
    assert witness.keys(bucket) == [f"there/{name}" for name in names]
    witness.api.create_multipart_upload(Bucket=bucket, Key="never completed")
    assert "never completed" in rclone.command("backend", "list-multipart-uploads", f"nova:{bucket}")
    rclone.command("backend", "cleanup", f"nova:{bucket}", "-o", "max-age=0s")
    assert witness.api.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    rclone.command("purge", f"nova:{bucket}")
    assert bucket not in witness.buckets()
