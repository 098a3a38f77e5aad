"""Named failpoints: places between two steps that change the world, where a test can kill the daemon.

A module declares its failpoints when it is imported and calls :func:`hit` at the place itself.  Nothing happens
unless the flag ``--failpoint`` names it; then the process dies at once, as with ``kill -9``.
"""

import os
import signal

from nova.flags import FLAGS, DEFINE_string

DEFINE_string("failpoint", "", "name of the failpoint at which this process kills itself (for tests)")

_declared: dict[str, str] = {}


def declare(name: str, doc: str) -> None:
    """Make a failpoint known.

    :param name: dotted, first the daemon's part, such as ``compute.spawn.defined``
    :param doc: which step is done and which is not, when the process dies here
    """
    if _declared.setdefault(name, doc) != doc:
        raise ValueError(f"failpoint {name} is declared twice")


def hit(name: str) -> None:
    """Die here when ``--failpoint`` says so.

    :raises KeyError: the failpoint was never declared
    """
    _declared[name]
    if FLAGS.failpoint == name:
        os.kill(os.getpid(), signal.SIGKILL)


def names(prefix: str = "") -> list[str]:
    """The declared failpoints whose names begin with `prefix`, sorted."""
    return sorted(name for name in _declared if name.startswith(prefix))
