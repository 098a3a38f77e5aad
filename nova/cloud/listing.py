"""What all Describe actions have in common: asked-for ids, filters, pages.

An action hands over all items that its caller may see; the mechanism checks that every asked-for id is among
them, filters, sorts by id, cuts a page, and lets the action group what is left (instances into reservations).

Filters (EC2 User Guide, "List and filter using the CLI and API"): values of one filter are alternatives,
several filters must all match; ``*`` stands for any characters, ``?`` for one, a backslash takes their
meaning away; values are case-sensitive.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nova import exception
from nova.wire import xml
from nova.wire.model import Operation
from nova.wire.parameters import shown

Item = dict[str, Any]
Group = Callable[[list[Item]], list[Item]]
#: the texts of an item that a filter's values are compared with
Texts = Callable[[Item], Iterator[str]]
Matcher = Callable[[str], object]

#: values that one filter may have (EC2 API reference, Filter)
MAX_FILTER_VALUES = 200


@dataclass(frozen=True)
class Listing:
    """How a Describe action lists.

    :param result: member of the result that gets the list
    :param id_member: member of an item that is its id, unique and the order of the list
    :param ids_param: parameter that asks for ids
    :param not_found: error for ids that are asked for and not there; made with ``id=`` and ``value=`` (which) and
        ``name=`` (the parameter)
    :param also: other parameters that ask for items -> (member of an item, error)
    :param filters: filter name -> dotted path in an item, through dictionaries and lists; besides those that
        come from the item's own members
    :param group: makes the members of `result` of a page of items
    :param max_results: the range of MaxResults where the model names none
    :param tags: member of an item that has its tags, for the filters ``tag:<key>``
    """

    result: str
    id_member: str
    ids_param: str | None = None
    not_found: type[exception.NovaError] | None = None
    also: Mapping[str, tuple[str, type[exception.NovaError]]] = field(default_factory=dict)
    filters: Mapping[str, str] = field(default_factory=dict)
    group: Group | None = None
    max_results: tuple[int, int] = (5, 1000)
    tags: str = "Tags"

    def bind(self, operation: Operation) -> "BoundListing":
        """This listing for an operation of the model; :raises TypeError: it does not fit"""
        return BoundListing(self, operation)


class BoundListing:
    """A listing that knows its operation's shapes."""

    def __init__(self, spec: Listing, operation: Operation):
        self.spec = spec
        self.action = operation.name
        results = operation.output_shape.members if operation.output_shape is not None else {}
        if spec.result not in results or results[spec.result].type_name != "list":
            raise TypeError(f"{operation.name} has no list {spec.result}")
        self.asked: dict[str, tuple[str, type[exception.NovaError]]] = dict(spec.also)
        if spec.ids_param is not None:
            if spec.not_found is None:
                raise TypeError(f"{operation.name} must say which error unknown ids are")
            self.asked[spec.ids_param] = (spec.id_member, spec.not_found)
        for name in self.asked:
            if not operation.takes(name):
                raise TypeError(f"{operation.name} has no parameter {name}")
        shape = results[spec.result].member
        item = _item_shape(shape, spec) if spec.group else shape
        self.filters = _filters(item, spec.filters)
        has_tags = spec.tags.startswith("_") or spec.tags in getattr(item, "members", {})
        self.tags = spec.tags if has_tags else ""
        self.max_results = spec.max_results
        if operation.takes("MaxResults"):
            low, high = spec.max_results
            limits = operation.input_shape.members["MaxResults"].metadata
            self.max_results = (limits.get("min", low), limits.get("max", high))

    def query(self, params: Mapping[str, Any]) -> "Query":
        """What a request asks for.

        :raises exception.InvalidParameterValue: an unknown filter, a MaxResults out of range
        :raises exception.InvalidParameterCombination: ids and pages at once
        :raises exception.InvalidNextToken:
        """
        return Query(self, params)


class Query:
    """One request to a listing."""

    def __init__(self, bound: BoundListing, params: Mapping[str, Any]):
        self._bound = bound
        self._asked = [(name, list(dict.fromkeys(params[name])), *bound.asked[name]) for name in bound.asked
                       if params.get(name)]
        self._limit: int | None = params.get("MaxResults")
        self._after: str | None = None
        if self._limit is not None or params.get("NextToken"):
            if self._asked:
                raise exception.InvalidParameterCombination(
                    f"The parameter {self._asked[0][0]} cannot be used with maxResults and nextToken")
        if self._limit is not None:
            low, high = bound.max_results
            if not low <= self._limit <= high:
                raise exception.InvalidParameterValue(
                    f"Value ( {self._limit} ) for parameter maxResults is invalid. "
                    f"Expecting a value from {low} to {high}.")
        if params.get("NextToken"):
            self._after = _read_token(bound.action, params["NextToken"])
        self._conditions = [_condition(bound, f) for f in params.get("Filters", ())]

    def answer(self, items: list[Item]) -> dict[str, Any]:
        """The result of the action, from all items that the caller may see."""
        spec = self._bound.spec
        for name, wanted, member, error in self._asked:
            there = {item.get(member) for item in items}
            missing = ", ".join(shown(id) for id in wanted if id not in there)
            if missing:
                raise error(id=missing, value=missing, name=name)
        if self._asked:
            sets = [(frozenset(wanted), member) for _, wanted, member, _ in self._asked]
            items = [item for item in items if any(item.get(member) in wanted for wanted, member in sets)]
        for matches in self._conditions:
            items = [item for item in items if matches(item)]
        items = sorted(items, key=lambda item: item[spec.id_member])
        if self._after is not None:
            items = [item for item in items if item[spec.id_member] > self._after]
        result: dict[str, Any] = {}
        if self._limit is not None and len(items) > self._limit:
            items = items[:self._limit]
            result["NextToken"] = _write_token(self._bound.action, items[-1][spec.id_member])
        result[spec.result] = spec.group(items) if spec.group else items
        return result


