"""nova-bundle: bundles disk images, uploads and registers them, for whoever has no euca2ools.

A client's tool: it knows the cloud by its endpoints and by what is in the credentials zip, and needs boto3 and M2Crypto
and nothing of the daemons.  :mod:`nova.bundler.cli` reads the command line, :mod:`nova.bundler.making` makes the parts
of a bundle, :mod:`nova.bundler.local` keeps them in a directory, :mod:`nova.bundler.bucket` in a bucket.
"""

from nova.bundler.cli import main

__all__ = ["main"]
