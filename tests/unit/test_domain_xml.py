"""What libvirt is told of a guest."""

from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from nova.compute.virt import base, domain_xml

GUEST = base.Guest(
    instance_id="i-0000abcd", uuid="ec2a1b2c-0000-4000-8000-000000000001", memory_mb=512, vcpus=2,
    mac="02:16:3e:01:02:03", bridge="br100", disk_path="/state/instances/i-0000abcd/disk",
    console_path="/state/instances/i-0000abcd/console", kernel_path="/state/images/aki-1",
    ramdisk_path="/state/images/ari-1", kernel_args="", hostname="ip-10-0-0-3")


def domain(guest: base.Guest = GUEST, domain_type: str = "qemu") -> Element:
    return ElementTree.fromstring(domain_xml.build(guest, domain_type, "/state"))


def test_identity_and_size() -> None:
    xml = domain()
    assert xml.get("type") == "qemu"
    assert xml.findtext("name") == "instance-i-0000abcd"
    assert xml.findtext("uuid") == GUEST.uuid
    assert xml.findtext("vcpu") == "2"
    assert (xml.findtext("memory"), xml.find("memory").get("unit")) == ("512", "MiB")


def test_cloud_init_recognises_the_smbios() -> None:
    xml = domain()
    entries = {entry.get("name"): entry.text for entry in xml.findall("sysinfo/system/entry")}
    assert entries["uuid"] == entries["serial"] == GUEST.uuid
    assert xml.find("os/smbios").get("mode") == "sysinfo"


def test_a_kernel_is_booted_with_its_ramdisk_and_arguments() -> None:
    assert domain().findtext("os/kernel") == GUEST.kernel_path
    assert domain().findtext("os/initrd") == GUEST.ramdisk_path
    assert domain().findtext("os/cmdline") == domain_xml.DEFAULT_KERNEL_ARGS
    assert domain(replace(GUEST, kernel_args="root=/dev/sda1")).findtext("os/cmdline") == "root=/dev/sda1"
    assert domain(replace(GUEST, ramdisk_path=None)).find("os/initrd") is None


def test_without_a_kernel_the_disk_is_booted() -> None:
    os = domain(replace(GUEST, kernel_path=None)).find("os")
    assert os.find("boot").get("dev") == "hd"
    assert os.find("kernel") is os.find("initrd") is os.find("cmdline") is None


def test_the_processor_is_the_hosts_under_kvm_and_the_best_emulated_else() -> None:
    assert domain().find("cpu").get("mode") == "maximum"
    assert domain(domain_type="kvm").find("cpu").get("mode") == "host-passthrough"


def test_devices() -> None:
    devices = domain().find("devices")
    assert devices.find("disk/source").get("file") == GUEST.disk_path
    assert devices.find("disk/driver").get("type") == "qcow2"
    assert devices.find("disk/target").attrib == {"dev": "vda", "bus": "virtio"}
    assert devices.find("interface/mac").get("address") == GUEST.mac
    assert devices.find("interface/source").get("bridge") == "br100"
    assert devices.find("interface/model").get("type") == "virtio"
    assert devices.find("interface/target").get("dev") == "tap0000abcd"
    assert devices.find("serial/source").attrib == {"path": GUEST.console_path, "append": "on"}
    assert devices.find("rng").get("model") == "virtio"


def test_the_power_button_is_wired() -> None:
    assert domain().find("features/acpi") is not None


def test_it_bears_novas_mark() -> None:
    mark = domain().find(f"metadata/{{{domain_xml.NAMESPACE}}}instance")
    assert mark.get("id") == GUEST.instance_id
    assert domain_xml.owner_of(ElementTree.tostring(mark, encoding="unicode")) == "/state"


def test_values_cannot_break_out_of_the_xml() -> None:
    nasty = "a'\"><disk/>&amp;]]>--"
    xml = domain(replace(GUEST, hostname=nasty, kernel_args=nasty, disk_path=f"/{nasty}"))
    assert len(xml.findall(".//disk")) == 1
    assert xml.findtext("os/cmdline") == nasty
    assert xml.find("devices/disk/source").get("file") == f"/{nasty}"


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\ud800", "\uffff"])
def test_control_characters_are_refused(character: str) -> None:
    for field in ("hostname", "kernel_args", "disk_path", "bridge"):
        with pytest.raises(base.HypervisorError):
            domain(replace(GUEST, **{field: f"a{character}b"}))


@pytest.mark.parametrize("instance_id", ["i-00000001", "i-0123456789abcdef0"])
def test_names_are_reversible_and_fit(instance_id: str) -> None:
    assert base.instance_id(base.guest_name(instance_id)) == instance_id
    assert len(domain_xml.tap_name(instance_id)) <= 15


@pytest.mark.parametrize("name", ["instance-", "instance-i-", "instance-i-0000000Z", "i-00000001", "instance-00000001",
                                  "instance-i-00000001\n", "my-instance-i-00000001"])
def test_other_names_are_not_novas(name: str) -> None:
    assert base.instance_id(name) is None
