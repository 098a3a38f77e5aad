"""The metadata service over HTTP: who asks, sessions, and what goes wrong."""

import asyncio
import contextlib
import dataclasses
import http.client
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from nova import exception
from nova.endpoint.metadata import InstanceMetadata, MetadataService

TTL, TOKEN = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
FIRST = InstanceMetadata(
    instance_id="i-00000001", ami_id="ami-00000001", reservation_id="r-00000001", launch_index=0, hostname="i-1",
    local_ipv4="127.0.0.1", mac="02:16:3e:00:00:01", instance_type="m1.tiny", zone="nova", region="nova",
    project_id="proj", launch_time=0, cidr="127.0.0.0/8", gateway="127.0.0.254", user_data=b"\x00\xffraw")
SECOND = dataclasses.replace(FIRST, instance_id="i-00000002", local_ipv4="127.0.0.2", user_data=None)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: http.client.HTTPMessage


@dataclass
class Cloud:
    """A service, what it knows, and how guests ask it."""

    port: int = 0
    guests: dict[str, InstanceMetadata] = field(default_factory=lambda: {"127.0.0.1": FIRST, "127.0.0.2": SECOND})
    error: Exception | None = None

    async def lookup(self, ip: str) -> InstanceMetadata | None:
        if self.error:
            raise self.error
        return self.guests.get(ip)

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None,
                  guest: str = "127.0.0.1", body: bytes | None = None) -> Answer:
        def blocking() -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, 10, source_address=(guest, 0))
            try:
                connection.request(method, path, body=body, headers=headers or {})
                response = connection.getresponse()
                return Answer(response.status, response.read(), response.headers)
            finally:
                connection.close()
        return await asyncio.to_thread(blocking)

    async def token(self, ttl: str = "60", guest: str = "127.0.0.1", **headers: str) -> Answer:
        return await self.ask("PUT", "/latest/api/token", {TTL: ttl} | headers, guest)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    cloud = Cloud()
    service = MetadataService(cloud.lookup, secret=b"secret", port=0, address="127.0.0.1")
    await service.start()
    cloud.port = service.port
    yield cloud
    await service.stop()


async def test_a_guest_is_known_by_its_address(cloud: Cloud):
    for guest, meta in cloud.guests.items():
        answer = await cloud.ask("GET", "/latest/meta-data/instance-id", guest=guest)
        assert (answer.status, answer.body) == (200, meta.instance_id.encode())
        assert answer.headers["Content-Type"] == "text/plain"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-Ip", "Forwarded"])
async def test_no_header_makes_it_another_guest(cloud: Cloud, header: str):
    answer = await cloud.ask("GET", "/latest/meta-data/instance-id", {header: "127.0.0.2"})
    assert answer.body == b"i-00000001"


async def test_who_is_no_guest_finds_nothing(cloud: Cloud):
    for method, path in (("GET", "/"), ("GET", "/latest/meta-data/"), ("PUT", "/latest/api/token")):
        answer = await cloud.ask(method, path, {TTL: "60"}, guest="127.0.0.3")
        assert answer.status == 404 and b"<h1>404 - Not Found</h1>" in answer.body


async def test_user_data_is_raw(cloud: Cloud):
    answer = await cloud.ask("GET", "/2009-04-04/user-data")
    assert (answer.status, answer.body) == (200, b"\x00\xffraw")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    answer = await cloud.ask("GET", "/2009-04-04/user-data", guest="127.0.0.2")
    assert answer.status == 404 and b"<title>404 - Not Found</title>" in answer.body


async def test_versions_that_are_not_offered(cloud: Cloud):
    assert (await cloud.ask("GET", "/2021-03-23/meta-data/instance-id")).status == 404
    assert (await cloud.ask("GET", "/")).body.endswith(b"2009-04-04\nlatest")


async def test_head(cloud: Cloud):
    answer = await cloud.ask("HEAD", "/latest/meta-data/instance-id")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "10")


async def test_a_session(cloud: Cloud):
    issued = await cloud.token("21600")
    assert issued.status == 200 and issued.headers[TTL] == "21600"
    answer = await cloud.ask("GET", "/latest/meta-data/instance-id", {TOKEN: issued.body.decode()})
    assert answer.body == b"i-00000001" and 21590 <= int(answer.headers[TTL]) <= 21600


async def test_a_token_of_another_guest_or_none_at_all_is_refused(cloud: Cloud):
    token = (await cloud.token()).body.decode()
    for guest, value in (("127.0.0.2", token), ("127.0.0.1", token[:-5] + "AAAA="), ("127.0.0.1", ""),
                         ("127.0.0.1", "junk")):
        answer = await cloud.ask("GET", "/latest/meta-data/instance-id", {TOKEN: value}, guest)
        assert answer.status == 401 and b"401 - Unauthorized" in answer.body


@pytest.mark.parametrize("ttl", ["0", "21601", "-1", "x", "", "1.5", "99999999999999999999", "1 2", "٣"])
async def test_a_token_is_for_six_hours_at_most(cloud: Cloud, ttl: str):
    answer = await cloud.ask("PUT", "/latest/api/token", {TTL: ttl.encode("utf-8").decode("latin-1")})
    assert answer.status == 400


async def test_a_token_needs_its_time(cloud: Cloud):
    assert (await cloud.ask("PUT", "/latest/api/token")).status == 400


async def test_a_proxy_gets_no_token(cloud: Cloud):
    assert (await cloud.token(**{"X-Forwarded-For": "10.0.0.1"})).status == 403


async def test_other_methods_and_places(cloud: Cloud):
    assert (await cloud.ask("GET", "/latest/api/token")).status == 405
    assert (await cloud.ask("PUT", "/latest/meta-data/instance-id")).status == 405
    assert (await cloud.ask("POST", "/latest/meta-data/instance-id", body=b"x")).status == 405
    assert (await cloud.ask("DELETE", "/latest/meta-data/")).status == 405
    assert (await cloud.ask("PUT", "/2009-04-04/api/token", {TTL: "60"})).status == 404


async def test_datastore_gone_and_back(cloud: Cloud):
    cloud.error = exception.DatastoreUnavailable()
    answer = await cloud.ask("GET", "/latest/meta-data/instance-id")
    assert answer.status == 503 and answer.headers["Retry-After"] and b"503 - Service Unavailable" in answer.body
    cloud.error = RuntimeError("secret detail")
    answer = await cloud.ask("GET", "/latest/meta-data/instance-id")
    assert answer.status == 500 and b"secret" not in answer.body and b"Traceback" not in answer.body
    cloud.error = None
    assert (await cloud.ask("GET", "/latest/meta-data/instance-id")).status == 200


async def test_nonsense_ends_in_an_error_and_the_service_goes_on(cloud: Cloud):
    for raw in (b"\x00\xff\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
                b"GET /%ff%00/..%2f.. HTTP/1.1\r\nHost: x\r\n\r\n",
                b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", cloud.port)
        answer = b""
        with contextlib.suppress(ConnectionError):  # what is far too long is not read to its end
            writer.write(raw)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 10)
        assert answer == b"" or answer.split()[1] in (b"400", b"404", b"413", b"431")
        writer.close()
    assert (await cloud.ask("GET", "/latest/meta-data/instance-id")).status == 200
