"""The page of the manual about nova-bundle, made from its command line.

Also a program: ``python -m nova.bundler.docs > docs/nova-bundle.rst`` writes the page.
"""

import argparse
import os
import sys
from unittest import mock

from nova.bundler import cli

_INTRODUCTION = """\
nova-bundle
===========

.. Made by: python -m nova.bundler.docs > docs/nova-bundle.rst

``nova-bundle`` makes images of files, for people without euca2ools: it bundles a disk image as
``euca-bundle-image`` and ``ec2-bundle-image`` do, uploads the bundle and registers it. It is a client's tool: it
needs Python, boto3, M2Crypto and the credentials zip, and nothing of the daemons.

.. code-block:: console

   $ . ~/credentials/novarc
   $ nova-bundle debian.img --name debian --bucket images

That bundles, uploads and registers in one go, prints the id of the image, and needs no room on the disk: each part
goes to the bucket as it is made. Holes of the image take no time. Run again after an interruption, it does not send
again what is there with the right size and MD5. The manifest goes into the bucket last and leaves it first: a bundle
that has one is whole. Parts are readable for the cloud (``aws-exec-read``) and encrypted; the key is in the manifest,
once for the cloud's certificate and once for the user's, and until the manifest is there in a file below
``~/.local/state/nova-bundle`` that only the user reads.

What it is about goes to standard error: a bar with rate and time left on a terminal, a line every ten seconds
elsewhere. The result goes to standard output, as JSON with ``--json``.
"""


def page() -> str:
    """docs/nova-bundle.rst."""
    with mock.patch.dict(os.environ, COLUMNS="100"):  # argparse breaks its lines there
        return _page(cli.parser())


def _page(top: argparse.ArgumentParser) -> str:
    [commands] = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    parts = [_INTRODUCTION, _literal(top.epilog or "")]
    for name, command in commands.choices.items():
        title = f"nova-bundle {name}"
        parts.append(f"{title}\n{'-' * len(title)}\n\n{_literal(command.format_help())}")
    return "\n".join(parts)


def _literal(text: str) -> str:
    lines = [f"   {line}".rstrip() for line in text.rstrip().splitlines()]
    return "::\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
