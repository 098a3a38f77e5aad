"""nova-manage: the operator's tool, working on the cloud's state directly.

:mod:`nova.manage.cli` reads the command line; each of the other modules has the commands for one kind of thing in a
table (:mod:`nova.manage.command`).
"""

from nova.manage.cli import main

__all__ = ["main"]
