"""The examples of the pages about the object store, taken from them and run as they stand there."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import boto3
import pytest

from tests.clients.support import ROOT, Cloud


def blocks(page: str) -> list[str]:
    """The literal blocks of a page, in order."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"::\n\n((?:(?:    .*)?\n)+)", text)
    return [textwrap.dedent(block).strip("\n") for block in found]


def commands(block: str) -> str:
    """What a block has its reader type: what follows `$ `; the rest is what is answered."""
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))


@pytest.fixture
def s3(fake_cloud: Cloud):
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{fake_cloud.s3_port}", region_name="nova",
                        aws_access_key_id=fake_cloud.access, aws_secret_access_key=fake_cloud.secret)


def shell(cloud: Cloud, script: str, directory: Path) -> str:
    """Run a script as the page has it, where this cloud is the one at port 3333 that keeps its state in /var/lib/nova;
    s3cmd's file is the one that the cloud made.  Returns what it says."""
    (directory / ".s3cfg").write_text((cloud.state_path / ".s3cfg").read_text())
    script = script.replace(":3333", f":{cloud.s3_port}").replace("/var/lib/nova", str(cloud.state_path))
    flags = f'--state_path={cloud.state_path} --redis_url=unix://{cloud.state_path}/redis/redis.sock'
    header = f'nova-manage() {{ "{sys.executable}" "{ROOT}/bin/nova-manage" {flags} "$@"; }}\n'
    environment = {**cloud.child_environment(), "HOME": str(directory), "HOST": "127.0.0.1",
                   "PATH": f"{Path(sys.prefix, 'bin')}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", header + script], cwd=directory, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_access(fake_cloud: Cloud, s3, tmp_path: Path):
    everybody, inbox, shut = blocks("objectstore-access.rst")
    s3.create_bucket(Bucket="lab")
    s3.put_object(Bucket="lab", Key="page.html", Body=b"<p>for everybody</p>")
    assert "<p>for everybody</p>" in shell(fake_cloud, everybody, tmp_path)
    shell(fake_cloud, inbox, tmp_path)
    said = shell(fake_cloud, shut, tmp_path)
    assert '"IsPublic": false' in said
    assert s3.get_public_access_block(Bucket="lab")["PublicAccessBlockConfiguration"]["RestrictPublicBuckets"]
    s3.delete_object(Bucket="lab", Key="page.html")
    s3.delete_bucket(Bucket="lab")


def test_a_form(fake_cloud: Cloud, s3, tmp_path: Path):
    python, curl = blocks("objectstore-features.rst")
    s3.create_bucket(Bucket="photos")
    (tmp_path / "cat.jpg").write_bytes(b"a cat")
    program = f"{python}\nprint(*(f\"-F '{{n}}={{v}}'\" for n, v in form['fields'].items() if n not in ('key', 'acl')))"
    fields = shell(fake_cloud, f"{sys.executable} - <<'END'\n{program}\nEND", tmp_path).strip()
    script = curl.replace("-F policy=... -F ...", fields)
    assert script != curl
    shell(fake_cloud, script.replace("curl", "curl --fail-with-body", 1), tmp_path)
    assert s3.get_object(Bucket="photos", Key="up/cat.jpg")["Body"].read() == b"a cat"
    s3.delete_object(Bucket="photos", Key="up/cat.jpg")
    s3.delete_bucket(Bucket="photos")


def test_the_operators_commands(fake_cloud: Cloud, s3, tmp_path: Path):
    attribute, reindex, verify, backup = map(commands, blocks("objectstore.rst"))
    s3.create_bucket(Bucket="photos")
    s3.put_object(Bucket="photos", Key="a.jpg", Body=b"a")
    files = fake_cloud.state_path / "objects"
    [file] = [path for path in files.glob("??/o-*")
              if path.suffix != ".meta" and b'"bucket":"photos"' in os.getxattr(path, "user.nova")]
    script, count = re.subn(r"objects/58/o-[0-9a-f.]+", str(file), attribute)
    assert count == 1 and '"kind":"object"' in shell(fake_cloud, script, tmp_path)
    # there is no terminal at which it could ask
    assert "files that nothing needs" in shell(fake_cloud, f"{reindex} --yes", tmp_path)
    assert "read 1 object" in shell(fake_cloud, verify, tmp_path)
    shell(fake_cloud, backup.replace("/mnt/backup/", f"{tmp_path}/"), tmp_path)
    copy = tmp_path / "objects" / file.relative_to(files)
    assert os.getxattr(copy, "user.nova") == os.getxattr(file, "user.nova")
    s3.delete_object(Bucket="photos", Key="a.jpg")
    s3.delete_bucket(Bucket="photos")
