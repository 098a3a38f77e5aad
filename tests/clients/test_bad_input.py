"""What is wrong gets the error that EC2 and S3 have for it; never a 5xx, and never an inside view."""

import random
import socket
import time
from collections.abc import Iterator

import pytest

from tests.clients.sigv2 import S3, Answer, Ec2, send
from tests.clients.support import Cloud

#: the same in every run
NOISE = random.Random(2010)
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}


@pytest.fixture
def ec2(fake_cloud: Cloud) -> Iterator[Ec2]:
    """A client of the EC2 endpoint, which works as well afterwards as before."""
    client = Ec2(fake_cloud.ec2_port, fake_cloud.access, fake_cloud.secret)
    yield client
    client.call("DescribeRegions")


@pytest.fixture
def s3(fake_cloud: Cloud) -> Iterator[S3]:
    """A client of the S3 endpoint, which works as well afterwards as before."""
    client = S3(fake_cloud.s3_port, fake_cloud.access, fake_cloud.secret)
    yield client
    client.call("GET", "/")


def check(answer: Answer, status: int, code: str) -> None:
    """The answer is this EC2 error, well-formed, with a request id, and says nothing of the inside."""
    assert (answer.status, answer.code) == (status, code)
    root = answer.xml()
    assert root.tag == "Response"
    assert root.findtext("Errors/Error/Message")
    assert root.findtext("RequestID")
    says_nothing_of_the_inside(answer)


def says_nothing_of_the_inside(answer: Answer) -> None:
    assert answer.status < 500
    for word in (b"Traceback", b"File \"", b".py", b"redis"):
        assert word not in answer.body


# -- who asks --------------------------------------------------------------------------------------------------------

def test_unsigned(ec2: Ec2):
    check(send(ec2.port, "GET", f"{ec2.path}?Action=DescribeInstances&Version=2016-11-15"), 401, "AuthFailure")


def test_signed_with_a_wrong_secret(ec2: Ec2):
    check(Ec2(ec2.port, ec2.access, "wrong").ask("DescribeInstances"), 403, "SignatureDoesNotMatch")


def test_changed_after_it_was_signed(ec2: Ec2):
    query = ec2.signed("GET", {"Action": "DescribeInstances"}).replace("DescribeInstances", "DescribeImages")
    check(send(ec2.port, "GET", f"{ec2.path}?{query}"), 403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("access", ["nobody:admin", "nobody", "", ":", "a:b:c", "%00", "*", "x" * 5000])
def test_unknown_access_key(ec2: Ec2, access: str):
    answer = Ec2(ec2.port, access, ec2.secret).ask("DescribeInstances")
    says_nothing_of_the_inside(answer)
    assert answer.code in ("AuthFailure", "MissingParameter", "IncompleteSignature")


def test_no_member_of_the_project(ec2: Ec2):
    access = ec2.access.rpartition(":")[0]
    check(Ec2(ec2.port, f"{access}:elsewhere", ec2.secret).ask("DescribeInstances"), 401, "AuthFailure")


@pytest.mark.parametrize("minutes", [-16, 16])
def test_signed_too_long_ago_or_in_the_future(ec2: Ec2, minutes: int):
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60 * minutes))
    check(ec2.ask("DescribeInstances", Timestamp=when), 400, "RequestExpired")


def test_past_its_own_expiry(ec2: Ec2):
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))
    check(ec2.ask("DescribeInstances", Expires=when), 400, "RequestExpired")


@pytest.mark.parametrize("parameters", [{"SignatureVersion": "1"}, {"SignatureMethod": "HmacMD5"},
                                        {"Timestamp": "yesterday"}, {"Timestamp": "99999-01-01T00:00:00Z"}])
def test_signed_in_an_unknown_way(ec2: Ec2, parameters: dict[str, str]):
    check(ec2.ask("DescribeInstances", **parameters), 400, "IncompleteSignature")


@pytest.mark.parametrize("header", ["Basic YTpi", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a", "Bearer x",
                                    "\xff"])
def test_strange_authorization_header(ec2: Ec2, header: str):
    answer = send(ec2.port, "POST", ec2.path, b"Action=DescribeInstances&Version=2016-11-15",
                  FORM | {"Authorization": header})
    says_nothing_of_the_inside(answer)
    assert answer.code in ("AuthFailure", "IncompleteSignature")


# -- what is asked ---------------------------------------------------------------------------------------------------

