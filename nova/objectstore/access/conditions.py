"""The conditions of policy statements: operators, the keys that there are, and how both are read and tested.

Rules: IAM user guide, "IAM JSON policy elements: Condition operators" and "Multivalued context keys".
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nova.objectstore import errors
from nova.objectstore.access.pattern import Pattern, Values, compiled, folded

#: the keys that requests have values for
KEYS = frozenset("""
    aws:currenttime aws:epochtime aws:principalaccount aws:principalarn aws:principaltype aws:referer
    aws:resourceaccount aws:securetransport aws:sourceip aws:useragent aws:userid aws:username
    s3:authtype s3:delimiter s3:if-match s3:if-none-match s3:max-keys s3:objectcreationoperation s3:prefix
    s3:requestobjecttagkeys s3:resourceaccount s3:signatureversion
    s3:versionid s3:x-amz-acl s3:x-amz-content-sha256 s3:x-amz-copy-source s3:x-amz-grant-full-control
    s3:x-amz-grant-read s3:x-amz-grant-read-acp s3:x-amz-grant-write s3:x-amz-grant-write-acp
    s3:x-amz-metadata-directive s3:x-amz-object-ownership s3:x-amz-server-side-encryption s3:x-amz-storage-class
    """.split())
EXISTING_TAG, REQUEST_TAG = "s3:existingobjecttag/", "s3:requestobjecttag/"

#: whether a value of the request is as a value of the policy says
Test = Callable[[str, Values], bool]

_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_EPOCH = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_QUALIFIERS = ("ForAnyValue:", "ForAllValues:")
_IF_EXISTS = "IfExists"


def malformed(reason: str) -> errors.MalformedPolicy:
    """What is said of a policy."""
    return errors.MalformedPolicy(reason)


def shown(value: object) -> str:
    """A value of a document for a message."""
    return ascii(value)[:80]


@dataclass(frozen=True)
class Condition:
    """One operator on one key.

    `fixed` says that its values have neither wildcards nor variables, `wide` that one of them is a network so large
    that it names nobody: more than /8, or /32 of IPv6.  `keys` are all that it looks at.
    """

    operator: str
    key: str
    tests: tuple[Test, ...]
    negative: bool
    qualifier: str
    if_exists: bool
    fixed: bool
    wide: bool
    keys: frozenset[str]

    def holds(self, values: Values) -> bool:
        """Whether it does for a request."""
        found = values.get(self.key)
        if self.operator == "Null":
            return self.tests[0]("" if found is None else "present", values)
        if found is None and self.if_exists:
            return True
        results = [any(test(value, values) for test in self.tests) is not self.negative for value in found or ()]
        if self.qualifier == "ForAllValues:":
            return all(results)
        if self.qualifier == "ForAnyValue:":
            return any(results)
        return all(results) if self.negative else any(results)


def read(document: object, variables: bool) -> tuple[Condition, ...]:
    """The Condition element of a statement.

    :param variables: the policy may have variables
    :raises MalformedPolicy:
    """
    if not isinstance(document, dict):
        raise malformed("Condition must be an object of operators")
    return tuple(_condition(operator, key, value, variables)
                 for operator, block in document.items() for key, value in _block(operator, block))


def _block(operator: str, block: object) -> Iterable[tuple[str, object]]:
    if not isinstance(block, dict) or not block:
        raise malformed(f"The condition {shown(operator)} must be an object of keys and values")
    return block.items()


def _condition(name: str, key: str, value: object, variables: bool) -> Condition:
    qualifier = next((q for q in _QUALIFIERS if name.startswith(q)), "")
    plain = name.removeprefix(qualifier)
    base = plain.removesuffix(_IF_EXISTS)
    found = _OPERATORS.get(base)
    if found is None or (base == "Null" and (qualifier or plain != base)):
        raise malformed(f"Invalid Condition type : {shown(name)}")
    make, negative = found
    lower = folded(key)
    if not _is_key(lower):
        raise malformed(f"Policy has an invalid condition key: {shown(key)}")
    texts = [_text(item, key) for item in (value if isinstance(value, list) else [value])]
    if not texts or (base == "Null" and len(texts) != 1):
        raise malformed(f"The condition key {shown(key)} needs a value")
    tests, fixed, keys = [], True, {lower}
    for text in texts:
        pattern = compiled(text, wild="Like" in base or base.startswith("Arn"), variables=variables)
        check_variables(pattern)
        fixed = fixed and pattern.is_fixed
        keys |= pattern.variables
        tests.append(make(text, base, variables))
    wide = base == "IpAddress" and any(map(_is_wide, texts))
    return Condition(base, lower, tuple(tests), negative, qualifier, plain != base, fixed, wide, frozenset(keys))


def check_variables(pattern: Pattern) -> None:
    """:raises MalformedPolicy: a pattern has a variable that is no condition key"""
    for key in pattern.variables:
        if not _is_key(key):
            raise malformed(f"Invalid policy variable: {shown(key)}")


def _is_key(lower: str) -> bool:
    return lower in KEYS or (lower.startswith((EXISTING_TAG, REQUEST_TAG)) and bool(lower.partition("/")[2]))


def _text(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str):
        return str(value)
    raise malformed(f"The values of the condition key {shown(key)} must be strings")


# -- the operators ----------------------------------------------------------------------------------------------------

def _string(text: str, base: str, variables: bool) -> Test:
    pattern = compiled(text, wild=base.endswith("Like"), variables=variables)
    fold = base.endswith("IgnoreCase")
    return lambda value, values: pattern.matches(value, values, fold)


def _arn(text: str, base: str, variables: bool) -> Test:
    parts = text.split(":", 5)
    if len(parts) != 6 and text != "*":
        raise malformed(f"{shown(text)} is no ARN")
    patterns = [compiled(part, variables=variables) for part in parts] if len(parts) == 6 else []

    def test(value: str, values: Values) -> bool:
        found = value.split(":", 5)
        return len(found) == 6 and all(p.matches(v, values) for p, v in zip(patterns, found, strict=False))
    return test


def _ordered(read_value: Callable[[str], float | None], kind: str) -> Callable[[str, str, bool], Test]:
    """Operators that compare what has an order."""
    def make(text: str, base: str, variables: bool) -> Test:
        wanted = read_value(text)
        if wanted is None:
            raise malformed(f"{shown(text)} is no {kind}")
        compare = _COMPARISONS[base.removeprefix("Numeric").removeprefix("Date")]

        def test(value: str, values: Values) -> bool:
            number = read_value(value)
            return number is not None and compare(number, wanted)
        return test
    return make


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Equals": lambda a, b: a == b, "NotEquals": lambda a, b: a == b, "LessThan": lambda a, b: a < b,
    "LessThanEquals": lambda a, b: a <= b, "GreaterThan": lambda a, b: a > b, "GreaterThanEquals": lambda a, b: a >= b}


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _date(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 date, or of such seconds."""
    if _EPOCH.fullmatch(text):
        return float(text)
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _bool(text: str, base: str, variables: bool) -> Test:
    wanted = text.lower()
    if wanted not in ("true", "false"):
        raise malformed(f"{shown(text)} is neither true nor false")
    return lambda value, values: value.lower() == wanted


