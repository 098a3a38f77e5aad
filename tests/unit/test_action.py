"""What all actions have in common: authorization, DryRun, ClientToken, and listings."""

import time

import pytest

from nova import exception
from nova.auth import rbac
from nova.cloud.action import Controller, Registry, SpentToken, action, dispatch, listing
from nova.cloud.listing import kebab, matcher
from nova.context import Context

NOT_FOUND = exception.InvalidInstanceIDNotFound


class FakeStore:
    """As much of a store as tokens need: records, and transactions that create all or none."""

    def __init__(self):
        self.records = {}

    async def get(self, cls, id):
        return self.records.get(id)

    def transaction(self):
        return FakeTransaction(self)


class FakeTransaction:
    def __init__(self, store):
        self.store, self.created = store, {}

    def create(self, obj, ttl=None):
        self.created[obj.id] = obj
        if isinstance(obj, SpentToken):
            assert ttl == 24 * 3600

    async def commit(self):
        for id in self.created:
            if id in self.store.records:
                raise exception.Exists("record", id)
        self.store.records.update(self.created)


class Toy(Controller):
    """A controller with one action of each kind."""

    calls: list
    items: list
    before_commit: list

    async def replay(self, context, result_ids):
        return {"Instances": [{"InstanceId": id} for id in result_ids]}

    @action("RunInstances", replay=replay)
    async def run_instances(self, context, params):
        self.calls.append(params)
        ids = [f"i-{len(self.calls)}"]
        tx = self.store.transaction()
        context.client_token.spend(tx, ids)
        while self.before_commit:
            self.before_commit.pop()()
        await tx.commit()
        return {"Instances": [{"InstanceId": id} for id in ids]}

    @action("RebootInstances")
    async def reboot_instances(self, context, params):
        self.calls.append(params)
        return {}

    @listing("DescribeInstances", result="Reservations", id_member="InstanceId",
             ids_param="InstanceIds", not_found=NOT_FOUND,
             filters={"instance-state-name": "State.Name", "instance-state-code": "State.Code",
                      "group-name": "SecurityGroups.GroupName", "reservation-id": "_ReservationId"},
             group=lambda items: [{"ReservationId": i["_ReservationId"], "Instances": [i]} for i in items])
    async def describe_instances(self, context, params):
        return list(self.items)

    @listing(
        "DescribeKeyPairs",
        result="KeyPairs",
        id_member="KeyName",
        ids_param="KeyNames",
        not_found=exception.InvalidKeyPairNotFound,
        also={"KeyPairIds": ("KeyPairId", exception.InvalidParameterValue)},
    )
    async def describe_key_pairs(self, context, params):
        return [{"KeyName": n, "KeyPairId": f"key-{n}"} for n in "cab"]


def instance(number, **members):
    return {
        "InstanceId": f"i-{number:08x}",
        "InstanceType": "m1.small",
        "State": {"Name": "running", "Code": 16},
        "LaunchTime": 1e9,
        "EbsOptimized": False,
        "SecurityGroups": [],
        "_ReservationId": "r-1",
        **members,
    }


@pytest.fixture
def toy():
    return Toy(store=FakeStore(), calls=[], items=[], before_commit=[])


@pytest.fixture
def call(toy):
    registry = Registry.collect([toy])
    context = Context("ann", "proj", frozenset({"member", "sysadmin"}))

    async def call(name, *params, context=context):
        return (await dispatch(registry, context, name, list(params)))[1]
    return call


RUN = (("ImageId", "ami-1"), ("MinCount", "1"), ("MaxCount", "1"))


# -- declaring -----------------------------------------------------------------------------------------------

def collect(declare, method):
    controller = type("Odd", (Controller,), {"method": declare(method)})
    return Registry.collect([controller(store=None)])


async def nothing(self, context, params):
    return {}


def test_an_action_without_a_rule_is_not_offered():
    with pytest.raises(TypeError, match="table of roles"):
        collect(action("CreateVpc"), nothing)


def test_declarations_must_fit_the_model():
    with pytest.raises(TypeError, match="not in the model"):
        collect(action("Bogus"), nothing)
    with pytest.raises(TypeError, match="replay"):
        collect(action("RunInstances"), nothing)
    for wrong in ({"result": "Bogus"}, {"ids_param": "Bogus"}, {"not_found": None}):
        arguments = {"result": "Regions", "id_member": "RegionName", "ids_param": "RegionNames",
                     "not_found": NOT_FOUND, **wrong}
        with pytest.raises(TypeError):
            collect(listing("DescribeRegions", **arguments), nothing)


