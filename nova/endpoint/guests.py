"""What the metadata service tells a guest, looked up by its address."""

import base64

from nova.cloud.image_view import ROOT_DEVICE
from nova.compute.models import Instance, UserData
from nova.datastore import Store
from nova.endpoint.metadata import InstanceMetadata, Lookup
from nova.flags import FLAGS
from nova.network import dhcp  # noqa: F401  (defines --dhcp_domain)
from nova.network.models import Network


def lookup(store: Store) -> Lookup:
    """The lookup of a metadata service on this store."""
    async def by_address(ip: str) -> InstanceMetadata | None:
        found = await store.find(Instance, private_ip=ip)
        if len(found) != 1:
            return None
        [instance] = found
        network = await store.get(Network, instance.network_id)
        if network is None:
            return None
        user_data = await store.get(UserData, instance.id)
        return InstanceMetadata(
            instance_id=instance.id, ami_id=instance.image_id, reservation_id=instance.reservation_id,
            launch_index=instance.launch_index, hostname=f"{instance.hostname}.{FLAGS.dhcp_domain}",
            local_ipv4=ip, mac=instance.mac, instance_type=instance.instance_type, zone=instance.zone,
            region=FLAGS.region, project_id=instance.project_id, launch_time=instance.launch_time, cidr=network.cidr,
            gateway=network.gateway, architecture=instance.architecture, aki=instance.kernel_id or None,
            ari=instance.ramdisk_id or None, security_groups=tuple(instance.security_groups),
            key_name=instance.key_name or None, public_key=instance.key_data or None,
            user_data=base64.b64decode(user_data.data) if user_data else None,
            block_device_mapping={"ami": ROOT_DEVICE.removeprefix("/dev/"), "root": ROOT_DEVICE})
    return by_address
