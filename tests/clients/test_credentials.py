"""The zip of credentials in the hands of real clients: unpacked anywhere, it works with each of them as it is."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nova import datastore
from nova.auth import credentials
from nova.auth.manager import AuthManager
from nova.crypto import Authority
from nova.flags import FLAGS
from tests.clients.support import Cloud, run
from tests.conftest import environment_without_aws

#: Debian's Python, which has boto 2
DEBIAN_PYTHON = "/usr/bin/python3"
AWS = shutil.which("aws", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "aws"


@pytest.fixture
async def unzipped(either_cloud: Cloud, tmp_path: Path) -> Path:
    """The administrator's zip, unpacked."""
    store = datastore.open_store(f"unix://{either_cloud.state_path}/redis/redis.sock")
    FLAGS.ec2_port, FLAGS.s3_port = either_cloud.ec2_port, either_cloud.s3_port
    try:
        FLAGS.ca_path = str(either_cloud.state_path / "ca")
        with either_cloud.slapd.used() if either_cloud.slapd else contextlib.nullcontext():
            auth = AuthManager(store)
        user = await auth.user("admin")
        await auth.stop()
        data = await credentials.zip(user, "admin", Authority(str(either_cloud.state_path / "ca")))
    finally:
        await store.close()
    (tmp_path / "nova.zip").write_bytes(data)
    run("unzip", "-q", str(tmp_path / "nova.zip"), "-d", str(tmp_path / "my cloud"))
    return tmp_path / "my cloud"


def clean_environment(home: Path) -> dict[str, str]:
    """An environment with nothing of AWS, in a home directory with nothing in it."""
    return {**environment_without_aws(), "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true", "AWS_PAGER": ""}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_aws_works_where_novarc_was_sourced(unzipped: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    said = run(shell, "-c", '. "$1" && "$2" ec2 describe-regions --output text && "$2" s3 ls', shell,
               str(unzipped / "novarc"), AWS, environment=clean_environment(tmp_path))
    assert "REGIONS" in said and "starter" in said


@pytest.mark.both_directories
def test_aws_works_with_the_profile(unzipped: Path, tmp_path: Path) -> None:
    environment = {**clean_environment(tmp_path), "AWS_CONFIG_FILE": str(unzipped / "aws/config"),
                   "AWS_SHARED_CREDENTIALS_FILE": str(unzipped / "aws/credentials")}

    def aws(*words: str) -> str:
        return run(AWS, "--profile", "nova-admin", "--output", "text", *words, environment=environment)
    assert "REGIONS" in aws("ec2", "describe-regions")
    assert "admin" in aws("sts", "get-caller-identity")
    (tmp_path / "file").write_bytes(b"by the profile")
    aws("s3", "mb", "s3://profile")
    aws("s3", "cp", str(tmp_path / "file"), "s3://profile/key")
    assert aws("s3", "cp", "s3://profile/key", "-") == "by the profile"


_BOTO = """
import sys, boto
ec2 = boto.connect_ec2(port=int(sys.argv[1]), path="/services/Cloud")
print([region.name for region in ec2.get_all_regions()])
s3 = boto.connect_s3(port=int(sys.argv[2]))
key = s3.create_bucket("by-boto").new_key("a key")
key.set_contents_from_string("by boto")
print(s3.get_bucket("by-boto").get_key("a key").get_contents_as_string())
"""


@pytest.mark.both_directories
def test_boto_2_works_with_boto_cfg(either_cloud: Cloud, unzipped: Path, tmp_path: Path) -> None:
    if subprocess.run([DEBIAN_PYTHON, "-c", "import boto"], capture_output=True).returncode != 0:
        pytest.skip("no boto 2 here")
    environment = {**clean_environment(tmp_path), "BOTO_CONFIG": str(unzipped / "boto.cfg")}
    said = run(DEBIAN_PYTHON, "-c", _BOTO, str(either_cloud.ec2_port), str(either_cloud.s3_port),
               environment=environment)
    assert "['nova']" in said and "by boto" in said


@pytest.mark.both_directories
@pytest.mark.parametrize("version", [[], ["--signature-v2"]], ids=["signature v4", "signature v2"])
def test_s3cmd_works_with_s3cfg(unzipped: Path, tmp_path: Path, version: list[str]) -> None:
    if shutil.which("s3cmd") is None:
        pytest.skip("no s3cmd here")
    bucket = "s3://by-s3cmd-v" + ("2" if version else "4")

    def s3cmd(*words: str) -> str:
        return run("s3cmd", "--config", str(unzipped / ".s3cfg"), *version, *words,
                   environment=clean_environment(tmp_path))
    (tmp_path / "file").write_bytes(b"by s3cmd")
    s3cmd("mb", bucket)
    s3cmd("put", str(tmp_path / "file"), f"{bucket}/a key")
    assert "a key" in s3cmd("ls", bucket)
    s3cmd("get", f"{bucket}/a key", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"by s3cmd"
    s3cmd("del", f"{bucket}/a key")
    s3cmd("rb", bucket)