def test_an_action_is_offered_once(toy):
    with pytest.raises(TypeError, match="twice"):
        Registry.collect([toy, toy])


def test_a_controller_gets_what_it_names():
    with pytest.raises(TypeError, match="needs"):
        Toy(store=None)
    with pytest.raises(TypeError):
        Toy(store=None, calls=[], items=[], before_commit=[], more=1)


# -- dispatch ------------------------------------------------------------------------------------------------

async def test_unknown_and_not_offered(call):
    with pytest.raises(exception.InvalidAction):
        await call("Bogus")
    with pytest.raises(exception.InvalidAction) as caught:
        await call("x" * 10_000)
    assert len(caught.value.message) < 300
    with pytest.raises(exception.UnsupportedOperation):
        await call("CreateVpc")


async def test_not_permitted_comes_before_the_parameters(call, toy):
    with pytest.raises(exception.UnauthorizedOperation):
        await call("RunInstances", ("Bogus", "1"), context=Context("bob", "proj", frozenset({"itsec"})))
    with pytest.raises(exception.UnauthorizedOperation):
        await call("RebootInstances", context=Context("eve", "proj"))
    assert not toy.calls


async def test_dry_run(call, toy):
    with pytest.raises(exception.DryRunOperation) as caught:
        await call("RunInstances", *RUN, ("DryRun", "true"), ("ClientToken", "t"))
    assert caught.value.status == 412
    with pytest.raises(exception.MissingParameter):
        await call("RunInstances", ("DryRun", "true"))
    with pytest.raises(exception.DryRunOperation):
        await call("DescribeInstances", ("DryRun", "true"))
    with pytest.raises(exception.InvalidParameterValue):
        await call(
            "DescribeInstances", ("DryRun", "true"), ("Filter.1.Name", "bogus"), ("Filter.1.Value", "1")
        )
    assert not toy.calls
    await call("RebootInstances", ("InstanceId.1", "i"), ("DryRun", "false"))
    assert toy.calls == [{"InstanceIds": ["i"]}]


# -- ClientToken ---------------------------------------------------------------------------------------------

async def test_a_repeated_token_returns_the_first_answer(call, toy):
    first = await call("RunInstances", *RUN, ("ClientToken", "t"))
    assert await call("RunInstances", *reversed(RUN), ("ClientToken", "t"), ("DryRun", "false")) == first
    assert len(toy.calls) == 1


async def test_a_repeated_token_with_other_parameters(call, toy):
    await call("RunInstances", *RUN, ("ClientToken", "t"))
    with pytest.raises(exception.IdempotentParameterMismatch):
        await call("RunInstances", *RUN, ("KeyName", "k"), ("ClientToken", "t"))
    assert len(toy.calls) == 1


async def test_tokens_are_a_projects_own(call, toy):
    for project in ("a", "b"):
        context = Context("ann", project, frozenset({rbac.MEMBER}))
        await call("RunInstances", *RUN, ("ClientToken", "t"), context=context)
    assert len(toy.calls) == 2


@pytest.mark.parametrize("token", [(), (("ClientToken", ""),)])
async def test_without_a_token_nothing_is_remembered(call, toy, token):
    for _ in range(2):
        await call("RunInstances", *RUN, *token)
    assert len(toy.calls) == 2
    assert not toy.store.records


async def test_a_faster_twin_wins(call, toy):
    """The same request commits first on another host, after this one has looked for the token."""
    await call("RunInstances", *RUN, ("ClientToken", "t"))
    [(key, spent)] = toy.store.records.items()
    toy.store.records.clear()
    toy.before_commit.append(lambda: toy.store.records.update({key: spent}))
    assert await call("RunInstances", *RUN, ("ClientToken", "t")) == {"Instances": [{"InstanceId": "i-1"}]}
    toy.store.records.clear()
    toy.before_commit.append(lambda: toy.store.records.update({key: spent}))
    with pytest.raises(exception.IdempotentParameterMismatch):
        await call("RunInstances", *RUN, ("KeyName", "k"), ("ClientToken", "t"))


