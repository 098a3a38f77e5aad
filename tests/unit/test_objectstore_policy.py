"""Bucket policies: what is read, what is refused, what they say of requests."""

import json
import random
import time

import pytest

from nova.objectstore import errors
from nova.objectstore.access import policy
from nova.objectstore.access.pattern import compiled
from nova.objectstore.access.policy import Asker, Effect

ONE, TWO, NOBODY = Asker("one", "alice"), Asker("two", "bob"), Asker("", "")
GET = "s3:GetObject"


def statement(**changes):
    made = {"Effect": "Allow", "Principal": "*", "Action": GET, "Resource": "arn:aws:s3:::b/*"}
    made |= changes
    return {name: value for name, value in made.items() if value is not None}


def read(*statements, version="2012-10-17"):
    return policy.parse(json.dumps({"Version": version, "Statement": list(statements)}), "b")


def effect(*statements, asker=TWO, action=GET, key="k", values=None, version="2012-10-17"):
    return read(*statements, version=version).effect(
        asker, (action,), policy.object_arn("b", key) if key else policy.bucket_arn("b"), values or {}, "one")


@pytest.mark.parametrize(("pattern", "text", "matches"), [
    ("", "", True), ("", "a", False), ("*", "", True), ("*", "a/b", True), ("?", "", False), ("?", "/", True),
    ("a*b", "ab", True), ("a*b", "a/x/b", True), ("a*b", "abc", False), ("a*a", "a", False), ("a*b*c", "abbc", True),
    ("a*b*c", "acb", False), ("*?", "", False), ("*?", "xy", True), ("a?c*", "abcd", True), ("a?c*", "abd", False),
    ("**a**", "bab", True), ("a.c", "abc", False), ("[ab]", "a", False), ("a*?b", "ab", False),
    ("*a?c", "aac1aec", True),
    ("a\n*", "a\n\n", True), ("?", "\n", True), ("ab*bc", "abc", False),
])
def test_wildcards(pattern, text, matches):
    assert compiled(pattern).matches(text, {}) is matches


def test_wildcards_are_as_the_simplest_definition_has_them():
    chance = random.Random(7)

    def simple(pattern, text):
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(simple(pattern[1:], text[n:]) for n in range(len(text) + 1))
        return bool(text) and pattern[0] in ("?", text[0]) and simple(pattern[1:], text[1:])
    for _ in range(5000):
        pattern = "".join(chance.choices("ab?*", k=chance.randrange(7)))
        text = "".join(chance.choices("ab", k=chance.randrange(9)))
        assert compiled(pattern).matches(text, {}) is simple(pattern, text), (pattern, text)


def test_hostile_wildcards_cost_little():
    started = time.process_time()
    for pattern in ("*a" * 512 + "b", "*" + "a" * 500 + "?b", "a*" * 2000, "*?" * 500 + "b", "*a?" * 300 + "*b"):
        compiled(pattern).matches("a" * 1024, {})
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("principal", "asker", "allowed"), [
    ("*", NOBODY, True), ("*", TWO, True), ({"AWS": "*"}, NOBODY, True), ({"AWS": ["x", "*"]}, NOBODY, True),
    ({"AWS": "two"}, TWO, True), ({"AWS": "two"}, NOBODY, False), ({"AWS": "three"}, TWO, False),
    ({"AWS": "arn:aws:iam::two:root"}, TWO, True), ({"AWS": "arn:aws:iam::two:user/bob"}, TWO, True),
    ({"AWS": "arn:aws:iam::two:user/eve"}, TWO, False), ({"AWS": "arn:aws:iam::three:user/bob"}, TWO, False),
    ({"CanonicalUser": "two"}, TWO, True), ({"AWS": ["three", "arn:aws:iam::two:root"]}, TWO, True),
    # the bucket's project as a whole: its roles say what its users may
    ({"AWS": "one"}, ONE, False), ({"AWS": "arn:aws:iam::one:user/alice"}, ONE, True),
])
def test_principals(principal, asker, allowed):
    assert effect(statement(Principal=principal), asker=asker) is (Effect.ALLOW if allowed else Effect.NOTHING)


def test_deny_of_the_buckets_own_project():
    assert effect(statement(Effect="Deny", Principal={"AWS": "one"}), asker=ONE) is Effect.DENY


def test_deny_wins_wherever_it_stands():
    allow, deny = statement(), statement(Effect="Deny", Resource="arn:aws:s3:::b/k")
    assert effect(allow, deny) is effect(deny, allow) is Effect.DENY
    assert effect(allow, deny, key="other") is Effect.ALLOW


