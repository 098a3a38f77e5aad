"""What a user gets: novarc as a shell reads it, and the files it names."""

import io
import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from nova import crypto, exception
from nova.auth import credentials
from nova.auth.models import User
from nova.flags import FLAGS

USER = User("ann", access="ACCESS", secret="a-s$cr'et \"`x`")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca")))
    authority.ensure()
    return authority


def environment(novarc: str) -> dict[str, str]:
    """What a shell that sources it has afterwards."""
    said = subprocess.run(["bash", "-c", 'set -eu; . "$1"; env -0', "bash", novarc], env={}, capture_output=True,
                          text=True, check=True, cwd="/").stdout
    return dict(line.split("=", 1) for line in said.split("\0") if line)


async def test_a_shell_gets_the_keys_and_urls_of_2010_and_of_today(authority: crypto.Authority, tmp_path: Path) -> None:
    FLAGS.api_host, FLAGS.ec2_port, FLAGS.s3_port, FLAGS.region = "cloud.example", 1, 2, "moon"
    found = environment(await credentials.write(USER, "proj", authority, str(tmp_path)))
    assert found["EC2_ACCESS_KEY"] == found["AWS_ACCESS_KEY_ID"] == "ACCESS:proj"
    assert found["EC2_SECRET_KEY"] == found["AWS_SECRET_ACCESS_KEY"] == USER.secret
    assert found["EC2_URL"] == found["AWS_ENDPOINT_URL_EC2"] == "http://cloud.example:1/services/Cloud"
    assert found["S3_URL"] == found["AWS_ENDPOINT_URL_S3"] == "http://cloud.example:2"
    assert found["AWS_DEFAULT_REGION"] == "moon"


async def test_the_files_that_novarc_names_are_there_wherever_it_is_sourced(authority: crypto.Authority,
                                                                           tmp_path: Path) -> None:
    found = environment(await credentials.write(USER, "proj", authority, str(tmp_path / "it's a $place")))
    for name in ("EC2_PRIVATE_KEY", "EC2_CERT", "NOVA_CERT", "EUCALYPTUS_CERT"):
        assert os.path.isfile(found[name])
    said = subprocess.run(["openssl", "verify", "-CAfile", found["NOVA_CERT"], found["EC2_CERT"]], capture_output=True)
    assert said.returncode == 0


async def test_only_their_owner_can_read_the_secrets(authority: crypto.Authority, tmp_path: Path) -> None:
    novarc = await credentials.write(USER, "proj", authority, str(tmp_path / "d"))
    for path, mode in ((novarc, 0o600), (tmp_path / "d/pk.pem", 0o600), (tmp_path / "d", 0o700)):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


async def test_written_again_the_key_is_kept_and_the_addresses_are_new(authority: crypto.Authority,
                                                                     tmp_path: Path) -> None:
    await credentials.write(USER, "proj", authority, str(tmp_path))
    key = (tmp_path / "pk.pem").read_bytes()
    FLAGS.ec2_port = 4321
    found = environment(await credentials.write(USER, "proj", authority, str(tmp_path)))
    assert ":4321/" in found["EC2_URL"]
    assert (tmp_path / "pk.pem").read_bytes() == key


async def test_nothing_half_written_is_left(authority: crypto.Authority, tmp_path: Path) -> None:
    await credentials.write(USER, "proj", authority, str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".s3cfg", "aws", "boto.cfg", "cacert.pem", "cert.pem", "novarc", "pk.pem"]


async def test_a_certificate_that_is_no_good_any_more_is_replaced(authority: crypto.Authority, tmp_path: Path) -> None:
    await credentials.write(USER, "proj", authority, str(tmp_path))
    before = (tmp_path / "cert.pem").read_bytes()
    authority.revoke_user(USER.id)
    await credentials.write(USER, "proj", authority, str(tmp_path))
    after = (tmp_path / "cert.pem").read_bytes()
    assert after != before and authority.is_good(after, USER.id, "proj")


# -- the zip ----------------------------------------------------------------------------------------------------------

