"""Instance types: how many CPUs, how much memory and disk an instance gets."""

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class InstanceType:
    """`memory_mb` in MiB; `disk_gb` in GiB is the least size of the root disk (0: the image's own size)."""

    name: str
    vcpus: int
    memory_mb: int
    disk_gb: int


#: the types of the 2010 design
TYPES = {t.name: t for t in (
    InstanceType("m1.tiny", vcpus=1, memory_mb=512, disk_gb=0),
    InstanceType("m1.small", vcpus=1, memory_mb=1024, disk_gb=10),
    InstanceType("m1.medium", vcpus=2, memory_mb=2048, disk_gb=10),
    InstanceType("m1.large", vcpus=4, memory_mb=4096, disk_gb=10),
    InstanceType("m1.xlarge", vcpus=8, memory_mb=8192, disk_gb=10),
    InstanceType("c1.medium", vcpus=4, memory_mb=2048, disk_gb=10),
)}
DEFAULT = "m1.small"