def test_not_principal():
    rule = statement(Effect="Deny", Principal=None, NotPrincipal={"AWS": "arn:aws:iam::two:user/bob"})
    assert effect(rule) is Effect.NOTHING
    assert effect(rule, asker=ONE) is effect(rule, asker=NOBODY) is Effect.DENY


@pytest.mark.parametrize(("element", "value", "action", "key", "allowed"), [
    ("Action", "s3:*", "s3:PutObject", "k", True), ("Action", "*", "s3:PutObject", "k", True),
    ("Action", "s3:get*", GET, "k", True), ("Action", "s3:Get*", "s3:PutObject", "k", False),
    ("Action", ["s3:PutObject", "s3:GetObjec?"], GET, "k", True),
    ("NotAction", "s3:Put*", GET, "k", True), ("NotAction", "s3:Put*", "s3:PutObject", "k", False),
    ("Resource", "arn:aws:s3:::b/x/*", GET, "x/1", True), ("Resource", "arn:aws:s3:::b/x/*", GET, "y/1", False),
    ("Resource", "arn:aws:s3:::b", "s3:GetObject", "", True), ("Resource", "arn:aws:s3:::b", GET, "k", False),
    ("Resource", "*", GET, "k", True), ("Resource", ["arn:aws:s3:::b", "arn:aws:s3:::b/*"], GET, "k", True),
    ("NotResource", "arn:aws:s3:::b/secret/*", GET, "k", True),
    ("NotResource", "arn:aws:s3:::b/secret/*", GET, "secret/k", False),
])
def test_actions_and_resources(element, value, action, key, allowed):
    made = statement(**{element.removeprefix("Not"): None})
    found = effect({**made, element: value}, action=action, key=key)
    assert found is (Effect.ALLOW if allowed else Effect.NOTHING)


IP, NOW, TAG, PREFIX = "aws:SourceIp", "aws:CurrentTime", "s3:ExistingObjectTag/Team", "s3:prefix"
VALUES = {"aws:sourceip": ("10.1.2.3",), "aws:currenttime": ("2026-03-01T12:00:00Z",), "aws:epochtime": ("1772366400",),
          "aws:securetransport": ("false",), "aws:username": ("bob",), "s3:existingobjecttag/Team": ("blue",),
          "s3:max-keys": ("10",), "s3:prefix": ("home/",), "aws:principalarn": ("arn:aws:iam::two:user/bob",),
          "s3:requestobjecttagkeys": ("a", "b")}


@pytest.mark.parametrize(("operator", "key", "value", "holds"), [
    ("StringEquals", PREFIX, "home/", True), ("StringEquals", PREFIX, ["x", "home/"], True),
    ("StringEquals", PREFIX, "HOME/", False), ("StringEqualsIgnoreCase", PREFIX, "HOME/", True),
    ("StringEquals", PREFIX, "home*", False), ("StringLike", PREFIX, "home*", True),
    ("StringNotEquals", PREFIX, "home/", False), ("StringNotEquals", PREFIX, ["x", "y"], True),
    ("StringNotEquals", "s3:delimiter", "/", True), ("StringEquals", "s3:delimiter", "/", False),
    ("StringEqualsIfExists", "s3:delimiter", "/", True), ("StringNotLike", PREFIX, "h*", False),
    ("StringEquals", TAG, "blue", True), ("StringEquals", "s3:existingobjecttag/Team", "blue", True),
    ("StringEquals", "s3:ExistingObjectTag/team", "blue", False), ("StringEquals", TAG, "${aws:username}", False),
    ("StringEquals", "aws:username", "${aws:username}", True), ("StringLike", PREFIX, "home${*}", False),
    ("NumericLessThanEquals", "s3:max-keys", 10, True), ("NumericLessThan", "s3:max-keys", "10", False),
    ("NumericGreaterThan", "s3:max-keys", "9.5", True), ("NumericNotEquals", "s3:max-keys", "10", False),
    ("NumericEquals", PREFIX, "1", False),
    ("DateLessThan", NOW, "2026-03-01T13:00:00+00:00", True), ("DateLessThan", NOW, "2026-03-01T13:00:00+02:00", False),
    ("DateGreaterThan", "aws:EpochTime", "2026-01-01", True), ("DateEquals", NOW, "1772366400", True),
    ("Bool", "aws:SecureTransport", "false", True), ("Bool", "aws:SecureTransport", True, False),
    ("IpAddress", IP, "10.0.0.0/8", True), ("IpAddress", IP, ["192.168.0.0/16", "10.1.2.3"], True),
    ("IpAddress", IP, "::/0", False), ("NotIpAddress", IP, "10.1.0.0/16", False),
    ("NotIpAddress", IP, "10.2.0.0/16", True),
    ("Null", TAG, "false", True), ("Null", TAG, "true", False), ("Null", "s3:delimiter", "true", True),
    ("ArnLike", "aws:PrincipalArn", "arn:aws:iam::two:user/*", True),
    ("ArnEquals", "aws:PrincipalArn", "arn:*:*:*:*:*", True),
    ("ArnNotLike", "aws:PrincipalArn", "arn:aws:iam::two:*", False),
    ("ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:group/*", False),
    ("ForAnyValue:StringEquals", "s3:RequestObjectTagKeys", "a", True),
    ("ForAllValues:StringEquals", "s3:RequestObjectTagKeys", "a", False),
    ("ForAllValues:StringEquals", "s3:RequestObjectTagKeys", ["a", "b", "c"], True),
    ("ForAllValues:StringEquals", "s3:delimiter", "x", True), ("ForAnyValue:StringEquals", "s3:delimiter", "x", False),
    ("ForAnyValue:StringNotEquals", "s3:RequestObjectTagKeys", "a", True),
    ("ForAllValues:StringNotEquals", "s3:RequestObjectTagKeys", "a", False),
])
def test_conditions(operator, key, value, holds):
    found = effect(statement(Condition={operator: {key: value}}), values=VALUES)
    assert found is (Effect.ALLOW if holds else Effect.NOTHING)