@pytest.fixture
async def unzipped(authority: crypto.Authority, tmp_path: Path) -> Path:
    if shutil.which("unzip") is None:
        pytest.skip("no unzip here")
    directory = tmp_path / "it's a $place"
    directory.mkdir()
    (tmp_path / "nova.zip").write_bytes(await credentials.zip(USER, "proj", authority))
    subprocess.run(["unzip", "-q", str(tmp_path / "nova.zip"), "-d", str(directory)], check=True)
    return directory


async def test_the_zip_has_everything_and_keeps_secrets_from_others(unzipped: Path) -> None:
    modes = {str(path.relative_to(unzipped)): stat.S_IMODE(path.stat().st_mode)
             for path in unzipped.rglob("*") if path.is_file()}
    assert modes == {"novarc": 0o600, "pk.pem": 0o600, "cert.pem": 0o644, "cacert.pem": 0o644, "boto.cfg": 0o600,
                     ".s3cfg": 0o600, "aws/config": 0o644, "aws/credentials": 0o600}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("how", ["by its path", "from beside it", "through CDPATH"])
async def test_novarc_finds_its_own_directory(unzipped: Path, shell: str, how: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    place, name = {"by its path": ("/", str(unzipped / "novarc")), "from beside it": (str(unzipped), "./novarc"),
                   "through CDPATH": (str(unzipped.parent), f"{unzipped.name}/novarc")}[how]
    said = subprocess.run([shell, "-c", 'set -eu; . "$1"; env -0', shell, name], cwd=place, capture_output=True,
                          text=True, check=True, env={"PATH": os.environ["PATH"], "CDPATH": str(unzipped.parent)})
    found = dict(line.split("=", 1) for line in said.stdout.split("\0") if line)
    assert found["EC2_CERT"] == str(unzipped / "cert.pem")
    assert found["EC2_SECRET_KEY"] == USER.secret


async def test_another_shell_finds_the_files_from_beside_it(unzipped: Path) -> None:
    said = subprocess.run(["sh", "-c", '. ./novarc; echo "$EC2_CERT"'], cwd=unzipped, capture_output=True, text=True,
                          check=True)
    assert said.stdout.strip() == str(unzipped / "cert.pem")


async def test_each_zip_has_another_key(authority: crypto.Authority) -> None:
    keys = {zipfile.ZipFile(io.BytesIO(await credentials.zip(USER, "proj", authority))).read("pk.pem")
            for _ in range(2)}
    assert len(keys) == 2


async def test_where_the_project_signs_the_zip_has_the_chain(authority: crypto.Authority, tmp_path: Path) -> None:
    FLAGS.use_project_ca = True
    archive = zipfile.ZipFile(io.BytesIO(await credentials.zip(USER, "chained", authority)))
    archive.extractall(tmp_path)
    subprocess.run(["openssl", "verify", "-CAfile", str(tmp_path / "cacert.pem"), str(tmp_path / "cert.pem")],
                   check=True, capture_output=True)
    assert archive.read("cacert.pem").startswith(Path(authority.certificate_path).read_bytes())


async def test_urls_given_by_flag_are_those_in_the_files(authority: crypto.Authority) -> None:
    FLAGS.ec2_url, FLAGS.s3_url = "https://api.example/services/Cloud", "https://s3.example"
    archive = zipfile.ZipFile(io.BytesIO(await credentials.zip(USER, "proj", authority)))
    assert "export EC2_URL=https://api.example/services/Cloud\n" in archive.read("novarc").decode()
    assert "is_secure = True" in archive.read("boto.cfg").decode()
    assert "use_https = True" in archive.read(".s3cfg").decode()


@pytest.mark.parametrize("user", [User("a\nb", access="A", secret="s"), User("ann", access="A\r", secret="s"),
                                  User("ann", access="A", secret="s\n[x]")])
async def test_what_would_break_out_of_a_line_is_refused(authority: crypto.Authority, user: User) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await credentials.zip(user, "proj", authority)
