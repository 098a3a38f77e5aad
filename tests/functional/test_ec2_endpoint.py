"""The EC2 endpoint over HTTP, driven by real clients and by bad ones, with a toy controller behind it."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import http.client
import logging
import socket
import subprocess
import textwrap
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from xml.etree import ElementTree

import boto3
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from nova import exception
from nova.cloud.action import Controller, Registry, action, listing
from nova.cloud.iam import Caller
from nova.context import RequestIdFilter
from nova.datastore import Record, record
from nova.endpoint.app import BODY_LIMIT, DRAIN_LIMIT, ApiService
from nova.wire import model

ACCESS, SECRET = "AKtest:proj", "s3cret/+="


@dataclass
class Identity:
    user_id: str = "ann"
    project_id: str = "proj"
    secret: str = SECRET
    roles: frozenset = frozenset({"member"})
    is_admin: bool = False


class FakeAuth:
    async def identity(self, access_key, project):
        if (access_key, project) != ("AKtest", "proj"):
            raise exception.AuthFailure()
        return Identity()


@record("toy_instance")
@dataclass(frozen=True)
class ToyInstance(Record):
    """What the toy's RunInstances makes."""


@dataclass
class Recorded:
    """What the toy saw, and how it is to behave."""

    params: list = field(default_factory=list)
    error: Exception | None = None
    entered: asyncio.Event | None = None
    go_on: asyncio.Event | None = None


class Toy(Controller):
    recorded: Recorded

    async def replay(self, context, result_ids):
        [instance] = await self.store.get_many(ToyInstance, result_ids)
        return {"ReservationId": "r-1", "OwnerId": "proj", "Instances": [{"InstanceId": instance.id}]}

    @action("RunInstances", replay=replay)
    async def run_instances(self, context, params):
        self.recorded.params.append(params)
        if len(params.get("UserData", "")) * 3 // 4 > 16384:
            raise exception.InvalidParameterValue("User data is limited to 16384 bytes")
        instance_id = f"i-{len(self.recorded.params)}"
        tx = self.store.transaction()
        tx.create(ToyInstance(instance_id))
        context.client_token.spend(tx, [instance_id])
        await tx.commit()
        return {"ReservationId": "r-1", "OwnerId": "proj", "Instances": [{"InstanceId": instance_id}]}

    @action("RebootInstances")
    async def reboot_instances(self, context, params):
        if self.recorded.entered and self.recorded.go_on:
            self.recorded.entered.set()
            await self.recorded.go_on.wait()
        if self.recorded.error is not None:
            raise self.recorded.error
        self.recorded.params.append(params)
        return {}

    @action("RegisterImage")
    async def register_image(self, context, params):
        return {}

    @listing("DescribeRegions", result="Regions", id_member="RegionName",
             ids_param="RegionNames", not_found=exception.InvalidParameterValue)
    async def describe_regions(self, context, params):
        return [{"RegionName": "nova", "Endpoint": "http://x"}]

    @listing("DescribeInstances", result="Reservations", id_member="InstanceId",
             ids_param="InstanceIds", not_found=exception.InvalidInstanceIDNotFound,
             group=lambda items: [{"ReservationId": "r-1", "Instances": items}])
    async def describe_instances(self, context, params):
        return [
            {"InstanceId": f"i-{n:08x}", "InstanceType": "m1.small", "KeyName": "kä<&>"} for n in range(12)
        ]


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
async def service(recorded, store):
    toy = Toy(store=store, recorded=recorded)
    sts = Registry.collect([Caller(store=store)], model.sts())
    service = ApiService(store, FakeAuth(), Registry.collect([toy]), port=0, address="127.0.0.1", others={"STS": sts})
    await service.start()
    yield service
    await service.stop()


def client(service, name="ec2", access=ACCESS, secret=SECRET, path="Cloud", **config):
    """A boto3 client with default settings, but for what is given."""
    url = f"http://127.0.0.1:{service.port}/services/{path}"
    return boto3.client(name, region_name="nova", aws_access_key_id=access, aws_secret_access_key=secret,
                        endpoint_url=url, config=Config(**config))


