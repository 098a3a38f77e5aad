"""A plain query client with Signature Version 2, as there were many in 2010."""

import base64
import hashlib
from pathlib import Path

from tests.clients import sigv2
from tests.clients.support import Cloud
from tests.clients.whole_round import Seen, whole_round


class QueryClient:
    """See :class:`tests.clients.whole_round.Client`.  EC2 by GET with HmacSHA1 and by POST with HmacSHA256."""

    def __init__(self, cloud: Cloud):
        self._get = sigv2.Ec2(cloud.ec2_port, cloud.access, cloud.secret, digest="SHA1", path="/services/Cloud/")
        self._post = sigv2.Ec2(cloud.ec2_port, cloud.access, cloud.secret)
        self._s3 = sigv2.S3(cloud.s3_port, cloud.access, cloud.secret)

    def create_bucket(self, bucket: str) -> None:
        self._s3.call("PUT", f"/{bucket}")

    def upload(self, bucket: str, key: str, path: Path) -> None:
        answer = self._s3.put_file(f"/{bucket}/{key}", path)
        assert answer.headers["etag"].strip('"') == hashlib.md5(path.read_bytes()).hexdigest()

    def download(self, bucket: str, key: str, path: Path) -> None:
        path.write_bytes(self._s3.call("GET", f"/{bucket}/{key}").body)

    def empty_bucket(self, bucket: str, keys: list[str]) -> None:
        listed = self._s3.call("GET", f"/{bucket}").xml()
        assert {element.text for element in listed.iter("Key")} == set(keys)
        for key in keys:
            self._s3.call("DELETE", f"/{bucket}/{key}")
        self._s3.call("DELETE", f"/{bucket}")

    def register(self, name: str, location: str, kernel: str, ramdisk: str) -> str:
        parts = {"KernelId": kernel, "RamdiskId": ramdisk}
        answer = self._get.call("RegisterImage", Name=name, ImageLocation=location,
                                **{member: value for member, value in parts.items() if value})
        return answer.findtext("imageId") or ""

    def image_state(self, image_id: str) -> str:
        return self._get.call("DescribeImages", ImageId_1=image_id).findtext("imagesSet/item/imageState") or ""

    def deregister(self, image_id: str) -> None:
        assert self._get.call("DeregisterImage", ImageId=image_id).findtext("return") == "true"

    def create_key(self, name: str) -> str:
        return self._post.call("CreateKeyPair", "POST", KeyName=name).findtext("keyMaterial") or ""

    def delete_key(self, name: str) -> None:
        assert self._post.call("DeleteKeyPair", "POST", KeyName=name).findtext("return") == "true"

    def run(self, image_id: str, key_name: str, user_data: str) -> str:
        answer = self._post.call("RunInstances", "POST", ImageId=image_id, MinCount="1", MaxCount="1", KeyName=key_name,
                                 InstanceType="m1.tiny", UserData=base64.b64encode(user_data.encode()).decode())
        return answer.findtext("instancesSet/item/instanceId") or ""

    def see(self, instance_id: str) -> Seen:
        answer = self._get.call("DescribeInstances", InstanceId_1=instance_id)
        instance = answer.find("reservationSet/item/instancesSet/item")
        assert instance is not None
        return Seen(instance.findtext("instanceState/name") or "", instance.findtext("privateIpAddress") or "",
                    instance.findtext("keyName") or "")

    def console(self, instance_id: str) -> str:
        answer = self._get.call("GetConsoleOutput", InstanceId=instance_id)
        return base64.b64decode(answer.findtext("output") or "").decode(errors="replace")

    def reboot(self, instance_id: str) -> None:
        assert self._get.call("RebootInstances", InstanceId_1=instance_id).findtext("return") == "true"

    def terminate(self, instance_id: str) -> None:
        answer = self._post.call("TerminateInstances", "POST", InstanceId_1=instance_id)
        assert answer.findtext("instancesSet/item/previousState/name") == "running"


def test_query_client_does_the_whole_round(cloud: Cloud, tmp_path: Path):
    whole_round(cloud, QueryClient(cloud), "sigv2", tmp_path)
