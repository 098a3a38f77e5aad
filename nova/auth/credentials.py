"""What a user gets to work with the cloud: one set of files, as a zip or in a directory.

novarc for shells, the user's key and certificate, the cloud's certificate, and what boto, s3cmd and the SDKs of today
read.  The files name each other relatively, so they work wherever they are put.
"""

import contextlib
import io
import os
import re
import shlex
import time
import zipfile
from urllib.parse import urlsplit

from nova import exception
from nova.auth.models import User
from nova.crypto import Authority
from nova.flags import FLAGS, DEFINE_string, check
from nova.process import in_thread, wait

DEFINE_string("ec2_url", "", "URL of the EC2 endpoint that credentials tell users; made of --api_host and --ec2_port "
                             "when empty")
DEFINE_string("s3_url", "", "URL of the S3 endpoint that credentials tell users; made of --api_host and --s3_port "
                            "when empty")
for _flag in ("ec2_url", "s3_url"):
    check(_flag, lambda url: not url or re.fullmatch(r"https?://[^/\s]+(/\S*)?", url) is not None,
          "it must be http://HOST[:PORT][/PATH] or https://...")

_NOVARC = """\
# Nova's credentials of user {user} in project {project}; source this file in bash or zsh.
# In another shell, do so in this file's own directory.
if [ -n "${{ZSH_VERSION:-}}" ]; then
    eval 'NOVA_KEY_DIR=${{(%):-%x}}'
else
    NOVA_KEY_DIR=${{BASH_SOURCE:-./novarc}}
fi
NOVA_KEY_DIR=$(CDPATH='' cd -- "$(dirname -- "$NOVA_KEY_DIR")" && pwd)
# the names of 2010
export EC2_ACCESS_KEY={access}
export EC2_SECRET_KEY={secret}
export EC2_URL={ec2_url}
export S3_URL={s3_url}
export EC2_USER_ID={project}
export EC2_PRIVATE_KEY="$NOVA_KEY_DIR/pk.pem"
export EC2_CERT="$NOVA_KEY_DIR/cert.pem"
export NOVA_CERT="$NOVA_KEY_DIR/cacert.pem"
export EUCALYPTUS_CERT="$NOVA_KEY_DIR/cacert.pem"
# today's
export AWS_ACCESS_KEY_ID={access}
export AWS_SECRET_ACCESS_KEY={secret}
export AWS_DEFAULT_REGION={region}
export AWS_ENDPOINT_URL_EC2={ec2_url}
export AWS_ENDPOINT_URL_S3={s3_url}
export AWS_ENDPOINT_URL_IAM={ec2_url}
export AWS_ENDPOINT_URL_STS={ec2_url}
"""

_BOTO = """\
# boto 2, user {user} in project {project}: BOTO_CONFIG=<this file>
# boto takes no ports from here; hand them over as in
#   boto.connect_ec2(port={ec2.port}, path='{ec2.path}')
#   boto.connect_s3(port={s3.port})
[Credentials]
aws_access_key_id = {access}
aws_secret_access_key = {secret}

[Boto]
is_secure = {secure}
ec2_region_name = {region}
ec2_region_endpoint = {ec2.host}

[s3]
host = {s3.host}
calling_format = boto.s3.connection.OrdinaryCallingFormat
"""

_S3CFG = """\
# s3cmd, user {user} in project {project}: s3cmd --config=<this file>
[default]
access_key = {access}
secret_key = {secret}
host_base = {s3.netloc}
host_bucket = {s3.netloc}
bucket_location = {region}
use_https = {secure}
"""

_AWS_CONFIG = """\
# The SDKs of today, user {user} in project {project}:
# AWS_CONFIG_FILE=<this file> AWS_SHARED_CREDENTIALS_FILE=<the file beside it> aws --profile {profile} ...
[profile {profile}]
region = {region}
services = {profile}
s3 =
    addressing_style = path

[services {profile}]
ec2 =
    endpoint_url = {ec2_url}
s3 =
    endpoint_url = {s3_url}
iam =
    endpoint_url = {ec2_url}
sts =
    endpoint_url = {ec2_url}
"""

_AWS_CREDENTIALS = """\
# user {user} in project {project}
[{profile}]
aws_access_key_id = {access}
aws_secret_access_key = {secret}
"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Files = dict[str, tuple[bytes, int]]


class _Url:
    """The parts of an endpoint's URL, as the templates want them."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self.scheme, self.netloc, self.path = parts.scheme, parts.netloc, parts.path or "/"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)