def test_all_conditions_must_hold():
    both = {"IpAddress": {IP: "10.0.0.0/8"}, "StringEquals": {PREFIX: "home/", "aws:username": "eve"}}
    assert effect(statement(Condition=both), values=VALUES) is Effect.NOTHING


def test_addresses_of_ipv4_in_ipv6():
    rule = statement(Condition={"IpAddress": {IP: "10.0.0.0/8"}})
    assert effect(rule, values={"aws:sourceip": ("::ffff:10.9.9.9",)}) is Effect.ALLOW


def test_variables_in_resources():
    rule = statement(Resource="arn:aws:s3:::b/home/${aws:username}/*")
    assert effect(rule, key="home/bob/x", values=VALUES) is Effect.ALLOW
    assert effect(rule, key="home/eve/x", values=VALUES) is Effect.NOTHING
    assert effect(rule, key="home//x") is Effect.NOTHING
    assert effect(rule, key="home/*/x", values={"aws:username": ("*",)}) is Effect.ALLOW
    assert effect(rule, key="home/y/x", values={"aws:username": ("*",)}) is Effect.NOTHING
    assert effect(rule, key="home/bob/x", values=VALUES, version="2008-10-17") is Effect.NOTHING


def test_all_of_several_actions():
    both = read(statement(Action="s3:GetObject"))
    assert both.effect(TWO, (GET, "s3:GetObjectAttributes"), "arn:aws:s3:::b/k", {}, "one") is Effect.NOTHING


@pytest.mark.parametrize(("rule", "public"), [
    (statement(), True), (statement(Principal={"AWS": "two"}), False), (statement(Effect="Deny"), False),
    (statement(Condition={"IpAddress": {IP: "10.1.0.0/16"}}), False),
    (statement(Condition={"IpAddress": {IP: "0.0.0.0/0"}}), True),
    (statement(Condition={"IpAddress": {IP: ["10.0.0.0/8", "0.0.0.0/1"]}}), True),
    (statement(Condition={"NotIpAddress": {IP: "10.1.0.0/16"}}), True),
    (statement(Condition={"StringEquals": {"aws:PrincipalAccount": "two"}}), False),
    (statement(Condition={"StringLike": {"aws:PrincipalAccount": "*"}}), True),
    (statement(Condition={"StringEqualsIfExists": {"aws:PrincipalAccount": "two"}}), True),
    (statement(Condition={"StringEquals": {"aws:Referer": "http://x"}}), True),
])
def test_what_is_public(rule, public):
    assert read(rule).is_public is public


