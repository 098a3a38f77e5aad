"""Records in Redis: typed fields, indexes, and changes that are atomic however many keys they touch.

A record class is a dataclass marked with :func:`record`.  The record ``nova:<kind>:<id>`` is a hash; ``nova:<kind>s``
is the set of all ids and ``nova:<kind>s:by-<field>:<value>`` the set of the ids that have this value.  A
:class:`Transaction` collects changes and commits all or none of them in one Lua script (``commit.lua``), so that
uniqueness, pools and counters are decided by Redis.  A list is read in two round trips, whatever its length.

:mod:`nova.datastore.records` says how records are kept, :mod:`nova.datastore.transaction` how they are changed,
:mod:`nova.datastore.store` how they are read, :mod:`nova.datastore.pipeline` how all that gets to Redis.  Everybody
else imports from here.
"""

from nova.datastore.records import PREFIX, Kind, Record, changed, key_of, kinds, read, record
from nova.datastore.store import Store, open_store
from nova.datastore.transaction import Pool, Taken, Transaction

__all__ = ["PREFIX", "Kind", "Pool", "Record", "Store", "Taken", "Transaction", "changed", "key_of", "kinds",
           "open_store", "read", "record"]