def _null(text: str, base: str, variables: bool) -> Test:
    wanted = text.lower()
    if wanted not in ("true", "false"):
        raise malformed(f"{shown(text)} is neither true nor false")
    return lambda value, values: (not value) is (wanted == "true")


def _address(text: str, base: str, variables: bool) -> Test:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise malformed(f"{shown(text)} is neither an address nor a CIDR block") from None

    def test(value: str, values: Values) -> bool:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return address in network
    return test


def _is_wide(text: str) -> bool:
    network = ipaddress.ip_network(text, strict=False)
    return network.prefixlen < (8 if network.version == 4 else 32)


_numeric, _dated = _ordered(_number, "number"), _ordered(_date, "date")
#: how an operator's values are made tests, and whether it is the negation of them
_OPERATORS: dict[str, tuple[Callable[[str, str, bool], Test], bool]] = {
    "StringEquals": (_string, False), "StringNotEquals": (_string, True), "StringLike": (_string, False),
    "StringNotLike": (_string, True), "StringEqualsIgnoreCase": (_string, False),
    "StringNotEqualsIgnoreCase": (_string, True),
    "ArnEquals": (_arn, False), "ArnLike": (_arn, False), "ArnNotEquals": (_arn, True), "ArnNotLike": (_arn, True),
    "IpAddress": (_address, False), "NotIpAddress": (_address, True), "Bool": (_bool, False), "Null": (_null, False),
    **{f"Numeric{name}": (_numeric, name == "NotEquals") for name in _COMPARISONS},
    **{f"Date{name}": (_dated, name == "NotEquals") for name in _COMPARISONS},
}
