"""Clients that are commands: aws, s3cmd and rclone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.s3.client import PATIENCE, Endpoint, Seen
from tests.clients.support import run


def _found(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is not installed; run_tests.sh installs it")
    return path


class AwsCommand:
    """The aws command, version 1, with novarc's environment: `aws s3` where that can do it, else `aws s3api`."""

    double_slashes = True

    def __init__(self, endpoint: Endpoint, home: Path):
        self._environment = endpoint.environment(home)
        self._home = home

    def command(self, *arguments: str) -> str:
        """What the command with these arguments says."""
        return run(str(Path(sys.prefix, "bin", "aws")), *arguments, environment=self._environment)

    def _api(self, *arguments: str) -> Any:
        said = self.command("s3api", *arguments, "--output", "json")
        return json.loads(said) if said else None

    def make_bucket(self, bucket: str) -> None:
        self.command("s3", "mb", f"s3://{bucket}")

    def remove_bucket(self, bucket: str) -> None:
        self.command("s3", "rb", f"s3://{bucket}")

    def buckets(self) -> list[str]:
        return [line.split()[2] for line in self.command("s3", "ls").splitlines()]

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        options = [*(["--content-type", content_type] if content_type else []),
                   *(["--metadata", json.dumps(metadata)] if metadata else [])]
        self.command("s3", "cp", str(path), f"s3://{bucket}/{key}", *options)

    def get(self, bucket: str, key: str, path: Path) -> None:
        self.command("s3", "cp", f"s3://{bucket}/{key}", str(path))

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes:
        file = self._home / "range"
        self._api("get-object", "--bucket", bucket, "--key", key, "--range", f"bytes={first}-{last}", str(file))
        return file.read_bytes()

    def head(self, bucket: str, key: str) -> Seen:
        found = self._api("head-object", "--bucket", bucket, "--key", key)
        return Seen(found["ContentLength"], found["ETag"].strip('"'), found["ContentType"], found["Metadata"])

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        return [line.split(None, 3)[3]
                for line in self.command("s3", "ls", "--recursive", f"s3://{bucket}/{prefix}").splitlines()]

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        lines = self.command("s3", "ls", f"s3://{bucket}/{prefix}").splitlines()
        mark = "PRE "
        return ([prefix + line.split(None, 3)[3] for line in lines if not line.lstrip().startswith(mark)],
                [prefix + line.lstrip().removeprefix(mark) for line in lines if line.lstrip().startswith(mark)])

    def copy(self, bucket: str, key: str, new: str) -> None:
        self.command("s3", "cp", f"s3://{bucket}/{key}", f"s3://{bucket}/{new}")

    def delete(self, bucket: str, key: str) -> None:
        self.command("s3", "rm", f"s3://{bucket}/{key}")

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        answer = self._api("delete-objects", "--bucket", bucket, "--delete",
                           json.dumps({"Objects": [{"Key": key} for key in keys]}))
        assert "Errors" not in answer and sorted(found["Key"] for found in answer["Deleted"]) == sorted(keys)

    def presign_get(self, bucket: str, key: str) -> str:
        return self.command("s3", "presign", f"s3://{bucket}/{key}").strip()

    def sync_up(self, directory: Path, bucket: str) -> None:
        self.command("s3", "sync", "--delete", str(directory), f"s3://{bucket}")

    def sync_down(self, bucket: str, directory: Path) -> None:
        self.command("s3", "sync", "--delete", f"s3://{bucket}", str(directory))

    def close(self) -> None:
        """It has nothing to close."""


class S3cmd:
    """s3cmd with a .s3cfg like that of the credentials; it checks MD5 sums by itself."""

    double_slashes = True

    def __init__(self, endpoint: Endpoint, home: Path):
        self._command = [_found("s3cmd"), "--config", str(home / "s3cfg"), "--no-progress"]
        self._environment = endpoint.environment(home)
        (home / "s3cfg").write_text(
            f"[default]\naccess_key = {endpoint.access}\nsecret_key = {endpoint.secret}\n"
            f"host_base = {endpoint.address}\nhost_bucket = {endpoint.address}\n"
            f"bucket_location = {endpoint.region}\nuse_https = {bool(endpoint.ca)}\n"
            + (f"ca_certs_file = {endpoint.ca}\nsignurl_use_https = True\n" if endpoint.ca else ""))

    def command(self, *arguments: str) -> str:
        """What the command with these arguments says."""
        return run(*self._command, *arguments, environment=self._environment)

    def make_bucket(self, bucket: str) -> None:
        self.command("mb", f"s3://{bucket}")

    def remove_bucket(self, bucket: str) -> None:
        self.command("rb", f"s3://{bucket}")

    def buckets(self) -> list[str]:
        return [line.split("s3://")[1] for line in self.command("ls").splitlines()]

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        options = [f"--add-header=x-amz-meta-{name}:{value}" for name, value in (metadata or {}).items()]
        if content_type:
            options.append(f"--mime-type={content_type}")
        self.command("put", *options, str(path), f"s3://{bucket}/{key}")

    def get(self, bucket: str, key: str, path: Path) -> None:
        self.command("get", f"s3://{bucket}/{key}", str(path))

    def head(self, bucket: str, key: str) -> Seen:
        said = {}
        for line in self.command("info", f"s3://{bucket}/{key}").splitlines()[1:]:
            name, _, value = line.strip().partition(":")
            said[name] = value.strip()
        metadata = {name.removeprefix("x-amz-meta-"): value for name, value in said.items()
                    if name.startswith("x-amz-meta-") and name != "x-amz-meta-s3cmd-attrs"}
        return Seen(int(said["File size"]), said["MD5 sum"], said["MIME type"], metadata)

    def _listed(self, *arguments: str) -> list[str]:
        return [line.split("s3://", 1)[1].split("/", 1)[1] for line in self.command("ls", *arguments).splitlines()]

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        return self._listed("--recursive", f"s3://{bucket}/{prefix}")

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        found = self._listed(f"s3://{bucket}/{prefix}")
        return [one for one in found if not one.endswith("/")], [one for one in found if one.endswith("/")]

    def copy(self, bucket: str, key: str, new: str) -> None:
        self.command("cp", f"s3://{bucket}/{key}", f"s3://{bucket}/{new}")

    def delete(self, bucket: str, key: str) -> None:
        self.command("del", f"s3://{bucket}/{key}")

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        self.command("del", *[f"s3://{bucket}/{key}" for key in keys])

    def presign_get(self, bucket: str, key: str) -> str:
        return self.command("signurl", f"s3://{bucket}/{key}", "+600").strip()

    def sync_up(self, directory: Path, bucket: str) -> None:
        self.command("sync", "--delete-removed", f"{directory}/", f"s3://{bucket}/")

    def sync_down(self, bucket: str, directory: Path) -> None:
        self.command("sync", "--delete-removed", f"s3://{bucket}/", f"{directory}/")

    def close(self) -> None:
        """It has nothing to close."""