@pytest.fixture
async def ec2(service):
    return client(service)


async def run(function, *args, **kwargs):
    """Call a client that blocks while the endpoint serves in this loop."""
    return await asyncio.wait_for(asyncio.to_thread(function, *args, **kwargs), 60)


async def fails(code, status, function, *args, **kwargs):
    with pytest.raises(ClientError) as caught:
        await run(function, *args, **kwargs)
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.response["ResponseMetadata"]["RequestId"]
    return caught.value.response["Error"]["Message"]


# -- raw requests --------------------------------------------------------------------------------------------

class Raw:
    """An answer to a request that was made by hand."""

    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def error(self):
        """Status and code of an EC2 error, which has to be well-formed."""
        assert self.headers["Content-Type"] == "text/xml;charset=UTF-8"
        root = ElementTree.fromstring(self.body)
        assert root.tag == "Response"
        assert root.findtext("RequestID") == self.headers["x-amzn-RequestId"]
        assert b"Traceback" not in self.body
        assert root.findtext("Errors/Error/Message")
        return self.status, root.findtext("Errors/Error/Code")


def http_request(port, method, target, body=None, headers=None, encode_chunked=False):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target, body, headers or {}, encode_chunked=encode_chunked)
        return Raw(connection.getresponse())
    finally:
        connection.close()


def sigv2(port, params, method="GET", path="/services/Cloud", secret=SECRET, **changes):
    """A plain SigV2 query, as a simple client makes it."""
    params = {"AWSAccessKeyId": ACCESS, "SignatureVersion": "2", "SignatureMethod": "HmacSHA256",
              "Version": "2010-08-31", "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
              **params, **changes}
    query = "&".join(
        f"{quote(k, safe='-_.~')}={quote(str(v), safe='-_.~')}" for k, v in sorted(params.items())
    )
    digest = hmac.new(
        secret.encode(), f"{method}\n127.0.0.1:{port}\n{path}\n{query}".encode(), hashlib.sha256
    )
    query += "&Signature=" + quote(base64.b64encode(digest.digest()).decode(), safe="")
    if method == "GET":
        return http_request(port, "GET", f"{path}?{query}")
    return http_request(port, "POST", path, query, {"Content-Type": "application/x-www-form-urlencoded"})


def sigv4(port, body=b"", query="", method="POST", headers=None):
    """A SigV4 request with any body at all."""
    request = AWSRequest(
        method,
        f"http://127.0.0.1:{port}/services/Cloud{'?' + query if query else ''}",
        data=body,
        headers=headers or {},
    )
    SigV4Auth(Credentials(ACCESS, SECRET), "ec2", "nova").add_auth(request)
    return http_request(
        port, method, f"/services/Cloud{'?' + query if query else ''}", body, dict(request.headers)
    )


def namespace(raw):
    return ElementTree.fromstring(raw.body).tag.partition("}")[0][1:]


# -- real clients --------------------------------------------------------------------------------------------

