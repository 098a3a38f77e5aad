"""When objects, their versions and uploads expire: the rules of a bucket's lifecycle.

Pure functions; nova.objectstore.expiry does what they say.  Rules: Amazon S3 API reference,
"PutBucketLifecycleConfiguration", and user guide, "Lifecycle configuration elements" and "Expiring objects".  A
configuration is the dictionary that nova.wire.rest_xml reads, its moments as ISO 8601 text.
"""

import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from nova.objectstore import errors, tags, versions
from nova.objectstore.models import Bucket, Object

MAX_RULES = 1000
DAY = 24 * 3600
_MAX_ID = 255
_MAX_DAYS = 2**31 - 1
_MAX_NEWER = 100
#: the last second that a header can tell, of the year 9999
_LAST_MOMENT = 253_402_300_799
_ACTIONS = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_TRANSITIONS = ("Transitions", "NoncurrentVersionTransitions", "Transition", "NoncurrentVersionTransition")
_MIXED = "Base level prefix cannot be used in Lifecycle V2, prefixes are only supported in the Filter."


# -- checking ---------------------------------------------------------------------------------------------------------

def read(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration as S3 does, and give each rule an id.

    :param configuration: as nova.wire.rest_xml reads it
    :returns: what is kept: only what JSON has
    :raises InvalidArgument, InvalidRequest, MalformedXML, InvalidTag, NotImplementedYet:
    """
    rules = configuration["Rules"]
    if not 0 < len(rules) <= MAX_RULES:
        raise errors.MalformedXML()
    if len({"Filter" in rule for rule in rules}) > 1:
        raise errors.InvalidRequest(reason=_MIXED)
    kept = []
    for rule in rules:
        _check_rule(rule)
        kept.append({"ID": rule.get("ID") or uuid.uuid4().hex, **{n: v for n, v in rule.items() if n != "ID"}})
        expiration = rule.get("Expiration", {})
        if "Date" in expiration:
            kept[-1]["Expiration"] = {**expiration, "Date": f"{expiration['Date']:%4Y-%m-%dT%H:%M:%SZ}"}
    if len({rule["ID"] for rule in kept}) != len(kept):
        raise errors.InvalidArgument(reason="Rule ID must be unique. Found same ID for more than one rule")
    return {"Rules": kept}


def _check_rule(rule: Mapping[str, Any]) -> None:
    if len(rule.get("ID", "")) > _MAX_ID:
        raise errors.InvalidArgument(reason=f"ID length should not exceed allowed limit of {_MAX_ID}")
    if any(rule.get(name) for name in _TRANSITIONS):
        raise errors.NotImplementedYet(what="Transition to another storage class")
    if not any(name in rule for name in _ACTIONS):
        raise errors.InvalidRequest(reason="At least one action needs to be specified in a rule.")
    if "Filter" in rule and "Prefix" in rule:
        raise errors.InvalidRequest(reason=_MIXED)
    if "Filter" not in rule and "Prefix" not in rule:
        raise errors.MalformedXML()
    parts = _check_filter(rule.get("Filter", {}))
    abort = rule.get("AbortIncompleteMultipartUpload")
    if abort is not None:
        _positive(abort.get("DaysAfterInitiation"), "'DaysAfterInitiation' for AbortIncompleteMultipartUpload action")
        _only_prefix(parts, "AbortIncompleteMultipartUpload cannot be specified with Tags or object sizes.")
    noncurrent = rule.get("NoncurrentVersionExpiration")
    if noncurrent is not None:
        _positive(noncurrent.get("NoncurrentDays"), "'NoncurrentDays' for NoncurrentVersionExpiration action")
        newer = noncurrent.get("NewerNoncurrentVersions")
        if newer is not None and not 0 < newer <= _MAX_NEWER:
            raise errors.InvalidArgument(reason="'NewerNoncurrentVersions' for NoncurrentVersionExpiration action must "
                                                f"be between 1 and {_MAX_NEWER}")
        if newer is not None and "Filter" not in rule:
            raise errors.InvalidRequest(reason="NewerNoncurrentVersions element can only be used in Lifecycle V2.")
    if "Expiration" in rule:
        _check_expiration(rule["Expiration"], parts)


def _check_expiration(expiration: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    if len(expiration) != 1:
        raise errors.MalformedXML()
    if "Days" in expiration:
        _positive(expiration["Days"], "'Days' for Expiration action")
    if "Date" in expiration and expiration["Date"].timestamp() % DAY:
        raise errors.InvalidArgument(reason="'Date' must be at midnight GMT")
    if "ExpiredObjectDeleteMarker" in expiration:
        _only_prefix(parts, "ExpiredObjectDeleteMarker cannot be specified with Tags or object sizes.")


def _positive(days: int | None, what: str) -> None:
    if days is None:
        raise errors.MalformedXML()
    if not 0 < days <= _MAX_DAYS:
        raise errors.InvalidArgument(reason=f"{what} must be a positive integer")


def _only_prefix(parts: Mapping[str, Any], reason: str) -> None:
    if set(parts) - {"Prefix"}:
        raise errors.InvalidRequest(reason=reason)


def _check_filter(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a filter wants; :raises MalformedXML, InvalidTag, InvalidRequest:"""
    if len(given) > 1:
        raise errors.MalformedXML()
    both = given.get("And")
    if both is not None and len(both) + len(both.get("Tags", ())) - ("Tags" in both) < 2:
        raise errors.MalformedXML()
    parts = _parts(given)
    tags.check(((tag["Key"], tag["Value"]) for tag in parts.get("Tags", ())), tags.MAX_OBJECT_TAGS)
    if len(parts.get("Prefix", "").encode()) > 1024:
        raise errors.InvalidRequest(reason="The maximum size of a prefix is 1024.")
    greater, less = parts.get("ObjectSizeGreaterThan"), parts.get("ObjectSizeLessThan")
    if (greater is not None and greater < 0) or (less is not None and less < 1):
        raise errors.InvalidRequest(reason="Object sizes must be positive numbers of bytes.")
    if greater is not None and less is not None and greater >= less - 1:
        raise errors.InvalidRequest(
            reason="'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'")
    return parts


def _parts(given: Mapping[str, Any]) -> dict[str, Any]:
    """A filter without its And, all of its tags in a list."""
    parts = dict(given.get("And", given))
    if "Tag" in parts:
        parts["Tags"] = [parts.pop("Tag")]
    return parts


# -- applying ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Rule:
    """An enabled rule, as it is applied.  Days are numbers of days, `date` seconds since 1970; None: not at all."""

    id: str
    prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    larger_than: int = -1
    smaller_than: float = math.inf
    days: int | None = None
    date: float | None = None
    removes_lone_markers: bool = False
    noncurrent_days: int | None = None
    keep_noncurrent: int = 0
    upload_days: int | None = None

    def chooses(self, found: Object) -> bool:
        """Whether the rule's filter matches an object or version."""
        return (found.key.startswith(self.prefix) and self.larger_than < found.size < self.smaller_than
                and all(found.tags.get(key) == value for key, value in self.tags))


def rules_of(bucket: Bucket) -> list[Rule]:
    """The enabled rules of a bucket."""
    return list(_rules(bucket.configuration.get("lifecycle") or {}))


def _rules(configuration: Mapping[str, Any]) -> Iterator[Rule]:
    for rule in configuration.get("Rules", ()):
        if rule["Status"] != "Enabled":
            continue
        parts = _parts(rule.get("Filter", {}))
        expiration, noncurrent = rule.get("Expiration", {}), rule.get("NoncurrentVersionExpiration", {})
        date = expiration.get("Date")
        yield Rule(
            rule["ID"], prefix=parts.get("Prefix", rule.get("Prefix", "")),
            tags=tuple((tag["Key"], tag["Value"]) for tag in parts.get("Tags", ())),
            larger_than=parts.get("ObjectSizeGreaterThan", -1), smaller_than=parts.get("ObjectSizeLessThan", math.inf),
            days=expiration.get("Days"), date=datetime.fromisoformat(date).timestamp() if date else None,
            removes_lone_markers=bool(expiration.get("ExpiredObjectDeleteMarker")),
            noncurrent_days=noncurrent.get("NoncurrentDays"),
            keep_noncurrent=noncurrent.get("NewerNoncurrentVersions", 0),
            upload_days=rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"))


def due(since: float, days: int) -> float:
    """When something has been there for so many days as S3 counts: up to the midnight (UTC) after the last of them.

    :param since: seconds since 1970, as is the result
    """
    return (since // DAY + days + 1) * DAY


def expiration(rules: list[Rule], found: Object) -> tuple[float, Rule] | None:
    """When a current object expires, in seconds since 1970, and by which rule; None if it does not."""
    moments = [(due(found.modified, rule.days) if rule.days is not None else rule.date, rule)
               for rule in rules if rule.chooses(found)]
    return min(((moment, rule) for moment, rule in moments if moment is not None), key=lambda m: m[0], default=None)


def version_is_over(rules: list[Rule], version: Object, since: float, newer: int, now: float) -> bool:
    """Whether a version that is not the current one is to be removed for good.

    :param since: when the next one took its place, in seconds since 1970 as is `now`
    :param newer: how many newer ones there are that are not current either
    """
    return any(rule.noncurrent_days is not None and rule.chooses(version) and newer >= rule.keep_noncurrent
               and due(since, rule.noncurrent_days) <= now for rule in rules)


def marker_is_over(rules: list[Rule], marker: Object, now: float) -> bool:
    """Whether a delete marker that is all that is left of its key is to be removed: if a rule says so, or it is as old
    as objects may be."""
    if any(rule.removes_lone_markers and rule.chooses(marker) for rule in rules):
        return True
    chosen = expiration(rules, marker)
    return chosen is not None and chosen[0] <= now


def upload_due(rules: list[Rule], key: str, initiated: float) -> float | None:
    """When an upload that is not completed is aborted, in seconds since 1970; None: never."""
    return min((due(initiated, rule.upload_days) for rule in rules
                if rule.upload_days is not None and key.startswith(rule.prefix)), default=None)


def headers(bucket: Bucket, found: Object) -> dict[str, str]:
    """The header that tells when an object expires, if it does."""
    if not bucket.configuration.get("lifecycle") or found.is_marker or not versions.is_current(found):
        return {}
    chosen = expiration(rules_of(bucket), found)
    if chosen is None:
        return {}
    moment, rule = chosen
    date = formatdate(min(moment, _LAST_MOMENT), usegmt=True)
    return {"x-amz-expiration": f'expiry-date="{date}", rule-id="{quote(rule.id, safe="")}"'}