BAD = [
    "", "x", "[]", "1", "null", "{", '{"Statement": []}', '{"Statement": [1]}', '{"Version": "2012-10-17"}',
    "[" * 10000, '{"Statement":' * 1500, '{"a":1,"a":2}', '{"Statement": NaN}', "{" + " " * (20 << 10) + "}",
    json.dumps({"Version": "2020-01-01", "Statement": [statement()]}),
    json.dumps({"Statement": [statement()], "Extra": 1}), json.dumps({"Id": 1, "Statement": [statement()]}),
    *(json.dumps({"Statement": [bad]}) for bad in (
        statement(Effect="allow"), statement(Effect=None), statement(Principal=None), statement(Action=None),
        statement(Resource=None), statement(Principal="two"), statement(Principal={"Service": "x"}),
        statement(Principal={"AWS": []}), statement(Principal={"AWS": "t*o"}), statement(Principal={"AWS": "arn:x"}),
        statement(Principal={}), statement(Principal=None, NotPrincipal="*"), statement(NotPrincipal="*"),
        statement(Action=[]), statement(Action="ec2:*"), statement(Action="GetObject"), statement(Action=[1]),
        statement(Action="s3:Get Object"), statement(NotAction="s3:*"), statement(Sid=1), statement(Other=1),
        statement(Resource="arn:aws:s3:::c/*"), statement(Resource="b/*"), statement(Resource={}),
        statement(Resource="arn:aws:s3:::${aws:username}/*"), statement(Condition=[]), statement(Condition={"X": {}}),
        statement(Condition={"StringEquals": {}}), statement(Condition={"StringEquals": {"aws:Unknown": "x"}}),
        statement(Condition={"StringEquals": {PREFIX: []}}), statement(Condition={"StringEquals": {PREFIX: {}}}),
        statement(Condition={"StringEquals": {PREFIX: None}}), statement(Condition={"IpAddress": {IP: "x"}}),
        statement(Condition={"IpAddress": {IP: "10.0.0.0/33"}}), statement(Condition={"NumericEquals": {PREFIX: "x"}}),
        statement(Condition={"DateEquals": {NOW: "yesterday"}}), statement(Condition={"Bool": {PREFIX: "yes"}}),
        statement(Condition={"NullIfExists": {PREFIX: "true"}}), statement(Condition={"Null": {PREFIX: "x"}}),
        statement(Condition={"ArnLike": {"aws:PrincipalArn": "x"}}),
        statement(Condition={"StringEquals": {"s3:ExistingObjectTag/": "x"}}),
    )),
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_policy(text):
    with pytest.raises(errors.MalformedPolicy) as error:
        policy.parse(text, "b")
    assert error.value.message and len(error.value.message) < 400


def test_variables_must_be_known():
    with pytest.raises(errors.MalformedPolicy):
        read(statement(Resource="arn:aws:s3:::b/${aws:nothing}"))


def test_random_documents_are_policies_or_malformed():
    """Whatever comes, nothing but MalformedPolicy is raised, by reading or by asking."""
    chance = random.Random(20261123)
    good = json.dumps({"Version": "2012-10-17", "Statement": [
        statement(Condition={"StringLike": {PREFIX: "a*${aws:username}"}, "IpAddress": {IP: "10.0.0.0/8"},
                             "DateLessThan": {NOW: "2026-01-01"}, "NumericEquals": {"s3:max-keys": 5}}),
        statement(Effect="Deny", Principal=None, NotPrincipal={"AWS": "two"})]})
    words = [*"{}[]\",:*?$0", "Allow", "${", "\\ud800", "\\u0000", "1e999", "-0", "arn:aws:s3:::b", "NotAction", "null"]
    leaves = ["*", "", "s3:*", GET, "arn:aws:s3:::b/*", "${aws:username}", 0, 1e300, None, True, "\ud800", "10.0.0.0/8"]
    names = ["Effect", "Principal", "AWS", "Action", "NotResource", "Resource", "Condition", "StringLike", PREFIX,
             "Sid", "Null", "DateEquals", "IpAddress", "Statement", "ForAllValues:StringNotLike"]

    def anything(depth):
        kind = chance.randrange(4) if depth else 0
        if kind == 1:
            return [anything(depth - 1) for _ in range(chance.randrange(3))]
        if kind > 1:
            return {chance.choice(names): anything(depth - 1) for _ in range(chance.randrange(4))}
        return chance.choice(leaves)

    read_ones = 0
    for number in range(6000):
        if number % 2:
            text = list(good)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(text))
                text[at:at + chance.randrange(3)] = chance.choice(words)
            document = "".join(text)
        else:
            made = statement()
            made[chance.choice([*made, "Condition"])] = anything(4)
            document = json.dumps({"Version": "2012-10-17", "Statement": [made]})
        try:
            found = policy.parse(document, "b")
        except errors.MalformedPolicy:
            continue
        read_ones += 1
        for values in ({}, VALUES, {key: ("\ud800*", "") for key in VALUES}):
            assert isinstance(found.effect(TWO, (GET,), "arn:aws:s3:::b/k", values, "one"), Effect)
        assert found.is_public in (True, False) and found.needs_tags in (True, False)
    assert 100 < read_ones < 5900