def access_key(user: User, project: str) -> str:
    """The access key as clients send it: ``<access>:<project>``."""
    return f"{user.access}:{project}"


def profile(project: str) -> str:
    """The name of the profile in the files under aws/."""
    return "nova-" + re.sub(r"[^A-Za-z0-9._-]", "_", project)


async def zip(user: User, project: str, authority: Authority) -> bytes:
    """A zip with all that a user needs in a project: each time with a new key and certificate.

    :raises exception.InvalidParameterValue: the names or keys cannot stand in the files
    """
    return await wait(in_thread(_zip, _texts(user, project), authority, user.id, project))


async def write(user: User, project: str, authority: Authority, directory: str) -> str:
    """Write the same files, but keep the user's key and certificate that are there while they are good.

    :param directory: made when it does not exist; only its owner gets to read the secrets in it
    :returns: the path of novarc
    """
    await wait(in_thread(_write_all, _texts(user, project), authority, user.id, project, directory))
    return os.path.join(directory, "novarc")


def _texts(user: User, project: str) -> Files:
    """The files that are text, with their modes, novarc the last."""
    base = f"http://{FLAGS.api_host}"
    ec2_url = FLAGS.ec2_url or f"{base}:{FLAGS.ec2_port}/services/Cloud"
    s3_url = FLAGS.s3_url or f"{base}:{FLAGS.s3_port}"
    access = access_key(user, project)
    for text in (user.id, project, access, user.secret):
        if _CONTROL.search(text):
            raise exception.InvalidParameterValue("a name or key has characters that no configuration file can hold")
    ec2, s3 = _Url(ec2_url), _Url(s3_url)
    values = {"user": user.id, "project": project, "region": FLAGS.region, "profile": profile(project), "ec2": ec2,
              "s3": s3, "ec2_url": ec2_url, "s3_url": s3_url, "access": access, "secret": user.secret}

    def fill(template: str, secure: bool = False, escape_percent: bool = False, quote: bool = False) -> bytes:
        own = {**values, "secure": secure}
        if escape_percent:  # Python's ConfigParser takes %(name)s for a reference
            own |= {name: str(own[name]).replace("%", "%%") for name in ("access", "secret")}
        if quote:
            own |= {name: shlex.quote(str(own[name])) for name in ("access", "secret", "project", "ec2_url", "s3_url",
                                                                   "region")}
        return template.format(**own).encode()
    return {
        "boto.cfg": (fill(_BOTO, secure=ec2.scheme == "https", escape_percent=True), 0o600),
        ".s3cfg": (fill(_S3CFG, secure=s3.scheme == "https"), 0o600),
        "aws/config": (fill(_AWS_CONFIG), 0o644),
        "aws/credentials": (fill(_AWS_CREDENTIALS), 0o600),
        "novarc": (fill(_NOVARC, quote=True), 0o600),
    }


def _issue(authority: Authority, user: str, project: str) -> Files:
    key, certificate = authority.issue(user, project)
    return {"pk.pem": (key, 0o600), "cert.pem": (certificate, 0o644)}


def _zip(texts: Files, authority: Authority, user: str, project: str) -> bytes:
    files: Files = {**_issue(authority, user, project), "cacert.pem": (authority.chain(project), 0o644), **texts}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (data, mode) in files.items():
            entry = zipfile.ZipInfo(name, time.localtime()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system, entry.external_attr = 3, (0o100000 | mode) << 16  # Unix: a regular file with this mode
            archive.writestr(entry, data)
    return made.getvalue()


def _write_all(texts: Files, authority: Authority, user: str, project: str, directory: str) -> None:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    files: Files = {}
    if not _has_good_certificate(authority, user, project, directory):
        files |= _issue(authority, user, project)
        with contextlib.suppress(FileNotFoundError):  # or a death between the two would leave them unlike for ever
            os.unlink(os.path.join(directory, "cert.pem"))
    files["cacert.pem"] = authority.chain(project), 0o644
    for name, (data, mode) in {**files, **texts}.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        _write(path, data, mode)


def _has_good_certificate(authority: Authority, user: str, project: str, directory: str) -> bool:
    try:
        with open(os.path.join(directory, "cert.pem"), "rb") as file:
            certificate = file.read()
    except FileNotFoundError:
        return False
    return os.path.exists(os.path.join(directory, "pk.pem")) and authority.is_good(certificate, user, project)


def _write(path: str, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    os.rename(path + ".new", path)