# -- pages -------------------------------------------------------------------------------------------------
# A token holds the id of the last item that was given out, so that it stays right when items come or go.

_DIGEST_SIZE = 6


def _digest(action: str, key: str) -> bytes:
    return hashlib.sha256(f"{action}\0{key}".encode()).digest()[:_DIGEST_SIZE]


def _write_token(action: str, key: str) -> str:
    return base64.urlsafe_b64encode(_digest(action, key) + key.encode()).decode("ascii")


def _read_token(action: str, token: str) -> str:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
        key = raw[_DIGEST_SIZE:].decode()
    except (binascii.Error, ValueError):
        raise exception.InvalidNextToken() from None
    if raw[:_DIGEST_SIZE] != _digest(action, key):
        raise exception.InvalidNextToken()
    return key


# -- filters -----------------------------------------------------------------------------------------------

def kebab(name: str) -> str:
    """``PrivateIpAddress`` as filters spell it: ``private-ip-address``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _item_shape(shape: Any, spec: Listing) -> Any:
    """The shape of the items that are grouped into `shape`: that of its list whose members have the id."""
    for member in shape.members.values():
        if member.type_name == "list" and spec.id_member in getattr(member.member, "members", {}):
            return member.member
    raise TypeError(f"{shape.name} has no list of items with {spec.id_member}")


def _filters(shape: Any, paths: Mapping[str, str]) -> dict[str, Texts]:
    """Filter name -> what it looks at.  A member is known by its name and by its name on the wire."""
    if shape.type_name != "structure":
        return {name: _texts(path, None) for name, path in paths.items()}
    filters = {}
    for name, member in shape.members.items():
        if member.type_name not in ("structure", "list", "map"):
            for spelling in (kebab(member.serialization.get("name", name)), kebab(name)):
                filters[spelling] = _texts(name, member)
    for name, path in paths.items():
        filters[name] = _texts(path, _shape_at(shape, path))
    if "Tags" in shape.members:
        filters["tag-key"] = _texts("Tags.Key", None)
        filters["tag-value"] = _texts("Tags.Value", None)
    return filters


def _shape_at(shape: Any, path: str) -> Any:
    for part in path.split("."):
        if shape.type_name == "list":
            shape = shape.member
        if shape.type_name != "structure" or part not in shape.members:
            return None
        shape = shape.members[part]
    return shape.member if shape.type_name == "list" else shape


def _texts(path: str, shape: Any) -> Texts:
    parts = path.split(".")
    text = xml.scalar_text(shape)

    def walk(value: Any, depth: int) -> Iterator[str]:
        if value is None:
            return
        if isinstance(value, list | tuple):
            for member in value:
                yield from walk(member, depth)
        elif depth == len(parts):
            yield text(value)
        else:
            yield from walk(value.get(parts[depth]), depth + 1)
    return lambda item: walk(item, 0)


def _condition(bound: BoundListing, given: Mapping[str, Any]) -> Callable[[Item], bool]:
    """One filter of a request as a function that says whether an item passes."""
    name, values = given.get("Name", ""), given.get("Values", [])
    if name.startswith("tag:") and bound.tags:
        texts: Texts | None = _tag_texts(bound.tags, name[len("tag:"):])
    else:
        texts = bound.filters.get(name)
    if texts is None:
        raise exception.InvalidParameterValue(f"The filter '{shown(name)}' is invalid")
    if not values:
        raise exception.InvalidParameterValue(f"The filter '{shown(name)}' has no values")
    if len(values) > MAX_FILTER_VALUES:
        raise exception.InvalidParameterValue(
            f"The filter '{shown(name)}' has more than {MAX_FILTER_VALUES} values")
    look, matches = texts, matcher(values)
    return lambda item: any(matches(text) for text in look(item))


def _tag_texts(member: str, key: str) -> Texts:
    return lambda item: (tag.get("Value") or "" for tag in item.get(member) or () if tag["Key"] == key)


def matcher(values: list[str]) -> Matcher:
    """A function that says whether a text matches one of the values, which may have wildcards."""
    plain = set()
    patterns = []
    for value in values:
        segments = _segments(value)
        if len(segments) == 1 and None not in segments[0]:
            plain.add("".join(character for character in segments[0] if character is not None))
        else:
            patterns.append(re.compile(_pattern(segments), re.DOTALL))
    return lambda text: text in plain or any(pattern.fullmatch(text) for pattern in patterns)


def _segments(value: str) -> list[list[str | None]]:
    """The parts between the ``*`` of a filter value; in a part, None is a ``?``."""
    segments: list[list[str | None]] = [[]]
    escaped = False
    for character in value:
        if escaped or character not in "\\*?":
            segments[-1].append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "*":
            segments.append([])
        else:
            segments[-1].append(None)
    if escaped:
        segments[-1].append("\\")
    return segments


def _pattern(segments: list[list[str | None]]) -> str:
    """A regular expression that needs no more than length times length steps: each part between two ``*`` is
    looked for once, at its first place, which atomic groups make final."""
    first, *rest = ["".join("." if character is None else re.escape(character) for character in segment)
                    for segment in segments]
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>.*?{part})" for part in middle if part) + ".*" + last
