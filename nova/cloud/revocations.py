"""Keeps the revocation lists of the cloud's certificate authority from running out.

A list says until when it is good, and whoever checks certificates refuses all of them once it is not.  A revocation
makes a new list at once; this service sees to it that there is one where nothing is revoked for a long time.
"""

import asyncio
import logging
import os

from nova.crypto import Authority
from nova.flags import FLAGS, DEFINE_float
from nova.process import in_thread, wait
from nova.service import Service

DEFINE_float("crl_interval", 3600.0, "seconds between two looks at the revocation lists: one that has passed half of "
             "--crl_days is made anew", lower_bound=0.1)

LOG = logging.getLogger(__name__)


class RevocationLists(Service):
    """Renews the lists where the authority is on this host; of several daemons that do, one has something to do."""

    name = "revocation lists"

    def __init__(self, authority: Authority):
        self._authority = authority
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._renew_forever())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def renew(self) -> None:
        """Look once, and make anew what must be."""
        if os.path.exists(self._authority.certificate_path):
            await wait(in_thread(self._authority.crl))

    async def _renew_forever(self) -> None:
        while True:
            try:
                await self.renew()
            except Exception:  # whatever it is (a full disk, say), there are many more looks before a list runs out
                LOG.exception("the revocation lists cannot be looked after; tried again in %g s", FLAGS.crl_interval)
            await asyncio.sleep(FLAGS.crl_interval)