async def test_boto3(ec2, recorded):
    regions = await run(ec2.describe_regions)
    assert regions["Regions"] == [{"RegionName": "nova", "Endpoint": "http://x"}]
    answer = await run(ec2.run_instances, ImageId="ami-1", MinCount=1, MaxCount=2, UserData="höla",
                       TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}])
    assert answer["Instances"] == [{"InstanceId": "i-1"}]
    assert answer["OwnerId"] == "proj"
    [params] = recorded.params
    assert params.pop("ClientToken")
    assert params == {
        "ImageId": "ami-1",
        "MinCount": 1,
        "MaxCount": 2,
        "UserData": base64.b64encode("höla".encode()).decode(),
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}],
    }
    pages = await run(lambda: list(ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": "instance-type", "Values": ["m1.*"]}], PaginationConfig={"PageSize": 5})))
    assert [len(p["Reservations"][0]["Instances"]) for p in pages] == [5, 5, 2]
    assert pages[0]["Reservations"][0]["Instances"][0]["KeyName"] == "kä<&>"


async def test_a_repeated_client_token(ec2, service, recorded):
    async def launch(ec2=ec2, **changes):
        arguments = {"ImageId": "ami-1", "MinCount": 1, "MaxCount": 1, "ClientToken": "t", **changes}
        return (await run(ec2.run_instances, **arguments))["Instances"]
    at_once = await asyncio.gather(*(launch(client(service)) for _ in range(5)))
    assert all(instances == at_once[0] for instances in at_once)
    assert await launch() == at_once[0]
    assert await launch(ClientToken="u") != at_once[0]
    await fails("IdempotentParameterMismatch", 400, ec2.run_instances, ImageId="ami-2", MinCount=1,
                MaxCount=1, ClientToken="t")


async def test_boto3_errors(ec2):
    await fails("DryRunOperation", 412, ec2.reboot_instances, InstanceIds=["i-1"], DryRun=True)
    await fails("UnsupportedOperation", 400, ec2.describe_vpcs)
    await fails("UnauthorizedOperation", 403, ec2.register_image, Name="image")
    await fails(
        "InvalidParameterValue", 400, ec2.describe_instances, Filters=[{"Name": "bogus", "Values": ["x"]}]
    )
    message = await fails("InvalidInstanceID.NotFound", 400, ec2.describe_instances, InstanceIds=["i-7"])
    assert message == "The instance ID 'i-7' does not exist"


async def test_boto3_with_wrong_credentials(service):
    await fails("AuthFailure", 401, client(service, access="nobody").describe_regions)
    await fails("SignatureDoesNotMatch", 403, client(service, secret="wrong").describe_regions)


async def test_ten_megabytes_of_user_data_reach_the_action(service, recorded):
    ec2 = client(service, retries={"total_max_attempts": 1})
    message = await fails("InvalidParameterValue", 400, ec2.run_instances, ImageId="ami-1", MinCount=1,
                          MaxCount=1, UserData=bytes(10 << 20))
    assert message == "User data is limited to 16384 bytes"
    assert len(recorded.params) == 1


async def test_boto2(service, recorded):
    script = textwrap.dedent(f"""
        import boto
        from boto.ec2.regioninfo import RegionInfo
        region = RegionInfo(name="nova", endpoint="127.0.0.1")
        ec2 = boto.connect_ec2({ACCESS!r}, {SECRET!r}, is_secure=False, port={service.port},
                               path="/services/Cloud", region=region)
        print([r.name for r in ec2.get_all_regions()])
        print(ec2.reboot_instances(["i-1", "i-2"]))
        print([i.id for i in ec2.get_only_instances()][:2])
        run = ec2.run_instances("ami-1", key_name="k", security_groups=["default"], user_data="x")
        print(run.instances[0].id)
        try:
            ec2.get_list("DescribeVpcs", {{}}, [])
        except boto.exception.EC2ResponseError as error:
            print(error.status, error.error_code, bool(error.request_id))
        """)
    done = await run(
        subprocess.run, ["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['nova']", "True", "['i-00000000', 'i-00000001']", "i-2", "400 UnsupportedOperation True"]
    assert recorded.params[0] == {"InstanceIds": ["i-1", "i-2"]}
    assert recorded.params[1]["SecurityGroups"] == ["default"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/services/Cloud", "/services/Cloud/", "/"])
async def test_sigv2_query(service, recorded, method, path):
    raw = await run(sigv2, service.port, {"Action": "RebootInstances", "InstanceId.1": "i-ä +"}, method, path)
    assert raw.status == 200
    assert namespace(raw) == "http://ec2.amazonaws.com/doc/2010-08-31/"
    assert b"<return>true</return>" in raw.body
    assert raw.headers["Content-Type"] == "text/xml;charset=UTF-8"
    assert raw.headers["x-amzn-RequestId"].encode() in raw.body
    assert recorded.params == [{"InstanceIds": ["i-ä +"]}]


async def test_sigv4_query(service):
    url = f"http://127.0.0.1:{service.port}/services/Cloud?Action=DescribeRegions&Version=2016-11-15"
    request = AWSRequest("GET", url)
    SigV4QueryAuth(Credentials(ACCESS, SECRET), "ec2", "nova").add_auth(request)
    target = request.url.removeprefix(f"http://127.0.0.1:{service.port}")
    raw = await run(http_request, service.port, "GET", target)
    assert raw.status == 200
    assert b"<regionName>nova</regionName>" in raw.body


async def test_sts_is_answered_at_its_own_path_and_at_ec2s(service):
    for path in ("Cloud", "STS"):
        sts = client(service, "sts", path=path)
        identity = await run(sts.get_caller_identity)
        assert {k: identity[k] for k in ("Account", "UserId", "Arn")} == {
            "Account": "proj", "UserId": "ann", "Arn": "arn:aws:iam::proj:user/ann"}
        await fails("UnsupportedOperation", 400, sts.get_session_token)
        nobody = client(service, "sts", access="nobody", path=path)
        await fails("InvalidClientTokenId", 401, nobody.get_caller_identity)


async def test_a_path_offers_its_own_api_only(service):
    await fails("InvalidAction", 400, client(service, "ec2", path="STS").describe_regions)


async def test_gzip_when_asked(service):
    raw = await run(sigv4, service.port, b"Action=DescribeInstances&Version=2016-11-15",
                    headers={"Accept-Encoding": "gzip", "Content-Type": "application/x-www-form-urlencoded"})
    assert raw.headers["Content-Encoding"] == "gzip"
    assert b"i-0000000b" in gzip.decompress(raw.body)


# -- bad input -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("query", ["Action=DescribeRegions", "Action=Bogus", "Action=RunInstances&Bogus=1",
                                   "Action=DescribeRegions&Version=x&Filter.99999999999=1", "Action=%3Cx%3E"])
async def test_unsigned_requests_learn_nothing(service, query):
    for method, target, body in (("GET", f"/services/Cloud?{query}", None), ("POST", "/", query)):
        assert (await run(http_request, service.port, method, target, body)).error == (401, "AuthFailure")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "MissingAction"),
        ("Version=2016-11-15", "MissingAction"),
        ("Action=", "MissingAction"),
        ("Action=A&Action=B", "MalformedQueryString"),
        ("a=%ff", "MalformedQueryString"),
        ("%", "MalformedQueryString"),
    ],
)
async def test_requests_without_an_action(service, query, code):
    for method, target, body in (
        ("GET", f"/services/Cloud?{query}", None),
        ("POST", "/services/Cloud/", query),
    ):
        assert (await run(http_request, service.port, method, target, body)).error == (400, code)


