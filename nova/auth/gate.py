"""The one way in for a signed request, on every endpoint: not locked out, rightly signed, not sent before."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from nova import exception
from nova.auth import signer
from nova.auth.claims import Claim
from nova.auth.lockout import Link, Lockout
from nova.auth.replay import Replays
from nova.datastore import Store

Verify = Callable[..., Awaitable[Any]]


class Gate:
    """Verifies requests.  One for all requests of a process."""

    def __init__(self, store: Store):
        self._lockout, self._replays = Lockout(store), Replays(store)

    async def verify(self, claim: Claim, secret: str, payload_sha256: str, now: datetime, repeatable: bool,
                     call: Verify | None = None, user: str = "", where: str = "") -> None:
        """Return if a request may go on.

        :param claim: names an access key that somebody has, and `secret` is its secret
        :param payload_sha256: as :func:`nova.auth.signer.verify` wants it
        :param repeatable: the request may come any number of times
        :param call: calls a function that takes a while; None where it takes none
        :param user: whose the access key is, and `where` the address that the request came from: for the audit stream
        :raises LockedOut, ReplayedRequest: (kinds of AuthFailure)
        :raises exception.SignatureDoesNotMatch:
        :raises exception.RequestExpired, S3Error: as :func:`nova.auth.signer.verify`
        """
        link = Link(where, claim.signature) if claim.is_link else None
        await self._lockout.check(claim.access_key, link)
        try:
            if call is None:
                signer.verify(claim, secret, payload_sha256, now)
            else:
                await call(signer.verify, claim, secret, payload_sha256, now)
        except exception.SignatureDoesNotMatch:
            await self._lockout.failed(claim.access_key, user, claim.project or "", where, link)
            raise
        if not repeatable:
            await self._replays.check(claim, now)
