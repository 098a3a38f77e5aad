"""A guest as libvirt domain XML (libvirt.org/formatdomain.html).  Pure: nothing here touches the hypervisor."""

import re
import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element, SubElement

from nova.compute.virt import base

#: of the metadata element that marks a domain as Nova's
NAMESPACE = "urn:nova:instance:1"
DEFAULT_KERNEL_ARGS = "root=/dev/vda rw console=ttyS0"

#: what XML 1.0 cannot carry, and what no path or argument of ours has
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

ElementTree.register_namespace("nova", NAMESPACE)


def build(guest: base.Guest, domain_type: str, owner: str) -> str:
    """The domain of a guest.

    :param domain_type: 'kvm' or 'qemu'
    :param owner: tells this Nova's guests from another's on the same libvirt
    :raises base.HypervisorError: a value holds a control character
    """
    domain = Element("domain", type=domain_type)
    _text(domain, "name", base.guest_name(guest.instance_id))
    _text(domain, "uuid", guest.uuid)
    mark = SubElement(SubElement(domain, "metadata"), f"{{{NAMESPACE}}}instance")
    mark.set("id", _checked(guest.instance_id))
    mark.set("owner", _checked(owner))
    mark.set("hostname", _checked(guest.hostname))
    _text(domain, "memory", str(guest.memory_mb), unit="MiB")
    _text(domain, "vcpu", str(guest.vcpus))
    _sysinfo(domain, guest)
    _boot(domain, guest)
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if domain_type == "kvm":
        SubElement(domain, "cpu", mode="host-passthrough", check="none")
    else:
        SubElement(domain, "cpu", mode="maximum", check="none")
    _clock(domain)
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "restart")
    _devices(domain, guest)
    return ElementTree.tostring(domain, encoding="unicode")


def owner_of(metadata: str) -> str | None:
    """The owner in a metadata element that libvirt gave back."""
    return ElementTree.fromstring(metadata).get("owner")


def tap_name(instance_id: str) -> str:
    """The host's end of the guest's network card, named after the instance (a Linux interface name: 15 bytes)."""
    return f"tap{instance_id.removeprefix('i-')[-12:]}"


def _sysinfo(domain: Element, guest: base.Guest) -> None:
    """SMBIOS: cloud-init takes a serial number and a uuid that are equal and begin with ec2 for EC2."""
    sysinfo = SubElement(domain, "sysinfo", type="smbios")
    system = SubElement(sysinfo, "system")
    for name, value in (("manufacturer", "Nova"), ("product", "Nova instance"), ("serial", guest.uuid),
                        ("uuid", guest.uuid)):
        _text(system, "entry", value, name=name)


def _boot(domain: Element, guest: base.Guest) -> None:
    os = SubElement(domain, "os")
    _text(os, "type", "hvm", arch="x86_64", machine="pc")
    if guest.kernel_path:
        _text(os, "kernel", guest.kernel_path)
        if guest.ramdisk_path:
            _text(os, "initrd", guest.ramdisk_path)
        _text(os, "cmdline", guest.kernel_args or DEFAULT_KERNEL_ARGS)
    else:
        SubElement(os, "boot", dev="hd")
    SubElement(os, "smbios", mode="sysinfo")


def _clock(domain: Element) -> None:
    clock = SubElement(domain, "clock", offset="utc")
    SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    SubElement(clock, "timer", name="pit", tickpolicy="delay")
    SubElement(clock, "timer", name="hpet", present="no")


def _devices(domain: Element, guest: base.Guest) -> None:
    devices = SubElement(domain, "devices")

    disk = SubElement(devices, "disk", type="file", device="disk")
    # writeback: the guest's flushes reach the disk, so a power failure costs it no more than it would a real machine,
    # and the base image that guests share is in the host's memory once
    SubElement(disk, "driver", name="qemu", type="qcow2", cache="writeback", discard="unmap")
    SubElement(disk, "source", file=_checked(guest.disk_path))
    if guest.base_path:  # said outright, so that libvirt and QEMU look for nothing that a user's image may name
        base_image = SubElement(disk, "backingStore", type="file")
        SubElement(base_image, "format", type=_checked(guest.base_format))
        SubElement(base_image, "source", file=_checked(guest.base_path))
        SubElement(base_image, "backingStore")
    SubElement(disk, "target", dev="vda", bus="virtio")

    SubElement(devices, "controller", type="usb", model="none")

    interface = SubElement(devices, "interface", type="bridge")
    SubElement(interface, "mac", address=_checked(guest.mac))
    SubElement(interface, "source", bridge=_checked(guest.bridge))
    SubElement(interface, "target", dev=_checked(tap_name(guest.instance_id)))
    SubElement(interface, "model", type="virtio")

    serial = SubElement(devices, "serial", type="file")
    SubElement(serial, "source", path=_checked(guest.console_path), append="on")  # a restart keeps what was said before
    SubElement(SubElement(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")

    rng = SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def _text(parent: Element, tag: str, text: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = _checked(text)


def _checked(text: str) -> str:
    if _UNPRINTABLE.search(text):
        raise base.HypervisorError(f"a control character in {text!r}")
    return text
