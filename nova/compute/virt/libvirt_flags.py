"""Flags of guests under libvirt, which every daemon knows: one nova.conf serves them all.

They are apart from the driver (nova.compute.virt.libvirt_driver) so that only who runs guests loads libvirt, which
takes 12 MiB of memory.
"""

from nova.compute.virt import private_libvirtd  # noqa: F401  (defines --libvirt_cache)
from nova.flags import DEFINE_enum, DEFINE_float, DEFINE_string

DEFINE_string("libvirt_uri", "", "libvirt to use; empty: the system's where it runs, else a private one of Nova's own")
DEFINE_enum("libvirt_type", "auto", ["auto", "kvm", "qemu"],
            "how guests run; auto boots a kernel under KVM, once per boot of the host, and takes QEMU when that hangs")
DEFINE_float("reboot_timeout", 10, "seconds that a guest has to reboot by itself before it is reset", lower_bound=0)
