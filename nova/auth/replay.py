"""Replays: with `--reject_replays`, a signature is good for one request that changes something.

A signed request is otherwise good for as long as clocks may differ, or as it says itself; who reads it on the wire can
send it again.  The digest of each signature that was accepted is kept in Redis until the request has expired.  What
only reads, and what has a ClientToken (which makes the action itself happen once), may come any number of times; so may
presigned URLs and signed forms of S3, which are made to be handed on.
"""

import hashlib
import math
from datetime import datetime

from nova import exception
from nova.auth.claims import Claim
from nova.auth.signer import MAX_SKEW
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_boolean

DEFINE_boolean("reject_replays", False, "refuse a signed request that changes something when it comes a second time")

_READING_ACTIONS = ("Describe", "Get", "List")
_READING_METHODS = ("GET", "HEAD", "OPTIONS")


class ReplayedRequest(exception.AuthFailure):
    """The signature was used before."""

    message = ("A request with this signature has been received before, and a request that changes something is "
               "accepted once. Sign it again to send it again.")


def is_repeatable_action(action: str, takes_token: bool, params: list[tuple[str, str]]) -> bool:
    """Whether an EC2 request may come any number of times: it reads, or its ClientToken sees to it.

    :param takes_token: whether the action heeds a ClientToken
    """
    return action.startswith(_READING_ACTIONS) or (takes_token and any(n == "ClientToken" and v for n, v in params))


def is_repeatable_s3(claim: Claim) -> bool:
    """Whether an S3 request may come any number of times: it reads, or is a presigned URL or form."""
    return claim.request.method in _READING_METHODS or claim.is_link


class Replays:
    """Knows the signatures that were accepted."""

    def __init__(self, store: Store):
        self._store = store

    async def check(self, claim: Claim, now: datetime) -> None:
        """Accept a signature that was verified, once.

        :raises ReplayedRequest: it was accepted before
        :raises exception.DatastoreUnavailable:
        """
        end = claim.expires if claim.expires is not None else claim.date
        if not FLAGS.reject_replays or end is None:
            return
        if claim.expires is None:
            end += MAX_SKEW
        text = f"{claim.access_key}\0{claim.scope}\0{claim.signature}".encode("utf-8", "surrogateescape")
        key = f"{PREFIX}replay:{hashlib.sha256(text).hexdigest()[:40]}"
        first = await self._store.attempt(
            self._store.redis.set(key, b"", nx=True, px=max(1, math.ceil((end - now).total_seconds() * 1000)) + 1000))
        if not first:
            raise ReplayedRequest()
