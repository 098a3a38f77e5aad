"""What there is to choose from: the region, its zones, the instance types."""

from typing import Any

from nova import exception, service
from nova.cloud.action import Controller, listing
from nova.compute.types import GIB, TYPES, InstanceType
from nova.context import Context
from nova.datastore import Store
from nova.flags import FLAGS


class Regions(Controller):
    """Regions, availability zones and instance types."""

    store: Store

    @listing("DescribeRegions", result="Regions", id_member="RegionName", ids_param="RegionNames",
             not_found=exception.InvalidParameterValue, filters={"endpoint": "Endpoint"})
    async def describe_regions(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The one region."""
        return [{"RegionName": FLAGS.region, "Endpoint": f"{FLAGS.api_host}:{FLAGS.ec2_port}",
                 "OptInStatus": "opt-in-not-required"}]

    @listing("DescribeAvailabilityZones", result="AvailabilityZones", id_member="ZoneName",
             ids_param="ZoneNames", not_found=exception.InvalidZoneNotFound)
    async def describe_availability_zones(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The zones in which compute hosts live."""
        return [{"ZoneName": zone, "ZoneId": zone, "State": "available", "RegionName": FLAGS.region, "Messages": [],
                 "OptInStatus": "opt-in-not-required", "ZoneType": "availability-zone"}
                for zone in await zones(self.store)]

    @listing("DescribeInstanceTypes", result="InstanceTypes", id_member="InstanceType",
             ids_param="InstanceTypes", not_found=exception.InvalidInstanceType, max_results=(5, 100),
             filters={"memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
                      "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
                      "instance-storage-info.total-size-in-gb": "InstanceStorageInfo.TotalSizeInGB",
                      "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
                      "supported-root-device-type": "SupportedRootDeviceTypes",
                      "supported-virtualization-type": "SupportedVirtualizationTypes",
                      "supported-usage-class": "SupportedUsageClasses"})
    async def describe_instance_types(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The instance types."""
        return [_view_type(t) for t in TYPES.values()]


async def zones(store: Store) -> list[str]:
    """The names of the availability zones, sorted."""
    return sorted({host.zone for host in await service.hosts(store, "compute")})


def _view_type(size: InstanceType) -> dict[str, Any]:
    storage = {"InstanceStorageInfo": {"TotalSizeInGB": size.disk_gb * GIB // 10**9}} if size.disk_gb else {}
    return {
        "InstanceType": size.name, "CurrentGeneration": True, "FreeTierEligible": False, "BareMetal": False,
        "SupportedUsageClasses": ["on-demand"], "SupportedRootDeviceTypes": ["instance-store"],
        "SupportedVirtualizationTypes": ["hvm"], "Hypervisor": "kvm",
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "VCpuInfo": {"DefaultVCpus": size.vcpus, "DefaultCores": size.vcpus, "DefaultThreadsPerCore": 1},
        "MemoryInfo": {"SizeInMiB": size.memory_mb}, "InstanceStorageSupported": bool(size.disk_gb), **storage,
        "HibernationSupported": False, "BurstablePerformanceSupported": False, "DedicatedHostsSupported": False,
        "AutoRecoverySupported": False,
    }
