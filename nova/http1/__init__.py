"""HTTP/1.1 on asyncio's transports, below Tornado's interfaces: what applications see is Tornado's, and costs a third.

:mod:`nova.http1.reading` takes requests apart and knows nothing of sockets; :mod:`nova.http1.server` has the
connections.
"""
