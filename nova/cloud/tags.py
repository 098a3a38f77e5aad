"""Tags: the names and values that users put on resources."""

from typing import Any

from nova import exception

#: EC2's limits (User Guide, "Tag your Amazon EC2 resources")
MAX_TAGS, MAX_KEY, MAX_VALUE = 50, 128, 256


def at_creation(params: dict[str, Any], resource_type: str) -> dict[str, str]:
    """The tags that an action's TagSpecifications give to what it creates.

    :raises exception.InvalidParameterValue: they are for resources that the action does not create, or break a limit
    """
    tags: dict[str, str] = {}
    for specification in params.get("TagSpecifications", []):
        kind = specification.get("ResourceType", resource_type)
        if kind != resource_type:
            raise exception.InvalidParameterValue(f"'{kind}' is not a valid taggable resource type for this operation.")
        for tag in specification.get("Tags", []):
            key = _checked(tag.get("Key", ""), "Key", 1, MAX_KEY)
            tags[key] = _checked(tag.get("Value", ""), "Value", 0, MAX_VALUE)
    if len(tags) > MAX_TAGS:
        raise exception.InvalidParameterValue(f"A resource has at most {MAX_TAGS} tags.")
    return tags


def _checked(text: str, what: str, least: int, most: int) -> str:
    if not least <= len(text) <= most or (what == "Key" and text.startswith("aws:")):
        raise exception.InvalidParameterValue(
            f"Value ({text[:32]!r}) for parameter Tag.{what} is invalid: {least} to {most} characters, and a key does "
            f"not begin with 'aws:'")
    return text


def view(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as EC2 lists them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
