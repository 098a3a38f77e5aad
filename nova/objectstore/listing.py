"""Listings in S3's order: keys in byte order, those that share a prefix up to a delimiter rolled into one.

The index is a sorted set that Redis reads in byte order.  :func:`walk` takes no more of it than a page needs: behind
a rolled-up prefix it goes on after the last key that could have it.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nova import datastore
from nova.objectstore import errors, versions

#: gives up to `count` members from `lower` to `upper`, both as ZRANGEBYLEX has them
Fetch = Callable[[bytes, bytes, int], Awaitable[list[bytes]]]
MAX_KEYS = 1000


@dataclass
class Page:
    """A page of a listing: keys, rolled-up prefixes, and after which of both the next page begins ('' on the last)."""

    keys: list[bytes] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)
    next: bytes = b""

    def __len__(self) -> int:
        return len(self.keys) + len(self.prefixes)


def index(store: datastore.Store, key: str) -> Fetch:
    """The members of a sorted set in a Redis."""
    async def fetch(lower: bytes, upper: bytes, count: int) -> list[bytes]:
        return await store.attempt(store.redis.zrangebylex(key, lower, upper, start=0, num=count))
    return fetch


def with_versions(current: Fetch, older: Fetch) -> Fetch:
    """All versions of all keys, as members of the second index.

    :param current: reads a bucket's index of keys
    :param older: reads a bucket's index of versions
    """
    async def fetch(lower: bytes, upper: bytes, count: int) -> list[bytes]:
        keys = await current(versions.keys_bound(lower), versions.keys_bound(upper), count)
        members = await older(lower, upper, count)
        return sorted([*map(versions.live_member, keys), *members])[:count]
    return fetch


async def walk(fetch: Fetch, prefix: bytes, delimiter: bytes, after: bytes, limit: int,
               tail: int = 0) -> Page:
    """One page of a listing.

    :param fetch: reads the index
    :param prefix: only keys that begin with it
    :param delimiter: keys that have it after the prefix are rolled up to it; empty: none is
    :param after: the key or rolled-up prefix after which to begin; empty: at the beginning
    :param limit: how many keys and prefixes at most
    :param tail: how many bytes at the end of each member are no part of its name
    """
    page = Page()
    if limit <= 0:
        return page
    upper = b"(" + _successor(prefix) if prefix else b"+"
    lower = b"[" + prefix
    if after >= prefix and after:
        lower = b"(" + after
        if delimiter and after.startswith(prefix) and _rolled(after, prefix, delimiter, 0) == after:
            lower = b"[" + _successor(after)
    last = b""
    while True:
        count = limit - len(page) + 1
        members = await fetch(lower, upper, count)
        for key in members:
            group = _rolled(key, prefix, delimiter, tail) if delimiter else b""
            if group and group == last:
                continue
            if len(page) == limit:
                page.next = last
                return page
            (page.prefixes if group else page.keys).append(group or key)
            last = group or key
        if len(members) < count:
            return page
        lower = b"[" + _successor(last) if last in page.prefixes[-1:] else b"(" + members[-1]


def _rolled(key: bytes, prefix: bytes, delimiter: bytes, tail: int) -> bytes:
    end = key.find(delimiter, len(prefix), len(key) - tail)
    return key[:end + len(delimiter)] if end >= 0 else b""


def _successor(prefix: bytes) -> bytes:
    """The first string after all that begin with `prefix` (no byte of which is 0xff)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def token(after: bytes) -> str:
    """A continuation token."""
    return base64.urlsafe_b64encode(b"1" + after).decode()


def read_token(text: str) -> bytes:
    """What :func:`token` was given.

    :raises InvalidArgument: it is no such token
    """
    try:
        data = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
        data.decode()
    except (binascii.Error, ValueError):
        data = b""
    if not data.startswith(b"1"):
        raise errors.InvalidArgument(reason="The continuation token provided is incorrect")
    return data[1:]
