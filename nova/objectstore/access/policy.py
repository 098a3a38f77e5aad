"""Bucket policies: read from JSON, and asked what they say of a request.

The language is that of IAM (IAM user guide, "IAM JSON policy elements reference"), as far as it needs no users but
Nova's own.  A policy is read strictly: what it says and Nova does not know is MalformedPolicy, because a restriction
that is not understood must not be ignored.
"""

import enum
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nova.objectstore.access import conditions
from nova.objectstore.access.conditions import Condition, malformed, shown
from nova.objectstore.access.pattern import Pattern, Values, compiled

#: bytes that a policy may have (Amazon S3 user guide, "Bucket policies")
MAX_POLICY = 20 << 10
_VERSIONS = ("2012-10-17", "2008-10-17")
_ARN = "arn:aws:s3:::"
_ELEMENTS = frozenset(("Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource",
                       "Condition"))
_ACTION = re.compile(r"\*|s3:[A-Za-z*?]+", re.IGNORECASE)
_NAME = re.compile(r"[^\s:/*?]{1,256}")
_USER = re.compile(r"arn:aws:iam::([^\s:/*?]{1,256}):(root|user/([^\s:/*?]{1,256}))")


class Effect(enum.Enum):
    """What a policy says of a request."""

    NOTHING = "nothing"
    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True)
class Asker:
    """Who asks; '' for user and project of who has not signed."""

    project: str
    user: str

    @property
    def is_anonymous(self) -> bool:
        """Nobody knows who."""
        return not self.project


@dataclass(frozen=True)
class Principals:
    """Whom a statement names: everybody, whole projects, users in projects."""

    everybody: bool
    projects: frozenset[str]
    users: frozenset[tuple[str, str]]

    def name(self, asker: Asker, home: str) -> bool:
        """Whether they name who asks.

        :param home: a project that is not meant when it is named as a whole
        """
        if self.everybody:
            return True
        if asker.is_anonymous:
            return False
        return (asker.project, asker.user) in self.users or (asker.project in self.projects and asker.project != home)


@dataclass(frozen=True)
class Statement:
    """One statement."""

    effect: Effect
    principals: Principals
    not_principals: bool
    actions: tuple[Pattern, ...]
    not_actions: bool
    resources: tuple[Pattern, ...]
    not_resources: bool
    conditions: tuple[Condition, ...]

    def applies(self, asker: Asker, action: str, resource: str, values: Values, home: str) -> bool:
        """Whether it is about this request."""
        named = self.principals.name(asker, home if self.effect is Effect.ALLOW else "")
        return (named is not self.not_principals
                and any(p.matches(action, values, fold=True) for p in self.actions) is not self.not_actions
                and any(p.matches(resource, values) for p in self.resources) is not self.not_resources
                and all(condition.holds(values) for condition in self.conditions))

    @property
    def is_public(self) -> bool:
        """Whether it lets in whoever comes (S3 user guide, "Blocking public access", "The meaning of public")."""
        return (self.effect is Effect.ALLOW and self.principals.everybody
                and not any(map(_limits_who, self.conditions)))


@dataclass(frozen=True)
class Policy:
    """A policy."""

    statements: tuple[Statement, ...]

    def effect(self, asker: Asker, actions: Iterable[str], resource: str, values: Values, home: str) -> Effect:
        """What it says of a request.

        :param actions: all of them are done; denied if one is, allowed if all are
        :param resource: an ARN
        :param values: what the request has under the condition keys
        :param home: the bucket's project.  To allow something to it as a whole is left to its roles
        """
        effects = {self._effect(asker, action, resource, values, home) for action in actions}
        if Effect.DENY in effects:
            return Effect.DENY
        return Effect.ALLOW if effects == {Effect.ALLOW} else Effect.NOTHING

    def _effect(self, asker: Asker, action: str, resource: str, values: Values, home: str) -> Effect:
        effects = {s.effect for s in self.statements if s.applies(asker, action, resource, values, home)}
        return next((e for e in (Effect.DENY, Effect.ALLOW) if e in effects), Effect.NOTHING)

    @property
    def is_public(self) -> bool:
        """Whether it lets in whoever comes."""
        return any(statement.is_public for statement in self.statements)

    @property
    def keys(self) -> frozenset[str]:
        """The condition keys that it looks at."""
        found: set[str] = set()
        for statement in self.statements:
            found.update(*(c.keys for c in statement.conditions), *(p.variables for p in statement.resources))
        return frozenset(found)

    @property
    def needs_tags(self) -> bool:
        """Whether it looks at the tags of objects that are there."""
        return any(key.startswith(conditions.EXISTING_TAG) for key in self.keys)


#: by these a condition can say who or from where
_WHO = frozenset(("aws:sourceip", "aws:userid", "aws:principalarn", "aws:principalaccount"))


