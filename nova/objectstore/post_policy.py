"""The policy of a form: what whoever signed it lets others upload.

Pure functions.  Rules: Amazon S3 API reference, "POST policy".  Every field of the form must be covered by a condition
of the policy, but those that carry the signature, the file, the policy itself and those that begin with x-ignore-.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nova.objectstore import errors

_EXEMPT = frozenset(("awsaccesskeyid", "signature", "x-amz-signature", "file", "policy"))
_IGNORED = "x-ignore-"
_LENGTH_RANGE = "content-length-range"


@dataclass(frozen=True)
class Condition:
    """One condition: `operator` is eq or starts-with, `field` a field's name in lower case without its $."""

    operator: str
    field: str
    value: str

    def holds(self, given: str) -> bool:
        """Whether a field's value is what the condition wants; a starts-with on the content type wants it of each."""
        if self.operator == "eq":
            return given == self.value
        values = [v.strip() for v in given.split(",")] if self.field == "content-type" else [given]
        return all(value.startswith(self.value) for value in values)

    def __str__(self) -> str:
        return json.dumps([self.operator, f"${self.field}", self.value])


@dataclass(frozen=True)
class Policy:
    """A policy: until when it holds, its conditions, and how many bytes the file may have."""

    expiration: datetime
    conditions: tuple[Condition, ...]
    smallest: int = 0
    largest: int | None = None


def read(encoded: str) -> Policy:
    """Read a policy.

    :param encoded: base64 of JSON, as the form has it
    :raises InvalidPolicyDocument: it is none
    """
    try:
        document = json.loads(base64.b64decode("".join(encoded.split()), validate=True).decode())
    except (binascii.Error, ValueError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("Invalid JSON.")
    unknown = sorted(set(document) - {"expiration", "conditions"})
    if unknown:
        raise _invalid(f"Unexpected: '{unknown[0][:64]}'.")
    conditions: list[Condition] = []
    ranges: list[tuple[int, int]] = []
    listed = document.get("conditions")
    if not isinstance(listed, list):
        raise _invalid("Policy missing conditions." if listed is None else "Invalid conditions.")
    for item in listed:
        if isinstance(item, dict):
            conditions += [_condition("eq", "$" + name, value) for name, value in item.items()]
        elif isinstance(item, list) and len(item) == 3 and isinstance(item[0], str):
            if item[0].lower() == _LENGTH_RANGE:
                ranges.append((_bytes(item[1]), _bytes(item[2])))
            else:
                conditions.append(_condition(*item))
        else:
            raise _invalid("Invalid Condition: wrong number of arguments.")
    return Policy(_expiration(document.get("expiration")), tuple(conditions),
                  max((low for low, _ in ranges), default=0), min((high for _, high in ranges), default=None))


def _condition(operator: str, field: Any, value: Any) -> Condition:
    if operator.lower() not in ("eq", "starts-with"):
        raise _invalid(f"Invalid Condition operator: {operator[:64]}.")
    if not isinstance(field, str) or not field.startswith("$") or not isinstance(value, str):
        raise _invalid("Invalid Simple-Condition: field and value must be text, and the field begin with $.")
    return Condition(operator.lower(), field[1:].lower(), value)


def _bytes(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _invalid("Invalid content-length-range: it must have two numbers of bytes.")
    return value


def _expiration(text: Any) -> datetime:
    if text is None:
        raise _invalid("Policy missing expiration.")
    try:
        moment = datetime.fromisoformat(text)
        if not 1970 <= moment.year < 9000:
            raise ValueError("a year that leaves no room to calculate with")
    except (ValueError, TypeError):
        raise _invalid(f"Invalid 'expiration' value: '{str(text)[:64]}'") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _invalid(reason: str) -> errors.InvalidPolicyDocument:
    return errors.InvalidPolicyDocument(reason=reason)


def check(policy: Policy, fields: Mapping[str, str], bucket: str) -> None:
    """Return if a form may be taken.

    :param fields: by name in lower case, ``${filename}`` already replaced
    :param bucket: to which the form is sent
    :raises AccessDenied: a condition does not hold, or a field is not covered by any
    """
    given = {**fields, "bucket": bucket}  # the field of this name says nothing
    for condition in policy.conditions:
        if not condition.holds(given.get(condition.field, "")):
            raise errors.AccessDenied(f"Invalid according to Policy: Policy Condition failed: {condition}")
    covered = {condition.field for condition in policy.conditions} | _EXEMPT
    extra = sorted(name for name in fields if name not in covered and not name.startswith(_IGNORED))
    if extra:
        raise errors.AccessDenied(f"Invalid according to Policy: Extra input fields: {', '.join(extra)[:256]}")


def check_size(policy: Policy, size: int) -> None:
    """Return if the file has as many bytes as it may; :raises EntityTooSmall, EntityTooLarge:"""
    if size < policy.smallest:
        raise errors.EntityTooSmall()
    if policy.largest is not None and size > policy.largest:
        raise errors.EntityTooLarge(limit=policy.largest)
