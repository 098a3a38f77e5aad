"""The volume host: tells how much room there is for volumes.

The actions on volumes, and the drivers that make them, are not offered yet; EC2's volume actions answer
UnsupportedOperation.
"""

import os
import shutil
from typing import Any

from nova.flags import FLAGS, DEFINE_string
from nova.process import in_thread, wait
from nova.service import Service

DEFINE_string("volumes_path", "", "directory for file-backed volumes; 'volumes' below --state_path when empty")

GIB = 1 << 30


class VolumeManager(Service):
    """This host's room for volumes."""

    name = "volume"

    def __init__(self) -> None:
        self._directory = FLAGS.volumes_path or os.path.join(FLAGS.state_path, "volumes")

    async def start(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)

    async def facts(self) -> dict[str, Any]:
        """What this host has altogether and free, in GiB."""
        usage = await wait(in_thread(shutil.disk_usage, self._directory))
        return {"total_gb": usage.total // GIB, "free_gb": usage.free // GIB}