async def test_too_many_parameters(service):
    body = "&".join(["a=1"] * 10_001)
    assert (await run(http_request, service.port, "POST", "/", body)).error == (400, "MalformedQueryString")


@pytest.mark.parametrize(
    "body", [b"\x00\xff\xfe" * 1000, bytes(range(256)), b"{}", b"<xml/>", b"\0" * 300_000, b"\xff" * 300_000]
)
async def test_binary_junk(service, body):
    for request in (lambda: http_request(service.port, "POST", "/services/Cloud", body),
                    lambda: sigv4(service.port, body)):
        status, code = (await run(request)).error
        assert status == 400
        assert code in ("MissingAction", "MalformedQueryString")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"Action": "Bogus"}, (400, "InvalidAction")),
        ({"Action": "<&\r\n\u4e2d" + "x" * 5000}, (400, "InvalidAction")),
        ({"Action": "DescribeVpcs"}, (400, "UnsupportedOperation")),
        ({"Action": "RegisterImage"}, (403, "UnauthorizedOperation")),
        ({"Action": "RebootInstances"}, (400, "MissingParameter")),
        ({"Action": "RebootInstances", "InstanceId.1": "i", "Bogus": "1"}, (400, "UnknownParameter")),
        ({"Action": "RebootInstances", "InstanceId.99999999999": "i"}, (400, "InvalidParameterValue")),
        (
            {"Action": "RunInstances", "ImageId": "a", "MinCount": "x", "MaxCount": "1"},
            (400, "InvalidParameterValue"),
        ),
        ({"Action": "DescribeInstances", "NextToken": "junk"}, (400, "InvalidNextToken")),
        ({"Action": "DescribeInstances", "MaxResults": "1"}, (400, "InvalidParameterValue")),
        (
            {"Action": "RebootInstances", "InstanceId.1": "i", "InstanceId": "j"},
            (400, "InvalidParameterCombination"),
        ),
    ],
)
async def test_signed_but_wrong(service, params, expected):
    for method in ("GET", "POST"):
        assert (await run(sigv2, service.port, params, method)).error == expected


