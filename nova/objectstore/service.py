"""The object store as a service: listens, sweeps, and stops without cutting off who is being served."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from tornado import netutil, web

from nova import exception
from nova import service as nova_service
from nova.auth.gate import Gate
from nova.context import request_id_var
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_string
from nova.http1.server import Server
from nova.objectstore import expiry
from nova.objectstore.body import MAX_UPLOAD
from nova.objectstore.driver import open_files
from nova.objectstore.handler import Authenticator, Parts, S3Application, S3Request, refusal
from nova.objectstore.storage import Storage
from nova.objectstore.sweep import refuse_stranger, sweep
from nova.wire import rest_xml

log = logging.getLogger(__name__)

DEFINE_string("s3_listen", "0.0.0.0", "address at which the object store listens")

#: seconds that running requests get when the service stops
GRACE = 3.0
#: connections that may wait to be accepted
BACKLOG = 1024


class ObjectStoreService(nova_service.Service):
    """nova-objectstore.

    :param store: the cloud's records
    :param auth: finds whom an access key stands for
    :param port: to listen at; --s3_port when None; 0 takes a free one
    :param address: to listen at; --s3_listen when None
    :param extra_handlers: Tornado URL specifications that come before the object store's own
    :param clock: the time, in seconds since 1970, by which things expire
    :param sockets: that listen already, at which it serves instead of opening its own: several processes share them
    :param sweeps: look for what has expired, and for files that no record names: one process of a host does
    """

    name = "objectstore"

    def __init__(self, store: Store, auth: Authenticator, port: int | None = None, address: str | None = None,
                 extra_handlers: Sequence[Any] = (), clock: Callable[[], float] = time.time,
                 sockets: Sequence[socket.socket] = (), sweeps: bool = True):
        self._store, self._auth, self._extra = store, auth, tuple(extra_handlers)
        self._sockets, self._sweeps = list(sockets), sweeps
        self.port = FLAGS.s3_port if port is None else port
        self._address = FLAGS.s3_listen if address is None else address
        self._server: Server | None = None
        self._files: Storage | None = None
        self._clock = clock
        self._sweepers: list[asyncio.Task] = []
        self._running: set[S3Request] = set()

    async def start(self) -> None:
        """Listen; returns when requests are served.

        :raises OSError: the port is taken or the directory cannot be made
        :raises StrangeDirectory: it is not that of the objects
        """
        self._files = open_files()
        await refuse_stranger(self._store, self._files)
        rest_xml.s3()
        parts = Parts(self._store, self._files, self._auth, Gate(self._store), self._running)
        others = web.Application([*self._extra], log_function=_log_request)
        self._server = Server(S3Application(parts, others), refusal, max_body=2 * MAX_UPLOAD)
        sockets = self._sockets or netutil.bind_sockets(self.port, self._address, backlog=BACKLOG)
        self.port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)
        if self._sweeps:
            self._sweepers = [asyncio.ensure_future(self._sweep_forever(self._files)),
                              asyncio.ensure_future(self._expire_forever(self._files))]
        log.info("listening at %s:%d", self._address, self.port)

    async def stop(self) -> None:
        """Close the listener, let running requests come to their end for a moment, then cut them off."""
        for sweeper in self._sweepers:
            sweeper.cancel()
        if self._sweepers:
            await asyncio.wait(self._sweepers)
        if self._server:
            self._server.stop()
            deadline = time.monotonic() + GRACE
            while self._running and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            await self._server.close_all_connections()
        if self._files:
            self._files.close()

    async def _sweep_forever(self, files: Storage) -> None:
        while True:
            try:
                await sweep(self._store, files)
            except (exception.NovaError, OSError) as error:
                log.warning("the search for files that no record names failed: %s", error)
            await asyncio.sleep(FLAGS.objects_sweep_interval)

    async def _expire_forever(self, files: Storage) -> None:
        while True:
            await expiry.once(self._store, files, self._clock)
            await asyncio.sleep(FLAGS.objects_lifecycle_interval)


def _log_request(handler: web.RequestHandler) -> None:
    request = handler.request
    request_id_var.set(getattr(handler, "request_id", "-"))
    log.info("%s %s %s %d %.0f ms", request.remote_ip, request.method, request.path, handler.get_status(),
             request.request_time() * 1000)