BAD_REQUESTS = [
    ("FlyToTheMoon", {}, "InvalidAction"),
    ("describeinstances", {}, "InvalidAction"),
    ("", {}, "MissingAction"),
    ("CreateVpnGateway", {"Type": "ipsec.1"}, "UnsupportedOperation"),
    ("GetConsoleOutput", {}, "MissingParameter"),
    ("RunInstances", {"MinCount": "1", "MaxCount": "1"}, "MissingParameter"),
    ("RunInstances", {"ImageId": "ami-12345678"}, "MissingParameter"),
    ("RebootInstances", {}, "MissingParameter"),
    ("CreateKeyPair", {}, "MissingParameter"),
    ("DescribeInstances", {"Colour": "blue"}, "UnknownParameter"),
    ("DescribeInstances", {"InstanceId.1.Name": "x"}, "UnknownParameter"),
    ("DescribeInstances", {"InstanceId.1": "i-1"}, "InvalidInstanceID.Malformed"),
    ("DescribeInstances", {"InstanceId.1": "../../etc/passwd"}, "InvalidInstanceID.Malformed"),
    ("DescribeInstances", {"InstanceId.1": "i-12345678"}, "InvalidInstanceID.NotFound"),
    ("DescribeInstances", {"Filter.1.Name": "colour", "Filter.1.Value.1": "blue"}, "InvalidParameterValue"),
    ("DescribeInstances", {"MaxResults": "many"}, "InvalidParameterValue"),
    ("DescribeInstances", {"MaxResults": "5", "NextToken": "x"}, "InvalidNextToken"),
    ("DescribeInstances", {"DryRun": "perhaps"}, "InvalidParameterValue"),
    ("TerminateInstances", {"InstanceId.1": "i-12345678"}, "InvalidInstanceID.NotFound"),
    ("DescribeImages", {"ImageId.1": "ami-12345678"}, "InvalidAMIID.NotFound"),
    ("RegisterImage", {"ImageLocation": "nowhere/nothing", "Name": "nothing"}, "InvalidManifest"),
    ("DescribeKeyPairs", {"KeyName.1": "none"}, "InvalidKeyPair.NotFound"),
    ("CreateKeyPair", {"KeyName": "a\x00b"}, "InvalidParameterValue"),
    ("CreateKeyPair", {"KeyName": "x" * 256}, "InvalidParameterValue"),
    ("ImportKeyPair", {"KeyName": "k", "PublicKeyMaterial": "bm8ga2V5"}, "InvalidKey.Format"),
    ("ImportKeyPair", {"KeyName": "k", "PublicKeyMaterial": "%%%"}, "InvalidParameterValue"),
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("action", "parameters", "code"), BAD_REQUESTS,
                         ids=[f"{action}-{'-'.join(p)[:30]}-{code}" for action, p, code in BAD_REQUESTS])
def test_bad_request(ec2: Ec2, method: str, action: str, parameters: dict[str, str], code: str):
    query = ec2.signed(method, ({"Action": action} if action else {}) | parameters)
    if method == "GET":
        answer = send(ec2.port, "GET", f"{ec2.path}?{query}")
    else:
        answer = send(ec2.port, "POST", ec2.path, query.encode(), FORM)
    check(answer, 400, code)


@pytest.fixture(scope="session")
def image_id(fake_cloud: Cloud) -> str:
    """An image that instances can be run of."""
    answer = Ec2(fake_cloud.ec2_port, fake_cloud.access, fake_cloud.secret).call(
        "DescribeImages", **{"Filter_1_Name": "name", "Filter_1_Value_1": "nova-starter"})
    return answer.findtext("imagesSet/item/imageId") or ""


BAD_RUNS = [
    ({"ImageId": "ami-12345678"}, "InvalidAMIID.NotFound"),
    ({"ImageId": "x"}, "InvalidAMIID.Malformed"),
    ({"InstanceType": "m9.huge"}, "InvalidParameterValue"),
    ({"KeyName": "none"}, "InvalidKeyPair.NotFound"),
    ({"KernelId": "aki-12345678"}, "InvalidAMIID.NotFound"),
    ({"SecurityGroup.1": "none"}, "InvalidGroup.NotFound"),
    ({"Placement.AvailabilityZone": "moon"}, "InvalidParameterValue"),
    ({"MinCount": "0"}, "InvalidParameterValue"),
    ({"MinCount": "-1"}, "InvalidParameterValue"),
    ({"MinCount": "2"}, "InvalidParameterValue"),
    ({"MinCount": "one"}, "InvalidParameterValue"),
    ({"MaxCount": "9" * 30}, "InvalidParameterValue"),
    ({"MaxCount": "100000"}, "InstanceLimitExceeded"),
    ({"UserData": "not base64!"}, "InvalidUserData.Malformed"),
    ({"UserData": "QUFB" * 5462}, "InvalidParameterValue"),
    ({"ClientToken": "x" * 65}, "InvalidParameterValue"),
    ({"SubnetId": "subnet-12345678"}, "UnsupportedOperation"),
]


@pytest.mark.parametrize(("parameters", "code"), BAD_RUNS, ids=[f"{'-'.join(p)}-{code}" for p, code in BAD_RUNS])
def test_bad_run_instances(ec2: Ec2, image_id: str, parameters: dict[str, str], code: str):
    good = {"ImageId": image_id, "MinCount": "1", "MaxCount": "1", "InstanceType": "m1.tiny"}
    before = len(ec2.call("DescribeInstances").findall("reservationSet/item"))
    check(ec2.ask("RunInstances", "POST", **(good | parameters)), 400, code)
    assert len(ec2.call("DescribeInstances").findall("reservationSet/item")) == before