async def test_wrongly_signed(service):
    act = {"Action": "DescribeRegions"}
    assert (await run(sigv2, service.port, act, secret="wrong")).error == (403, "SignatureDoesNotMatch")
    assert (await run(sigv2, service.port, act, AWSAccessKeyId="nobody")).error == (401, "AuthFailure")
    assert (await run(sigv2, service.port, {"Action": "Bogus"}, secret="wrong")).error == (
        403,
        "SignatureDoesNotMatch",
    )
    old = (datetime.now(UTC) - timedelta(minutes=16)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (await run(sigv2, service.port, act, Timestamp=old)).error == (400, "RequestExpired")
    assert (await run(sigv2, service.port, act, Timestamp="junk")).error == (400, "IncompleteSignature")
    assert (await run(sigv2, service.port, act, SignatureVersion="9")).error[0] == 400
    assert (await run(http_request, service.port, "POST", "/services/Cloud", "Action=DescribeRegions",
                      {"Authorization": "AWS4-HMAC-SHA256 junk"})).error == (400, "IncompleteSignature")
    assert (await run(http_request, service.port, "POST", "/services/Cloud", "Action=DescribeRegions",
                      {"Authorization": "Basic eA=="})).error == (401, "AuthFailure")


async def test_body_changed_after_signing(service):
    request = AWSRequest(
        "POST", f"http://127.0.0.1:{service.port}/services/Cloud", data=b"Action=DescribeRegions"
    )
    SigV4Auth(Credentials(ACCESS, SECRET), "ec2", "nova").add_auth(request)
    raw = await run(http_request, service.port, "POST", "/services/Cloud", b"Action=RebootInstances",
                    dict(request.headers))
    assert raw.error == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body(service, chunked):
    body = b"a=" + b"b" * BODY_LIMIT
    raw = await run(
        http_request, service.port, "POST", "/services/Cloud", [body] if chunked else body, None, chunked
    )
    assert raw.error == (413, "RequestEntityTooLarge")


async def test_a_huge_body_is_refused_before_it_is_sent(service):
    raw = await run(
        http_request, service.port, "POST", "/services/Cloud", None, {"Content-Length": str(DRAIN_LIMIT + 1)}
    )
    assert raw.error == (413, "RequestEntityTooLarge")
    raw = await run(http_request, service.port, "POST", "/nowhere", None, {"Content-Length": str(10 ** 15)})
    assert raw.error == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize(("method", "target", "expected"), [
    ("GET", "/nowhere", (404, "NotFound")), ("POST", "/services/Cloud/x", (404, "NotFound")),
    ("GET", "//", (404, "NotFound")), ("PUT", "/services/Cloud", (405, "MethodNotAllowed")),
    ("DELETE", "/", (405, "MethodNotAllowed")), ("BREW", "/", (405, "MethodNotAllowed")),
    ("GET", "/services/%43loud", (404, "NotFound"))])
async def test_other_paths_and_methods(service, method, target, expected):
    assert (await run(http_request, service.port, method, target)).error == expected


@pytest.mark.parametrize("sent", [
    b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"POST /services/Cloud HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /services/Cloud HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    b"POST /services/Cloud HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"POST /services/Cloud HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
async def test_malformed_http(service, sent):
    def talk():
        with socket.create_connection(("127.0.0.1", service.port), 10) as s:
            s.sendall(sent)
            return b"".join(iter(lambda: s.recv(4096), b""))
    assert (await run(talk)).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_leaves_in_the_middle_of_its_body(service):
    def talk():
        with socket.create_connection(("127.0.0.1", service.port), 10) as s:
            s.sendall(b"POST /services/Cloud HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nAction=")
    await run(talk)
    assert (await run(http_request, service.port, "GET", "/")).error == (400, "MissingAction")


async def test_a_client_that_leaves_before_its_answer(service, recorded, caplog):
    recorded.entered, recorded.go_on = asyncio.Event(), asyncio.Event()
    body = b"Action=RebootInstances&Version=2016-11-15&InstanceId.1=i"
    request = AWSRequest("POST", f"http://127.0.0.1:{service.port}/", data=body)
    SigV4Auth(Credentials(ACCESS, SECRET), "ec2", "nova").add_auth(request)
    headers = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Length: {len(body)}\r\n"
                 f"{headers}\r\n".encode() + body)
    await asyncio.wait_for(recorded.entered.wait(), 10)
    writer.transport.abort()
    recorded.go_on.set()
    assert (await run(http_request, service.port, "GET", "/")).error == (400, "MissingAction")
    await service.stop()
    assert "Traceback" not in caplog.text and "Uncaught" not in caplog.text


# -- the endpoint's own troubles -----------------------------------------------------------------------------

@pytest.mark.parametrize(("error", "expected"), [
    (RuntimeError("secret detail"), (500, "InternalError")),
    (exception.ProcessError("rm: secret detail"), (500, "InternalError")),
    (exception.Conflict(kind="secret detail", id="x"), (500, "InternalError")),
    (exception.DatastoreUnavailable(), (503, "Unavailable")),
    (exception.InsufficientInstanceCapacity(), (500, "InsufficientInstanceCapacity"))])
async def test_troubles(service, recorded, caplog, error, expected):
    recorded.error = error
    raw = await run(sigv2, service.port, {"Action": "RebootInstances", "InstanceId.1": "i"})
    assert raw.error == expected
    assert b"secret" not in raw.body
    assert ("secret detail" in caplog.text) == (expected[1] == "InternalError")


async def test_redis_gone(service, recorded, redis_server, store):
    launch = {"Action": "RunInstances", "ImageId": "a", "MinCount": 1, "MaxCount": 1}
    redis_server.kill()
    try:
        start = time.monotonic()
        raw = await run(sigv2, service.port, launch)
        assert raw.error == (503, "Unavailable")
        assert time.monotonic() - start < 2
    finally:
        redis_server.start()
    raw = await run(sigv2, service.port, launch)
    assert raw.status == 200


async def test_one_line_of_log_for_each_request(service, caplog):
    handler = caplog.handler
    handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "nova.endpoint.access"):
        raw = await run(sigv2, service.port, {"Action": "RebootInstances", "InstanceId.1": "i"})
        await run(sigv2, service.port, {"Action": "Bogus\n"})
        await run(http_request, service.port, "GET", "/services/Cloud?Action=RebootInstances")
    first, second, third = [r for r in caplog.records if r.name == "nova.endpoint.access"]
    assert first.request_id == raw.headers["x-amzn-RequestId"]
    assert first.getMessage().startswith("127.0.0.1 RebootInstances user=ann project=proj 200 OK ")
    assert second.getMessage().startswith("127.0.0.1 - user=ann project=proj 400 InvalidAction ")
    assert third.getMessage().startswith("127.0.0.1 - user=- project=- 401 AuthFailure ")


async def test_the_request_id_of_a_wrong_method_is_in_the_log(service, caplog):
    caplog.handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "nova.endpoint.access"):
        raw = await run(http_request, service.port, "PUT", "/")
    [line] = [r for r in caplog.records if r.name == "nova.endpoint.access"]
    assert line.request_id == raw.headers["x-amzn-RequestId"]
    assert line.getMessage().startswith("127.0.0.1 - user=- project=- 405 MethodNotAllowed ")


async def test_stop_lets_running_requests_finish(service, recorded):
    recorded.entered, recorded.go_on = asyncio.Event(), asyncio.Event()
    request = asyncio.ensure_future(
        run(sigv2, service.port, {"Action": "RebootInstances", "InstanceId.1": "i"})
    )
    await asyncio.wait_for(recorded.entered.wait(), 10)
    stopping = asyncio.ensure_future(service.stop())
    await asyncio.sleep(0)
    with pytest.raises(OSError):
        await run(http_request, service.port, "GET", "/")
    recorded.go_on.set()
    assert (await request).status == 200
    await asyncio.wait_for(stopping, 5)