def _limits_who(condition: Condition) -> bool:
    """Whether a condition names fixed users, projects or networks."""
    if (condition.key not in _WHO or condition.negative or condition.if_exists or not condition.fixed
            or condition.qualifier == "ForAllValues:" or condition.operator == "Null"):
        return False
    return condition.operator != "IpAddress" or not condition.wide


def bucket_arn(bucket: str) -> str:
    """The name of a bucket."""
    return _ARN + bucket


def object_arn(bucket: str, key: str) -> str:
    """The name of an object."""
    return f"{_ARN}{bucket}/{key}"


# -- reading ----------------------------------------------------------------------------------------------------------

@lru_cache(256)
def parse(text: str, bucket: str) -> Policy:
    """Read the policy of a bucket.

    :raises MalformedPolicy: it is none, or not for this bucket
    """
    if len(text.encode(errors="surrogatepass")) > MAX_POLICY:
        raise malformed("Policy exceeds the maximum allowed document size.")
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise malformed("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(document, dict):
        raise malformed("Policies must be valid JSON and the first byte must be '{'")
    _check_elements(document, frozenset(("Version", "Id", "Statement")))
    version = document.get("Version", _VERSIONS[1])
    if version not in _VERSIONS:
        raise malformed(f"Version must be one of {', '.join(_VERSIONS)}")
    if not isinstance(document.get("Id", ""), str):
        raise malformed("Id must be a string")
    statements = document.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not statements:
        raise malformed("Missing required field Statement")
    return Policy(tuple(_statement(item, bucket, version == _VERSIONS[0]) for item in statements))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise malformed("Duplicate elements are not allowed in a policy")
    return found


def _constant(name: str) -> None:
    raise ValueError(name)


def _check_elements(document: dict[str, Any], known: frozenset[str]) -> None:
    for name in document:
        if name not in known:
            raise malformed(f"Unknown field {shown(name)}")


def _statement(document: object, bucket: str, variables: bool) -> Statement:
    if not isinstance(document, dict):
        raise malformed("Statement must be an object or a list of objects")
    _check_elements(document, _ELEMENTS)
    if not isinstance(document.get("Sid", ""), str):
        raise malformed("Sid must be a string")
    effect = document.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise malformed(f"Invalid effect : {shown(effect)}" if effect else "Missing required field Effect")
    principals, not_principals = _either(document, "Principal")
    if not_principals and effect == "Allow":
        raise malformed("Allow with NotPrincipal would let in everybody else; use it with Deny")
    actions, not_actions = _either(document, "Action")
    resources, not_resources = _either(document, "Resource")
    return Statement(
        Effect(effect), _principals(principals), not_principals,
        tuple(map(_action, _strings(actions, "Action"))), not_actions,
        tuple(_resource(item, bucket, variables) for item in _strings(resources, "Resource")), not_resources,
        conditions.read(document["Condition"], variables) if "Condition" in document else ())


def _either(document: dict[str, Any], name: str) -> tuple[Any, bool]:
    """The element of a name or of its negation, and which of them it is."""
    if (name in document) == (f"Not{name}" in document):
        raise malformed(f"A statement must have either {name} or Not{name}")
    return (document[name], False) if name in document else (document[f"Not{name}"], True)


def _strings(value: object, name: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    texts = [item for item in items if isinstance(item, str) and item]
    if not items or len(texts) != len(items):
        raise malformed(f"{name} must be a string or a list of strings")
    return texts


def _principals(value: object) -> Principals:
    if value == "*":
        return Principals(True, frozenset(), frozenset())
    if not isinstance(value, dict) or not value:
        raise malformed("Invalid principal in policy")
    everybody, projects, users = False, set(), set()
    for kind, named in value.items():
        if kind not in ("AWS", "CanonicalUser"):
            raise malformed(f"Invalid principal in policy: {shown(kind)} is none that this cloud knows")
        for name in _strings(named, "Principal"):
            found = _USER.fullmatch(name) if kind == "AWS" else None
            if name == "*" and kind == "AWS":
                everybody = True
            elif found and found[3]:
                users.add((found[1], found[3]))
            elif found or _NAME.fullmatch(name):
                projects.add(found[1] if found else name)
            else:
                raise malformed(f"Invalid principal in policy: {shown(name)} is neither a project nor "
                                "arn:aws:iam::<project>:root nor arn:aws:iam::<project>:user/<user>")
    return Principals(everybody, frozenset(projects), frozenset(users))


def _action(text: str) -> Pattern:
    if not _ACTION.fullmatch(text):
        raise malformed(f"Policy has invalid action: {shown(text)}")
    return compiled(text)


def _resource(text: str, bucket: str, variables: bool) -> Pattern:
    pattern = compiled(text, variables=variables)
    conditions.check_variables(pattern)
    named = text.removeprefix(_ARN).partition("/")[0]
    if text != "*" and (not text.startswith(_ARN) or not compiled(named).matches(bucket, {})):
        raise malformed(f"Policy has invalid resource: {shown(text)} is not {_ARN}{bucket} or something in it")
    return pattern