def test_ten_megabytes_of_user_data(ec2: Ec2, image_id: str):
    answer = ec2.ask("RunInstances", "POST", ImageId=image_id, MinCount="1", MaxCount="1", UserData="QUFB" * (10 << 18))
    check(answer, 400, "InvalidParameterValue")


def test_more_than_is_read(ec2: Ec2):
    check(send(ec2.port, "POST", ec2.path, b"x=" + b"y" * (25 << 20), FORM), 413, "RequestEntityTooLarge")


# -- what is no request at all -----------------------------------------------------------------------------------------

JUNK = {"random": NOISE.randbytes(4096), "not-utf-8": b"\xff\xfe=\xff", "broken-escape": b"Action=%zz",
        "escaped-not-utf-8": b"Action=%ff", "empty-names": b"=&=&&&=", "json": b"{}", "zeros": b"\0" * 100,
        "two-actions": b"Action=RunInstances&Action=TerminateInstances", "many-parameters": b"a=b&" * 20000}


@pytest.mark.parametrize("body", JUNK.values(), ids=JUNK)
def test_junk_as_a_form(ec2: Ec2, body: bytes):
    answer = send(ec2.port, "POST", ec2.path, body, FORM)
    says_nothing_of_the_inside(answer)
    assert 400 <= answer.status < 500
    assert answer.code and answer.xml().findtext("RequestID")


@pytest.mark.parametrize("target", ["/services/Cloud?%00%ff", "/services/Cloud?Action=%", "/nothing/here",
                                    "/services/Cloud/../..", "/services/Cloud?" + "a" * 60000])
def test_junk_as_a_target(ec2: Ec2, target: str):
    answer = send(ec2.port, "GET", target)
    says_nothing_of_the_inside(answer)
    assert 400 <= answer.status < 500


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_unfitting_method(ec2: Ec2, method: str):
    answer = send(ec2.port, method, ec2.path)
    says_nothing_of_the_inside(answer)
    assert answer.status == 405


NOT_HTTP = {"tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "blank": b"\r\n" * 50,
            "no-target": b"GET\r\n\r\n", "version": b"GET / HTTP/9.9\r\n\r\n", "random": NOISE.randbytes(2000),
            "negative-length": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "bad-length": b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            "bad-host": b"POST / HTTP/1.1\r\nHost: \xff\r\n\r\n"}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
@pytest.mark.parametrize("face", ["ec2", "s3"])
def test_what_is_not_http(ec2: Ec2, s3: S3, face: str, data: bytes):
    with socket.create_connection(("127.0.0.1", ec2.port if face == "ec2" else s3.port), 10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass  # closed with some of what was sent unread
    assert b"Traceback" not in answer
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 505 ")  # the version (RFC 9110, 15.6.6)


# -- S3 --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "target", "status", "code"), [
    ("GET", "/nothing-here", 404, "NoSuchBucket"), ("GET", "/nothing-here/key", 404, "NoSuchBucket"),
    ("GET", "/starter/nothing", 404, "NoSuchKey"), ("PUT", "/x", 400, "InvalidBucketName"),
    ("PUT", "/nothing-here/key", 404, "NoSuchBucket"),
    ("DELETE", "/nothing-here", 404, "NoSuchBucket"), ("DELETE", "/starter", 409, "BucketNotEmpty")])
def test_bad_s3_request(s3: S3, method: str, target: str, status: int, code: str):
    answer = s3.ask(method, target)
    assert (answer.status, answer.xml().findtext("Code")) == (status, code)
    assert answer.xml().findtext("RequestId")
    says_nothing_of_the_inside(answer)


def test_s3_wants_a_right_signature(s3: S3):
    wrong = S3(s3.port, s3.access, "wrong").ask("GET", "/starter")
    assert (wrong.status, wrong.xml().findtext("Code")) == (403, "SignatureDoesNotMatch")
    unknown = S3(s3.port, "nobody:admin", s3.secret).ask("GET", "/starter")
    assert (unknown.status, unknown.xml().findtext("Code")) == (403, "InvalidAccessKeyId")
    unsigned = send(s3.port, "GET", "/starter")
    assert (unsigned.status, unsigned.xml().findtext("Code")) == (403, "AccessDenied")


@pytest.mark.parametrize("target", ["/starter/%2e%2e/%2e%2e/etc/passwd", "/starter/..%2f..%2fetc%2fpasswd",
                                    "/%2e%2e/etc/passwd", "//etc/passwd", "/starter/%00", "/starter/%ff"])
def test_s3_never_leaves_its_directory(s3: S3, target: str):
    answer = s3.ask("GET", target)
    says_nothing_of_the_inside(answer)
    assert 400 <= answer.status < 500
    assert b"root:" not in answer.body