async def test_another_record_that_exists_is_not_the_tokens_affair(call, toy):
    def fail():
        raise exception.Exists("instance", "i-1")
    toy.before_commit.append(fail)
    with pytest.raises(exception.Exists):
        await call("RunInstances", *RUN, ("ClientToken", "t"))


@pytest.mark.parametrize("token", ["x" * 65, "é"])
async def test_bad_tokens(call, token):
    with pytest.raises(exception.InvalidParameterValue):
        await call("RunInstances", *RUN, ("ClientToken", token))


# -- listings ------------------------------------------------------------------------------------------------

def ids(result):
    return [i["InstanceId"] for r in result["Reservations"] for i in r["Instances"]]


async def test_sorted_and_grouped(call, toy):
    toy.items = [instance(2), instance(1)]
    result = await call("DescribeInstances")
    assert ids(result) == ["i-00000001", "i-00000002"]
    assert result["Reservations"][0]["ReservationId"] == "r-1"
    assert "NextToken" not in result


async def test_asked_for_ids(call, toy):
    toy.items = [instance(n) for n in range(3)]
    assert ids(await call("DescribeInstances", ("InstanceId.1", "i-00000002"), ("InstanceId.2", "i-00000000"),
                          ("InstanceId.3", "i-00000002"))) == ["i-00000000", "i-00000002"]
    with pytest.raises(NOT_FOUND, match="'i-7, i-8' does not exist"):
        await call(
            "DescribeInstances",
            ("InstanceId.1", "i-00000002"),
            ("InstanceId.2", "i-7"),
            ("InstanceId.3", "i-8"),
        )


async def test_asked_for_in_two_ways(call):
    result = await call("DescribeKeyPairs", ("KeyName", "a"), ("KeyPairId", "key-c"))
    assert [k["KeyName"] for k in result["KeyPairs"]] == ["a", "c"]
    with pytest.raises(exception.InvalidParameterValue, match=r"Value \(a\) for parameter KeyPairIds"):
        await call("DescribeKeyPairs", ("KeyPairId.1", "a"))


@pytest.mark.parametrize(("filters", "expected"), [
    ([("instance-state-name", "running")], [1, 3]),
    ([("instance-state-name", "running", "pending")], [1, 2, 3]),
    ([("instance-state-name", "run*")], [1, 3]),
    ([("instance-state-name", "RUNNING")], []),
    ([("instance-state-code", "0")], [2]),
    ([("instance-id", "i-0000000?")], [1, 2, 3]),
    ([("instance-id", "i-0000000\\?")], []),
    ([("instance-type", "m1.*"), ("instance-state-name", "running")], [1]),
    ([("ebs-optimized", "true")], [3]),
    ([("launch-time", "2001-09-09T01:46:40.000Z")], [1, 2, 3]),
    ([("launch-time", "2001-09-09*")], [1, 2, 3]),
    ([("group-name", "web")], [1]),
    ([("reservation-id", "r-2")], [2]),
    ([("tag:Name", "one")], [1]),
    ([("tag:Name", "*")], [1, 2]),
    ([("tag:Name", "")], [2]),
    ([("tag:Other", "one")], []),
    ([("tag-key", "Na*")], [1, 2]),
    ([("tag-value", "one")], [1]),
    ([("key-name", "*")], []),
    ([("dns-name", "x")], [3]),
    ([("public-dns-name", "x")], [3]),
])
async def test_filters(call, toy, filters, expected):
    toy.items = [
        instance(
            1,
            SecurityGroups=[{"GroupName": "default"}, {"GroupName": "web"}],
            Tags=[{"Key": "Name", "Value": "one"}],
        ),
        instance(
            2,
            State={"Name": "pending", "Code": 0},
            _ReservationId="r-2",
            Tags=[{"Key": "Name"}],
            KeyName=None,
        ),
        instance(3, EbsOptimized=True, InstanceType="c1.medium", PublicDnsName="x"),
    ]
    params = []
    for number, (name, *values) in enumerate(filters, 1):
        params.append((f"Filter.{number}.Name", name))
        params += [(f"Filter.{number}.Value.{n}", value) for n, value in enumerate(values, 1)]
    assert ids(await call("DescribeInstances", *params)) == [f"i-{n:08x}" for n in expected]


@pytest.mark.parametrize(
    "name", ["bogus", "", "State", "_ReservationId", "tag", "security-groups", "x" * 1000]
)
async def test_unknown_filters(call, name):
    with pytest.raises(exception.InvalidParameterValue, match="The filter '.*' is invalid"):
        await call("DescribeInstances", ("Filter.1.Name", name), ("Filter.1.Value.1", "x"))


