"""The object store that the tests in this folder share, ways to reach it, and the clients."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.clients.s3.client", "tests.clients.s3.libraries", "tests.clients.s3.commands")

from nova.crypto.authority import Authority  # noqa: E402
from tests.clients.s3.client import Client, Endpoint  # noqa: E402
from tests.clients.s3.commands import AwsCommand, Rclone, S3cmd  # noqa: E402
from tests.clients.s3.libraries import Boto2, Boto3, JavaScript, Minio  # noqa: E402
from tests.functional import s3  # noqa: E402
from tests.functional.nginx_server import Nginx  # noqa: E402

CLIENTS: dict[str, Callable[[Endpoint, Path], Client]] = {
    "boto3": Boto3, "aws": AwsCommand, "boto2": Boto2, "s3cmd": S3cmd, "rclone": Rclone,  # type: ignore[dict-item]
    "minio": Minio, "javascript": JavaScript}
#: ways to the object store; tests take the first two where their mark `ways` says nothing
WAYS = "direct", "nginx", "tls"
_SECRET = "only-nginx-knows"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """An object store of these tests' own, in whose log is no error of its own at the end."""
    directory = tmp_path_factory.mktemp("objectstore")
    with s3.own_stores(directory) as redis:
        # the URLs of many clients are tampered with here, all from one address, which would lock it out
        server = s3.start(redis.url, directory, f"--proxy_secret={_SECRET}", "--lockout_attempts=0")
        yield server
        s3.stop(server)
    log = server.log.read_text(errors="replace")
    assert "Traceback" not in log and not re.search(r" 5\d\d \d+ ms$", log, re.MULTILINE)


@pytest.fixture(scope="session")
def nginx(object_store: s3.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx before the object store."""
    yield from _nginx(object_store, tmp_path_factory.mktemp("nginx"), None)


@pytest.fixture(scope="session")
def nginx_with_tls(object_store: s3.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The same with a certificate of the cloud's authority, as docs/nginx.rst makes it."""
    ca = object_store.objects.parent / "ca"
    ca.mkdir(exist_ok=True)
    Authority(str(ca)).ensure()
    yield from _nginx(object_store, tmp_path_factory.mktemp("tls"), ca)


def _nginx(object_store: s3.Server, directory: Path, ca: Path | None) -> Iterator[Nginx]:
    nginx = Nginx(directory, [object_store.port], object_store.objects, _SECRET, ca=ca)
    nginx.start()
    yield nginx
    nginx.stop()


@pytest.fixture(scope="session")
def endpoint(request: pytest.FixtureRequest, object_store: s3.Server) -> Endpoint:
    """A way to reach the object store: one of WAYS.  The signatures hold for the URL that the client uses."""
    keys, ca = ("keyone:one", "secretone"), object_store.objects.parent / "ca"
    if request.param == "direct":
        return Endpoint(object_store.url, *keys)
    if request.param == "nginx":
        return Endpoint(f"http://127.0.0.1:{request.getfixturevalue('nginx').s3_port}", *keys)
    server = request.getfixturevalue("nginx_with_tls")
    return Endpoint(f"https://localhost:{server.s3_port}", *keys, ca=str(ca / "cacert.pem"))


@pytest.fixture(scope="session")
def make_client(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Client]]:
    """Gives the client of a name, which is made once."""
    made: dict[str, Client] = {}

    def make(name: str) -> Client:
        if name not in made:
            made[name] = CLIENTS[name](endpoint, tmp_path_factory.mktemp(name))
        return made[name]
    yield make
    for client in made.values():
        client.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `client` runs with all clients that have what its mark `needs` names; each test runs by
    all the ways of its mark `ways`."""
    if "endpoint" in metafunc.fixturenames:
        ways = metafunc.definition.get_closest_marker("ways")
        metafunc.parametrize("endpoint", ways.args if ways else WAYS[:2], indirect=True, scope="session")
    if "client" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("needs")
        wanted = mark.args if mark else ()
        metafunc.parametrize("client", [name for name, kind in CLIENTS.items()
                                        if all(hasattr(kind, method) for method in wanted)], indirect=True)


@pytest.fixture
def client(request: pytest.FixtureRequest, make_client: Callable[[str], Client]) -> Client:
    """The client under test."""
    return make_client(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that fails shows the end of the object store's log."""
    report = yield
    server = getattr(item, "funcargs", {}).get("object_store")
    if report.failed and server is not None:
        lines = server.log.read_text(errors="replace").splitlines()
        report.sections.append(("the end of the object store's log", "\n".join(lines[-40:])))
    return report


@pytest.fixture(scope="session")
def witness(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boto3]:
    """Another client, for what the one under test has done."""
    client = Boto3(endpoint, tmp_path_factory.mktemp("witness"))
    yield client
    client.close()


@pytest.fixture
def bucket(witness: Boto3) -> Iterator[str]:
    """A bucket of the test's own."""
    name = new_name()
    witness.make_bucket(name)
    yield name
    empty_and_remove(witness, name)


def new_name() -> str:
    """The name of a bucket that is not there."""
    return f"bucket-{next(_numbers)}"


def empty_and_remove(witness: Boto3, bucket: str) -> None:
    keys = witness.keys(bucket)
    for at in range(0, len(keys), 1000):
        witness.delete_many(bucket, keys[at:at + 1000])
    witness.remove_bucket(bucket)


def part_sizes(witness: Boto3, bucket: str, key: str) -> list[int]:
    """How many bytes each part of an object has that was uploaded in parts."""
    first = witness.api.head_object(Bucket=bucket, Key=key, PartNumber=1)
    return [first["ContentLength"], *(witness.api.head_object(Bucket=bucket, Key=key, PartNumber=n)["ContentLength"]
                                      for n in range(2, first["PartsCount"] + 1))]
