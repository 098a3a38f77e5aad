"""Lockout: an access key with which too many wrong signatures come is of no use for a while.

`--lockout_attempts` wrong signatures within `--lockout_window` minutes lock an access key for `--lockout_minutes`,
counted by all API processes together.  Redis keeps the times of the last few failures of a key that somebody has (keys
that nobody has are not counted, so they cannot fill it) and one sorted set of what is locked; the names of both are
digests, and both expire.

A signature that is passed on, in a presigned URL or a form, names the key to all who see it, and gets stale or mangled
in their hands.  Such wrong ones (:class:`Link`) lock neither the key nor everybody's links: only its links from the
address that they came from.  The same link once more is no other guess and is counted once.

What is right costs next to nothing: a process reads the whole set of locked keys, at most once in MEMO seconds.
A wrong signature is always settled in Redis, so no process grants more attempts than the flags do; and whether a
signature is right is not even looked at while its key is locked.
"""

import asyncio
import hashlib
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from nova import events, exception
from nova.context import Context, request_id_var
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_float, DEFINE_integer

DEFINE_integer("lockout_attempts", 5, "wrong signatures that lock an access key; 0: none is ever locked", lower_bound=0,
               upper_bound=1000)
DEFINE_float("lockout_minutes", 15, "minutes for which an access key is locked", lower_bound=0.01)
DEFINE_float("lockout_window", 15, "minutes within which wrong signatures are counted together", lower_bound=0.01)

log = logging.getLogger(__name__)

#: seconds for which a process remembers which keys are locked
MEMO = 1.0
_LOCKED = PREFIX + "lockout:locked"
#: addresses from which links are locked at a time; who has so many has enough, and every process reads the set
_MAX_LINKS = 1000

#: ARGV: key of the set, key of the failures, name in the set, attempts, window and lockout in milliseconds, what tells
#: the attempt from others, how much may be locked for this attempt to lock something.
#: Answer: whether the key was locked before, and for how many more milliseconds it is locked now.
_FAILED = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local locked, failures, name = ARGV[1], ARGV[2], ARGV[3]
local attempts, window, lockout = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local attempt, room = ARGV[7], tonumber(ARGV[8])
local until_ = redis.call('ZSCORE', locked, name)
if until_ and tonumber(until_) > now then return {1, tonumber(until_) - now} end
redis.call('ZREMRANGEBYSCORE', failures, '-inf', now - window)
redis.call('ZADD', failures, 'NX', now, attempt)
redis.call('PEXPIRE', failures, window)
if redis.call('ZCARD', failures) < attempts then return {0, 0} end
redis.call('DEL', failures)
redis.call('ZREMRANGEBYSCORE', locked, '-inf', now)
if redis.call('ZCARD', locked) >= room then return {0, 0} end
redis.call('ZADD', locked, now + lockout, name)
if redis.call('PTTL', locked) < lockout then redis.call('PEXPIRE', locked, lockout) end
return {0, lockout}
"""
#: ARGV: key of the set.  Answer: names and the milliseconds for which they are locked yet, in turn.
_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('ZRANGEBYSCORE', ARGV[1], '(' .. now, '+inf', 'WITHSCORES')
for n = 2, #found, 2 do found[n] = tonumber(found[n]) - now end
return found
"""


class LockedOut(exception.AuthFailure):
    """The access key is locked; nobody looked whether the signature is right."""

    message = "This access key is locked for a while, after repeated authentication failures."


@dataclass(frozen=True)
class Link:
    """What is signed to be passed on: from which address it came, and its signature."""

    address: str
    signature: str


