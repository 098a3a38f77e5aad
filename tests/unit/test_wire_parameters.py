"""Requests: what botocore's own serializer writes is read back, and so are the spellings of other clients."""

import base64
import random
from datetime import UTC, datetime

import pytest
from botocore.serialize import create_serializer

from nova import exception
from nova.wire import model, overlay, parameters

OFFERED = [
    "DescribeRegions",
    "DescribeAvailabilityZones",
    "DescribeInstanceTypes",
    "DescribeImages",
    "RegisterImage",
    "DeregisterImage",
    "CreateKeyPair",
    "ImportKeyPair",
    "DescribeKeyPairs",
    "DeleteKeyPair",
    "RunInstances",
    "DescribeInstances",
    "DescribeInstanceStatus",
    "GetConsoleOutput",
    "RebootInstances",
    "TerminateInstances",
]


def parse(name, *params):
    return model.operation(name).parse(list(params))


def example(shape, rng, depth=0):
    """A random value of a shape, in the types that the parser gives back."""
    kind = shape.type_name
    if kind == "structure":
        chosen = [name for name in shape.members if name in shape.required_members or rng.random() < 0.7]
        return {name: example(shape.members[name], rng, depth + 1) for name in chosen or shape.members}
    if kind == "list":
        return [example(shape.member, rng, depth + 1) for _ in range(rng.randint(1, 3))]
    if kind in ("integer", "long"):
        low = shape.metadata.get("min", -5)
        return rng.randint(low, shape.metadata.get("max", low + 1000))
    if kind in ("float", "double"):
        return rng.randint(1, 99) + 0.5
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "timestamp":
        return datetime(2026, 11, 20, 17, 51, rng.randint(0, 59), tzinfo=UTC)
    if kind == "blob":
        return rng.randbytes(rng.randint(1, 20))
    if shape.enum and shape.name not in overlay.OPEN_ENUMS:
        return rng.choice(shape.enum)
    return rng.choice(["a", "ä&<é>\u4e2d", "x y+z=%41", "i-00000001", "\U0001f600"])


def serialized(operation, values):
    """The parameters as botocore sends them."""
    body = create_serializer("ec2", include_validation=False).serialize_to_request(
        values, model.ec2().botocore.operation_model(operation))["body"]
    return [(name, str(value)) for name, value in body.items()]


@pytest.mark.parametrize("name", OFFERED)
def test_reads_what_botocore_writes(name):
    rng = random.Random(name)
    operation = model.operation(name)
    for _ in range(20):
        values = without_empty(example(operation.input_shape, rng))
        assert operation.parse(serialized(name, values)) == values


def without_empty(values):
    """A structure or list without members is not sent at all."""
    if isinstance(values, dict):
        return {k: v for k, v in ((k, without_empty(v)) for k, v in values.items()) if v not in ({}, [])}
    if isinstance(values, list):
        return [v for v in map(without_empty, values) if v not in ({}, [])]
    return values


def test_every_operation_of_the_model_compiles():
    rng = random.Random(1)
    for name in sorted(model.ec2().names):
        operation = model.operation(name)
        if operation.input_shape is not None:
            values = without_empty(example(operation.input_shape, rng))
            assert operation.parse(serialized(name, values)) == values, name


