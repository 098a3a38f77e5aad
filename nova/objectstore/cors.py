"""Which web pages of other origins may use a bucket: checking the rules, and what a browser is told of them.

Pure functions.  Rules: Amazon S3 user guide, "Using cross-origin resource sharing (CORS)", and the Fetch standard,
"HTTP CORS protocol".  A configuration is the dictionary that nova.wire.rest_xml reads for PutBucketCors.
"""

import re
from collections.abc import Mapping
from typing import Any

from nova.objectstore import errors

MAX_RULES = 100
_METHODS = frozenset(("GET", "PUT", "HEAD", "POST", "DELETE"))
_MAX_ID = 255
_VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\uffff]")


def check(configuration: Mapping[str, Any]) -> None:
    """Refuse rules that S3 would refuse; :raises InvalidRequest, MalformedXML:"""
    rules = configuration["CORSRules"]
    if len(rules) > MAX_RULES:
        raise errors.InvalidRequest(reason=f"The number of CORS rules should not exceed allowed limit of {MAX_RULES} "
                                           "rules.")
    for rule in rules:
        if not rule["AllowedMethods"] or not rule["AllowedOrigins"]:
            raise errors.MalformedXML()
        for method in rule["AllowedMethods"]:
            if method not in _METHODS:
                raise errors.InvalidRequest(
                    reason=f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:64]}")
        for name in ("AllowedOrigins", "AllowedHeaders"):
            for value in rule.get(name, ()):
                if value.count("*") > 1:
                    raise errors.InvalidRequest(reason=f'{name[:-1]} "{value[:256]}" can not have more than one '
                                                       "wildcard.")
        for value in rule.get("ExposeHeaders", ()):
            if "*" in value:
                raise errors.InvalidRequest(reason=f'ExposeHeader "{value[:256]}" contains wildcard. We currently do '
                                                   "not support wildcard for ExposeHeader.")
        texts = [*rule["AllowedOrigins"], *rule.get("AllowedHeaders", ()), *rule.get("ExposeHeaders", ())]
        if any(_CONTROL.search(text) or not text for text in texts) or len(rule.get("ID", "")) > _MAX_ID or (
                rule.get("MaxAgeSeconds", 0) < 0):
            raise errors.InvalidRequest(reason="A CORS rule has a value that is not valid.")


def answer(configuration: Mapping[str, Any], origin: str, method: str, asked: str | None = None) -> dict[str, str]:
    """The headers for a page of an origin that does, or with a preflight asks to do, a request.

    :param configuration: of the bucket; empty if it has none
    :param asked: the Access-Control-Request-Headers; None without
    :returns: nothing if no rule allows it
    """
    names = [name.strip().lower() for name in (asked or "").split(",") if name.strip()]
    for rule in configuration.get("CORSRules", ()):
        allowed = next((pattern for pattern in rule["AllowedOrigins"] if _matches(pattern, origin)), None)
        if allowed is None or method not in rule["AllowedMethods"]:
            continue
        patterns = [pattern.lower() for pattern in rule.get("AllowedHeaders", ())]
        if all(any(_matches(pattern, name) for pattern in patterns) for name in names):
            return _headers(rule, "*" if allowed == "*" else origin, names)
    return {}


def preflight(configuration: Mapping[str, Any] | None, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that answer a preflight request.

    :param configuration: of the bucket; empty if it has none; None if there is no bucket
    :param headers: of the request
    :raises BadRequest: it is no preflight request
    :raises AccessForbidden: no rule allows what it asks for
    """
    origin, method = headers.get("Origin"), headers.get("Access-Control-Request-Method")
    if not origin:
        raise errors.BadRequest(reason="Insufficient information. Origin request header needed.")
    if method not in _METHODS:
        raise errors.BadRequest(reason=f"Invalid Access-Control-Request-Method: {(method or 'null')[:64]}")
    if configuration is None:
        raise errors.AccessForbidden(reason="Bucket not found")
    if not configuration:
        raise errors.AccessForbidden(reason="CORS is not enabled for this bucket.")
    found = answer(configuration, origin, method, headers.get("Access-Control-Request-Headers"))
    if not found:
        raise errors.AccessForbidden(
            reason="This CORS request is not allowed. This is usually because the evalution of Origin, request method "
                   "/ Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the "
                   "resource's CORS spec.")
    return found


def _headers(rule: Mapping[str, Any], origin: str, names: list[str]) -> dict[str, str]:
    found = {"Access-Control-Allow-Origin": origin,
             "Access-Control-Allow-Methods": ", ".join(rule["AllowedMethods"]), "Vary": _VARY}
    if names:
        found["Access-Control-Allow-Headers"] = ", ".join(names)
    if rule.get("ExposeHeaders"):
        found["Access-Control-Expose-Headers"] = ", ".join(rule["ExposeHeaders"])
    if rule.get("MaxAgeSeconds") is not None:
        found["Access-Control-Max-Age"] = str(rule["MaxAgeSeconds"])
    if origin != "*":
        found["Access-Control-Allow-Credentials"] = "true"
    return found


def _matches(pattern: str, text: str) -> bool:
    """Whether a text is the pattern, in which one ``*`` stands for any characters."""
    start, star, end = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end)
