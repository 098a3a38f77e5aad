"""The keys of bundles that are on their way into a bucket and not whole yet.

A bundle that goes straight into its bucket has its key nowhere else until its manifest is there.  To go on after a
death, the next run must encrypt with the same one: then the parts that are there are those that it makes again.  The
notes are files that only the user reads, and go when the bundle is whole or the image has changed.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from nova.bundler import local
from nova.bundler.making import Secret

#: seconds after which a note is of no use any more
_AGE = 30 * 86400


class Note:
    """The note of one image on its way to one place; `secret` is what it is encrypted with.

    :param image: the image's path
    :param place: what else tells it from others: endpoint, bucket, name
    """

    def __init__(self, image: str, place: str):
        self._directory = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "nova-bundle"
        status = os.stat(image)
        known = [os.path.realpath(image), place, status.st_size, status.st_mtime_ns, status.st_ino]
        self._path = self._directory / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()}.json"
        self._sweep()
        found = self._read()
        self.is_old = found is not None
        self.secret = found or Secret()

    def _read(self) -> Secret | None:
        try:
            told = json.loads(self._path.read_text())
            return Secret(bytes.fromhex(told["key"]), bytes.fromhex(told["iv"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self) -> bool:
        """Write it; whether that could be done."""
        text = json.dumps({"key": self.secret.key.hex(), "iv": self.secret.iv.hex()})
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self._directory, 0o700)
            local.write_whole(str(self._path), text.encode())
        except OSError:
            return False
        return True

    def drop(self) -> None:
        """It is of no use any more."""
        self._path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        for path in self._directory.glob("*.json"):
            if time.time() - path.stat().st_mtime > _AGE:
                path.unlink(missing_ok=True)