@pytest.mark.parametrize(
    ("action", "params", "expected"),
    [
        ("GetConsoleOutput", [("InstanceId.1", "i-1")], {"InstanceId": "i-1"}),
        ("GetConsoleOutput", [("InstanceId", "i-1")], {"InstanceId": "i-1"}),
        ("DescribeKeyPairs", [("KeyName", "k")], {"KeyNames": ["k"]}),
        ("DescribeKeyPairs", [("KeyName", "")], {"KeyNames": []}),
        (
            "CreateTags",
            [("ResourceId.0", "i-1"), ("Tag.0.Key", "a"), ("Tag.0.Value", "")],
            {"Resources": ["i-1"], "Tags": [{"Key": "a", "Value": ""}]},
        ),
        (
            "RunInstances",
            [
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("TagSpecifications.1.ResourceType", "instance"),
                ("TagSpecifications.1.Tags.1.Key", "a"),
            ],
            {
                "MinCount": 1,
                "MaxCount": 1,
                "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a"}]}],
            },
        ),
        (
            "RunInstances",
            [("MinCount", "1"), ("MaxCount", "1"), ("InstanceType", "nova.huge")],
            {"MinCount": 1, "MaxCount": 1, "InstanceType": "nova.huge"},
        ),
        (
            "TerminateInstances",
            [("InstanceId.7", "c"), ("InstanceId.2", "b"), ("InstanceId.0", "a")],
            {"InstanceIds": ["a", "b", "c"]},
        ),
        ("DetachVolume", [("VolumeId", "vol-1"), ("Force", "false")], {"VolumeId": "vol-1", "Force": False}),
        (
            "AuthorizeSecurityGroupIngress",
            [
                ("GroupName", "g"),
                ("IpProtocol", "tcp"),
                ("FromPort", "22"),
                ("ToPort", "22"),
                ("CidrIp", "0.0.0.0/0"),
            ],
            {"GroupName": "g", "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"},
        ),
        (
            "AuthorizeSecurityGroupIngress",
            [
                ("IpPermissions.1.IpProtocol", "tcp"),
                ("IpPermissions.1.Groups.1.GroupName", "g"),
                ("IpPermissions.1.IpRanges.1.CidrIp", "10.0.0.0/8"),
            ],
            {
                "IpPermissions": [
                    {
                        "IpProtocol": "tcp",
                        "UserIdGroupPairs": [{"GroupName": "g"}],
                        "IpRanges": [{"CidrIp": "10.0.0.0/8"}],
                    }
                ]
            },
        ),
        (
            "DescribeInstances",
            [("Filter.1.Name", "a"), ("Filter.1.Values.1", "b"), ("Filter.1.Value.2", "c")],
            None,
        ),
        (
            "ImportKeyPair",
            [("KeyName", "k"), ("PublicKeyMaterial", "c3No\nLXJz YQ==")],
            {"KeyName": "k", "PublicKeyMaterial": b"ssh-rsa"},
        ),
        (
            "DescribeRegions",
            [
                ("Action", "x"),
                ("Version", "y"),
                ("AWSAccessKeyId", "z"),
                ("Signature", "s"),
                ("SignatureMethod", "m"),
                ("SignatureVersion", "2"),
                ("Timestamp", "t"),
                ("Expires", "e"),
                ("X-Amz-Date", "d"),
                ("SecurityToken", "k"),
            ],
            {},
        ),
    ],
)
def test_spellings(action, params, expected):
    if expected is None:
        with pytest.raises(exception.InvalidParameterCombination):
            parse(action, *params)
    else:
        assert parse(action, *params) == expected


def test_old_clients_register_images_without_a_name():
    assert parse("RegisterImage", ("ImageLocation", "b/k")) == {"ImageLocation": "b/k"}


def test_missing_parameter_is_named_as_on_the_wire():
    with pytest.raises(
        exception.MissingParameter, match="The request must contain the parameter InstanceId$"
    ):
        parse("TerminateInstances")
    with pytest.raises(exception.MissingParameter, match="parameter KeyName"):
        parse("CreateKeyPair", ("KeyName", ""))