class Rclone:
    """rclone, all of whose settings are environment variables; it checks MD5 sums by itself.

    Left alone it uploads in parts from 200 MiB on; here it does so from 8 MiB on.
    """

    double_slashes = False

    def __init__(self, endpoint: Endpoint, home: Path, **settings: str):
        self._rclone_path = _found("rclone")
        self._environment = {
            **self._novarc(endpoint, home), "RCLONE_CONFIG_NOVA_TYPE": "s3", "RCLONE_CONFIG_NOVA_PROVIDER": "Other",
            "RCLONE_CONFIG_NOVA_ENDPOINT": endpoint.url, "RCLONE_CONFIG_NOVA_REGION": endpoint.region,
            "RCLONE_CONFIG_NOVA_ACCESS_KEY_ID": endpoint.access,
            "RCLONE_CONFIG_NOVA_SECRET_ACCESS_KEY": endpoint.secret, "RCLONE_S3_UPLOAD_CUTOFF": "8Mi",
            "RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1", **settings}
        self._home = home

    @staticmethod
    def _novarc(endpoint: Endpoint, home: Path) -> dict[str, str]:
        """What rclone takes of it: it takes the authority from SSL_CERT_FILE, and ends where it finds AWS_CA_BUNDLE."""
        return {name: value for name, value in endpoint.environment(home).items() if name != "AWS_CA_BUNDLE"}

    def command(self, *arguments: str) -> str:
        """What the command with these arguments says."""
        return run(self._rclone_path, *arguments, environment=self._environment)

    def make_bucket(self, bucket: str) -> None:
        self.command("mkdir", f"nova:{bucket}")

    def remove_bucket(self, bucket: str) -> None:
        self.command("rmdir", f"nova:{bucket}")

    def buckets(self) -> list[str]:
        return [line.removesuffix("/") for line in self.command("lsf", "nova:").splitlines()]

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        given = {**({"content-type": content_type} if content_type else {}), **(metadata or {})}
        options = [f"--metadata-set={name}={value}" for name, value in given.items()]
        self.command("copyto", *(["--metadata", *options] if given else []), str(path), f"nova:{bucket}/{key}")

    def get(self, bucket: str, key: str, path: Path) -> None:
        self.command("copyto", f"nova:{bucket}/{key}", str(path))

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes:
        done = subprocess.run([self._rclone_path, "cat", f"--offset={first}", f"--count={last - first + 1}",
                               f"nova:{bucket}/{key}"], env=self._environment, capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        found = self.command("lsf", "--recursive", "--files-only", f"nova:{bucket}/{prefix}").splitlines()
        return sorted(prefix + one for one in found)

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        found = sorted(prefix + one for one in self.command("lsf", f"nova:{bucket}/{prefix}").splitlines())
        return [one for one in found if not one.endswith("/")], [one for one in found if one.endswith("/")]

    def copy(self, bucket: str, key: str, new: str) -> None:
        self.command("copyto", f"nova:{bucket}/{key}", f"nova:{bucket}/{new}")

    def delete(self, bucket: str, key: str) -> None:
        self.command("deletefile", f"nova:{bucket}/{key}")

    def delete_many(self, bucket: str, keys: list[str]) -> None:
        names = self._home / "names"
        names.write_text("\n".join(keys) + "\n")
        self.command("delete", "--files-from-raw", str(names), f"nova:{bucket}")

    def presign_get(self, bucket: str, key: str) -> str:
        return self.command("link", "--expire=10m", f"nova:{bucket}/{key}").strip()

    def head(self, bucket: str, key: str) -> Seen:
        found = json.loads(self.command("lsjson", "--stat", "--hash", "--metadata", f"nova:{bucket}/{key}"))
        own = ("content-type", "mtime", "btime", "tier")
        return Seen(found["Size"], found["Hashes"]["md5"], found["MimeType"],
                    {name: value for name, value in found["Metadata"].items() if name not in own})

    def sync_up(self, directory: Path, bucket: str) -> None:
        self.command("sync", str(directory), f"nova:{bucket}")
        self.command("check", str(directory), f"nova:{bucket}")

    def sync_down(self, bucket: str, directory: Path) -> None:
        self.command("sync", f"nova:{bucket}", str(directory))
        self.command("check", f"nova:{bucket}", str(directory))

    def close(self) -> None:
        """It has nothing to close."""
