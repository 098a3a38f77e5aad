"""Tags given at creation."""

import pytest

from nova import exception
from nova.cloud import tags


def params(*given: dict[str, str], kind: str | None = "instance") -> dict:
    specification: dict = {"Tags": list(given)}
    if kind is not None:
        specification["ResourceType"] = kind
    return {"TagSpecifications": [specification]}


def tag(key: str, value: str = "v") -> dict[str, str]:
    return {"Key": key, "Value": value}


def test_no_specification_gives_no_tags() -> None:
    assert tags.at_creation({}, "instance") == {}


def test_tags_are_taken() -> None:
    assert tags.at_creation(params(tag("a", "1"), tag("b", "")), "instance") == {"a": "1", "b": ""}


def test_a_tag_without_a_value_has_an_empty_one() -> None:
    assert tags.at_creation(params({"Key": "a"}), "instance") == {"a": ""}


def test_tags_for_another_kind_of_resource_are_refused() -> None:
    with pytest.raises(exception.InvalidParameterValue, match="'volume' is not a valid taggable resource"):
        tags.at_creation(params(tag("a"), kind="volume"), "instance")


@pytest.mark.parametrize("given", [tag(""), tag("k" * 129), tag("aws:mine"), tag("a", "v" * 257), {"Value": "v"}],
                         ids=["empty key", "long key", "aws: key", "long value", "no key"])
def test_a_tag_that_breaks_a_limit_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        tags.at_creation(params(given), "instance")


def test_a_tag_at_the_limits_is_taken() -> None:
    assert tags.at_creation(params(tag("k" * 128, "v" * 256)), "instance")


def test_a_value_may_begin_with_aws() -> None:
    assert tags.at_creation(params(tag("a", "aws:b")), "instance") == {"a": "aws:b"}


def test_a_resource_has_at_most_fifty_tags() -> None:
    assert len(tags.at_creation(params(*(tag(f"k{n}") for n in range(50))), "instance")) == 50
    with pytest.raises(exception.TagLimitExceeded, match="50"):
        tags.at_creation(params(*(tag(f"k{n}") for n in range(51))), "instance")


def test_tags_are_listed_by_key() -> None:
    assert tags.view({"b": "2", "a": "1"}) == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