@pytest.mark.parametrize(("params", "error"), [
    ([("Bogus", "1")], exception.UnknownParameter),
    ([("Placement.Bogus", "1")], exception.UnknownParameter),
    ([("ImageId.Bogus", "1")], exception.UnknownParameter),
    ([("ImageId.1.Bogus", "1")], exception.UnknownParameter),
    ([("SecurityGroup.x", "1")], exception.UnknownParameter),
    ([("SecurityGroup.-1", "1")], exception.UnknownParameter),
    ([("SecurityGroup.", "1")], exception.UnknownParameter),
    ([("", "1")], exception.UnknownParameter),
    ([(".", "1")], exception.UnknownParameter),
    ([("a." * 100_000, "1")], exception.UnknownParameter),
    ([("ImageId.2", "1")], exception.InvalidParameterValue),
    ([("ImageId.1", "1"), ("ImageId.2", "1")], exception.InvalidParameterValue),
    ([("SecurityGroup.999999999", "1")], exception.InvalidParameterValue),
    ([("SecurityGroup." + "9" * 5000, "1")], exception.InvalidParameterValue),
    ([("SecurityGroup.\u0661", "1")], exception.InvalidParameterValue),
    ([("Placement", "1")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "x")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "1_000")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", " 1")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "\u0661")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "2147483648")], exception.InvalidParameterValue),
    ([("Ipv6AddressCount", "9" * 100_000)], exception.InvalidParameterValue),
    ([("EbsOptimized", "yes")], exception.InvalidParameterValue),
    ([("InstanceInitiatedShutdownBehavior", "explode")], exception.InvalidParameterValue),
    ([("ImageId", "1"), ("ImageId", "1")], exception.InvalidParameterCombination),
    ([("SecurityGroup", "1"), ("SecurityGroup.1", "1")], exception.InvalidParameterCombination),
    ([("SecurityGroup.1", "1"), ("SecurityGroup.01", "1")], exception.InvalidParameterCombination),
    ([("SecurityGroup.1", "1"), ("SecurityGroups.1", "1")], exception.InvalidParameterCombination),
    ([("Placement.Tenancy", "default"), ("Placement", "1")], exception.InvalidParameterCombination),
])
def test_malformed_parameters(params, error):
    with pytest.raises(error) as caught:
        parse("RunInstances", ("MinCount", "1"), ("MaxCount", "1"), *params)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("text", ["not base64", "YQ=", "Y", "\u00e9\u00e9\u00e9\u00e9"])
def test_bad_base64(text):
    with pytest.raises(exception.InvalidParameterValue):
        parse("ImportKeyPair", ("KeyName", "k"), ("PublicKeyMaterial", text))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9" * 1000]
)
def test_bad_timestamp(text):
    with pytest.raises(exception.InvalidParameterValue):
        parse("DescribeSpotPriceHistory", ("StartTime", text))


def test_model_range():
    with pytest.raises(exception.InvalidParameterValue):
        parse("DescribeInstanceTypes", ("MaxResults", "4"))
    assert parse("DescribeInstanceTypes", ("MaxResults", "5")) == {"MaxResults": 5}


def test_ten_megabytes_of_user_data():
    data = base64.b64encode(bytes(10 << 20)).decode()
    assert parse("RunInstances", ("MinCount", "1"), ("MaxCount", "1"), ("UserData", data))["UserData"] == data


def test_junk_is_a_clients_error_and_nothing_else():
    rng = random.Random(7)
    words = [
        "InstanceId",
        "Filter",
        "Name",
        "Value",
        "1",
        "0",
        "-1",
        "99999999999",
        "",
        ".",
        "Placement",
        "MinCount",
        "Tag",
        "\0",
        "\ud800",
        "é",
        "BlockDeviceMapping",
        "Ebs",
        "VolumeSize",
        "TagSpecification",
        "X-Amz-",
        "ImageId",
    ]
    for _ in range(5000):
        params = [(".".join(rng.choices(words, k=rng.randint(1, 5))), rng.choice([*words, "true", "7"]))
                  for _ in range(rng.randint(0, 4))]
        for name in ("RunInstances", "DescribeInstances"):
            try:
                parse(name, *params)
            except exception.ClientError as error:
                assert error.status == 400


def test_unknown_operation():
    assert model.operation("Bogus") is None
    assert model.operation("") is None


def test_tree_depth_is_bounded():
    with pytest.raises(exception.UnknownParameter):
        parameters.tree([(".".join("a" * 10_000), "")])


def test_overlay_merge():
    base = {"shapes": {"A": {"members": {"x": 1}, "required": ["x"]}}, "operations": {}}
    merged = overlay.merge(base, {"shapes": {"A": {"members": {"y": 2}, "required": []}, "B": {}}})
    assert merged == {
        "shapes": {"A": {"members": {"x": 1, "y": 2}, "required": []}, "B": {}},
        "operations": {},
    }
    assert base["shapes"]["A"]["required"] == ["x"]