async def test_bad_filters(call):
    with pytest.raises(exception.InvalidParameterValue, match="no values"):
        await call("DescribeInstances", ("Filter.1.Name", "instance-id"))
    with pytest.raises(exception.InvalidParameterValue, match="is invalid"):
        await call("DescribeInstances", ("Filter.1.Value.1", "x"))
    with pytest.raises(exception.InvalidParameterValue, match="more than 200"):
        await call("DescribeInstances", ("Filter.1.Name", "instance-id"),
                   *((f"Filter.1.Value.{n}", "x") for n in range(201)))
    with pytest.raises(exception.InvalidParameterValue, match="is invalid"):
        await call("DescribeKeyPairs", ("Filter.1.Name", "instance-id"), ("Filter.1.Value.1", "x"))


@pytest.mark.parametrize(("pattern", "yes", "no"), [
    ("a*b", ["ab", "axb", "a\nb", "abb", "aXbYb"], ["a", "b", "abc", "xab"]),
    ("*", ["", "x", "\n"], []),
    ("?", ["x", "\n", "*"], ["", "xx"]),
    ("\\*", ["*"], ["x", "\\*", ""]),
    ("\\\\*", ["\\", "\\x"], ["x"]),
    ("a\\", ["a\\"], ["a"]),
    ("\\a", ["a"], ["\\a"]),
    ("*.txt*.txt", ["a.txt.txt", ".txtx.txt"], ["a.txt", ".tx.txt"]),
    ("a*", ["a", "ab"], ["ba"]), ("*a", ["a", "ba", "aa"], ["ab"]), ("[a]", ["[a]"], ["a"]),
    ("*a?c*", ["abc", "aabcc", "xaxcx"], ["ac", "abd"]), ("a**b", ["ab", "axxb"], ["a"]), ("", [""], ["x"]),
])
def test_wildcards(pattern, yes, no):
    matches = matcher([pattern])
    assert [t for t in [*yes, *no] if matches(t)] == yes


def test_wildcards_cannot_be_made_slow():
    start = time.perf_counter()
    assert not matcher(["*a" * 100 + "b"])("a" * 5000)
    assert not matcher(["*?" * 100 + "b"])("a" * 5000)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(("name", "expected"), [
    ("InstanceId", "instance-id"), ("PrivateIpAddress", "private-ip-address"), ("isPublic", "is-public"),
    ("Ipv6Address", "ipv6-address"), ("KmsKeyId", "kms-key-id")])
def test_kebab(name, expected):
    assert kebab(name) == expected


async def test_pages_while_items_come_and_go(call, toy):
    toy.items = [instance(n) for n in range(20)]
    first = await call("DescribeInstances", ("MaxResults", "8"))
    assert ids(first) == [f"i-{n:08x}" for n in range(8)]
    del toy.items[3:8]
    toy.items.append(instance(100))
    second = await call("DescribeInstances", ("MaxResults", "8"), ("NextToken", first["NextToken"]))
    assert ids(second) == [f"i-{n:08x}" for n in range(8, 16)]
    third = await call("DescribeInstances", ("MaxResults", "5"), ("NextToken", second["NextToken"]))
    assert ids(third) == [f"i-{n:08x}" for n in [16, 17, 18, 19, 100]]
    assert "NextToken" not in third
    assert ids(await call("DescribeInstances", ("NextToken", second["NextToken"]))) == ids(third)


@pytest.mark.parametrize("number", ["4", "0", "-1", "1001"])
async def test_page_sizes_out_of_range(call, number):
    with pytest.raises(exception.InvalidParameterValue):
        await call("DescribeInstances", ("MaxResults", number))


async def test_ids_and_pages_do_not_go_together(call, toy):
    toy.items = [instance(1)]
    with pytest.raises(exception.InvalidParameterCombination):
        await call("DescribeInstances", ("MaxResults", "5"), ("InstanceId.1", "i-00000001"))


@pytest.mark.parametrize("token", ["x", "é", "AAAA", "AAAAAAAAAAAA", "=", "_" * 400, "\0"])
async def test_bad_page_tokens(call, token):
    with pytest.raises(exception.InvalidNextToken):
        await call("DescribeInstances", ("NextToken", token))