class Lockout:
    """Counts wrong signatures and keeps locked keys out.  One for all requests of a process.

    :param clock: seconds, for what the process remembers
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic):
        self._store, self._clock = store, clock
        self._locked: dict[str, float] = {}
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def check(self, access: str, link: Link | None = None) -> None:
        """Go on if an access key is not locked; of a link, if the key's links from its address are not.

        :raises LockedOut: it is
        :raises exception.DatastoreUnavailable:
        """
        if FLAGS.lockout_attempts == 0:
            return
        if self._clock() - self._read_at >= MEMO:
            if self._reading is None:  # whoever comes meanwhile waits for the same answer
                self._reading = asyncio.ensure_future(self._read())
                self._reading.add_done_callback(_looked_at)
            await asyncio.shield(self._reading)
        if self._locked and self._locked.get(_name(access, link), -math.inf) > self._clock():
            raise LockedOut()

    async def failed(self, access: str, user: str = "", project: str = "", where: str = "",
                     link: Link | None = None) -> None:
        """Count a wrong signature of an access key that somebody has; when it is locked now, the audit stream tells.

        :param user: whose key it is
        :param project: the project that the request names
        :param where: the address that it came from
        :param link: it was that of a link
        :raises LockedOut: the key was locked already, so that nobody shall know that the signature was wrong
        """
        if FLAGS.lockout_attempts == 0:
            return
        name = _name(access, link)
        arguments = [_LOCKED, _failures(name), name, FLAGS.lockout_attempts, _milliseconds(FLAGS.lockout_window),
                     _milliseconds(FLAGS.lockout_minutes), _digest(link.signature) if link else uuid.uuid4().hex,
                     _MAX_LINKS if link else 1 << 31]
        before, left = await self._store.script(_FAILED, [str(argument).encode() for argument in arguments])
        if left:
            self._locked[name] = self._clock() + left / 1000
        if before:
            raise LockedOut()
        if left:
            what = f"links of {access} from {link.address} are" if link else f"access key {access} is"
            log.warning("%s locked for %g minutes: %d wrong signatures", what, left / 60000, FLAGS.lockout_attempts)
            context = Context(user, project, request_id=request_id_var.get(), remote_address=where)
            await events.record(self._store, context, "user.lockout", target=user, access=access,
                                minutes=left / 60000, attempts=FLAGS.lockout_attempts,
                                **({"links_from": link.address} if link else {}))

    async def locked(self, access: str) -> float:
        """For how many more seconds an access key is locked; 0 if it is not."""
        return (await self._fetch()).get(_name(access), 0.0)

    async def unlock(self, access: str) -> bool:
        """Forget an access key's wrong signatures and its lockout, and that of its links; whether it was locked.

        Other processes hear of it within MEMO seconds.
        """
        name = _name(access)
        found = [other for other in await self._fetch() if other.partition("-")[0] == name]
        pipeline = self._store.redis.pipeline()
        pipeline.zrem(_LOCKED, name, *found)
        pipeline.delete(_failures(name))
        await self._store.attempt(pipeline.execute())
        for other in found:
            self._locked.pop(other, None)
        return bool(found)

    async def _read(self) -> None:
        try:
            began = self._clock()
            found = await self._fetch()
            now = self._clock()
            self._locked = {name: now + seconds for name, seconds in found.items()}
            self._read_at = began
        finally:
            self._reading = None

    async def _fetch(self) -> dict[str, float]:
        found = await self._store.script(_READ, [_LOCKED.encode()])
        return {name.decode(): int(left) / 1000 for name, left in zip(found[::2], found[1::2], strict=True)}


def _looked_at(task: asyncio.Task[None]) -> None:
    """Whoever waits for the answer gets its error; that all of them may have gone away is no error of its own."""
    if not task.cancelled():
        task.exception()


def _name(access: str, link: Link | None = None) -> str:
    """What an access key is called in Redis; its links from an address have its name and more."""
    return f"{_digest(access)}-{_digest(_network(link.address))}" if link else _digest(access)


def _network(address: str) -> str:
    """Whose an address is: of version 6, everybody has at least 2**64."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network(f"{found}/64", strict=False)) if found.version == 6 else str(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _failures(name: str) -> str:
    return f"{PREFIX}lockout:wrong:{name}"


def _milliseconds(minutes: float) -> int:
    return max(1, round(minutes * 60000))
