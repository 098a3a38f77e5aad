"""The directory's copies of key pairs' public halves, which LDAP's other users read there as in 2010.

Redis has the facts.  A copy is made after the key pair's record and removed after it; where the directory is away at
that moment the request succeeds all the same, and :class:`PublicKeySweep` or ``nova-manage cloud verify --repair``
brings the copies in line, in both directions.
"""

import asyncio
import logging
from dataclasses import dataclass

from nova import exception
from nova.auth.manager import AuthManager
from nova.auth.models import KeyPair, PublishedKey
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_float
from nova.service import Service

DEFINE_float("public_key_interval", 300.0, "seconds between two comparisons of the key pairs with their copies in the "
             "directory", lower_bound=0.1)

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublicKeys:
    """Keeps the copies in step with the key pairs."""

    store: Store
    auth: AuthManager

    async def publish(self, pair: KeyPair) -> bool:
        """Copy a key pair that has its record; False, and a line of log, where the directory does not take it."""
        try:
            await self.auth.publish_key_pair(pair)
        except exception.NovaError as error:
            LOG.warning("the directory has no copy of the key pair %s of %s yet: %s", pair.id, pair.user_id, error)
            return False
        return True

    async def withdraw(self, pair: KeyPair | PublishedKey) -> bool:
        """Remove the copy of a key pair whose record is gone; False, and a line of log, where that does not work."""
        try:
            await self.auth.withdraw_key_pair(pair)
        except exception.NovaError as error:
            LOG.warning("the directory still has a copy of the key pair %s of %s: %s", pair.key_pair_id, pair.user_id,
                        error)
            return False
        return True

    async def differences(self) -> tuple[list[KeyPair], list[PublishedKey]]:
        """Key pairs without a copy, and copies without a key pair.

        What belongs to a user who is not in the directory cannot be there, and is no difference.

        :raises exception.Unavailable: the directory is away
        """
        users, copies = await self.auth.published_keys()
        # The records are read last: a copy that has none then has lost it, for it is made after it.
        pairs = await self.store.all(KeyPair)
        wanted = {PublishedKey(pair.user_id, pair.key_pair_id): pair for pair in pairs if pair.user_id in users}
        return ([pair for key, pair in wanted.items() if key not in copies],
                sorted((copies - wanted.keys()), key=lambda key: (key.user_id, key.key_pair_id)))

    async def make_up(self, pair: KeyPair) -> None:
        """Copy a key pair that :meth:`differences` told of, unless it has gone since."""
        await self.publish(pair)
        now = await self.store.get(KeyPair, pair.id)
        if now is None or now.key_pair_id != pair.key_pair_id:
            await self.withdraw(pair)

    async def mend(self) -> None:
        """Bring all copies in line; what the directory refuses is left for the next time."""
        missing, stale = await self.differences()
        for pair in missing:
            await self.make_up(pair)
        for key in stale:
            await self.withdraw(key)


class PublicKeySweep(Service):
    """Mends the copies, at the start and every --public_key_interval seconds; several daemons may."""

    name = "public keys in the directory"

    def __init__(self, keys: PublicKeys):
        self._keys = keys
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._sweep_forever())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self._keys.mend()
            except exception.NovaError as error:
                LOG.warning("cannot compare the key pairs with the directory: %s", error)
            except Exception:  # the sweep is what heals: it must go on
                LOG.exception("cannot compare the key pairs with the directory")
            await asyncio.sleep(FLAGS.public_key_interval)
