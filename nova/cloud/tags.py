"""Tags: the names and values that users put on resources."""

from collections.abc import Iterable, Mapping
from typing import Any

from nova import exception

#: EC2's limits (User Guide, "Tag your Amazon EC2 resources")
MAX_TAGS, MAX_KEY, MAX_VALUE = 50, 128, 256
#: what the keys of the cloud's own tags begin with, in any case
_RESERVED = "aws:"


def at_creation(params: dict[str, Any], resource_type: str) -> dict[str, str]:
    """The tags that an action's TagSpecifications give to what it creates.

    :raises exception.InvalidParameterValue: they are for resources that the action does not create, or break a limit
    :raises exception.TagLimitExceeded:
    """
    tags: dict[str, str] = {}
    for specification in params.get("TagSpecifications", []):
        kind = specification.get("ResourceType", resource_type)
        if kind != resource_type:
            raise exception.InvalidParameterValue(f"'{kind}' is not a valid taggable resource type for this operation.")
        tags = merged(tags, checked(specification.get("Tags", [])))
    return tags


def checked(given: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags as a request has them; one without a value has an empty one.

    :raises exception.InvalidParameterValue: a key or value breaks a limit
    """
    tags = {}
    for tag in given:
        key, value = check_key(tag.get("Key", "")), tag.get("Value", "")
        if len(value) > MAX_VALUE:
            raise exception.InvalidParameterValue(
                f"Tag value exceeds the maximum length of {MAX_VALUE} characters: it has {len(value)}.")
        tags[key] = value
    return tags


def check_key(key: str) -> str:
    """The key, if a tag may have it; :raises exception.InvalidParameterValue:"""
    if not key:
        raise exception.InvalidParameterValue("Tag key cannot be null or empty.")
    if len(key) > MAX_KEY:
        raise exception.InvalidParameterValue(
            f"Tag key exceeds the maximum length of {MAX_KEY} characters: it has {len(key)}.")
    if key.lower().startswith(_RESERVED):
        raise exception.InvalidParameterValue(f"Tag keys starting with '{_RESERVED}' are reserved for internal use.")
    return key


def merged(tags: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """The tags of a resource that has some and gets others; :raises exception.TagLimitExceeded:"""
    together = {**tags, **added}
    if len(together) > MAX_TAGS:
        raise exception.TagLimitExceeded(f"A resource has at most {MAX_TAGS} tags.")
    return together


def view(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as EC2 lists them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
