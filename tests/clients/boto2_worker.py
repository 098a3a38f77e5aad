"""boto 2 under Debian's own Python: one call a line on standard input, its answer a line on standard output, as JSON.

Run by test_boto2 as ``/usr/bin/python3 boto2_worker.py``; the environment is novarc's.  It imports nothing of Nova.
"""

import json
import os
import sys
from urllib.parse import urlsplit

import boto
from boto.ec2.connection import EC2Connection
from boto.ec2.regioninfo import RegionInfo
from boto.s3.connection import OrdinaryCallingFormat, S3Connection

access, secret = os.environ["EC2_ACCESS_KEY"], os.environ["EC2_SECRET_KEY"]
ec2_url, s3_url = urlsplit(os.environ["EC2_URL"]), urlsplit(os.environ["S3_URL"])
boto.config.add_section("Boto")
boto.config.set("Boto", "num_retries", "0")

# Signature Version 4 is what boto 2 takes for EC2 by itself
ec2 = EC2Connection(access, secret, is_secure=False, port=ec2_url.port, path=ec2_url.path,
                    region=RegionInfo(name="nova", endpoint=ec2_url.hostname))
# and Signature Version 2 for S3
s3 = S3Connection(access, secret, is_secure=False, host=s3_url.hostname, port=s3_url.port,
                  calling_format=OrdinaryCallingFormat())


def instance(instance_id):
    return ec2.get_all_instances([instance_id])[0].instances[0]


def see(instance_id):
    found = instance(instance_id)
    return [found.state, found.private_ip_address or "", found.key_name]


def empty_bucket(name):
    bucket = s3.get_bucket(name)
    keys = [key.name for key in bucket.list()]
    bucket.delete_keys(keys)
    s3.delete_bucket(name)
    return keys


CALLS = {
    "create_bucket": lambda bucket: s3.create_bucket(bucket) and None,
    "upload": lambda bucket, key, path: s3.get_bucket(bucket).new_key(key).set_contents_from_filename(path),
    "download": lambda bucket, key, path: s3.get_bucket(bucket).get_key(key).get_contents_to_filename(path),
    "empty_bucket": empty_bucket,
    "register": lambda name, location, kernel, ramdisk: ec2.register_image(
        name=name, image_location=location, kernel_id=kernel or None, ramdisk_id=ramdisk or None),
    "image_state": lambda image_id: ec2.get_image(image_id).state,
    "deregister": lambda image_id: ec2.deregister_image(image_id),
    "create_key": lambda name: ec2.create_key_pair(name).material,
    "delete_key": lambda name: ec2.delete_key_pair(name),
    "run": lambda image_id, key_name, user_data: ec2.run_instances(
        image_id, key_name=key_name, instance_type="m1.tiny", user_data=user_data).instances[0].id,
    "see": see,
    "console": lambda instance_id: (ec2.get_console_output(instance_id).output or b"").decode(errors="replace"),
    "reboot": lambda instance_id: ec2.reboot_instances([instance_id]),
    "terminate": lambda instance_id: [found.id for found in ec2.terminate_instances([instance_id])],
}

for line in sys.stdin:
    call, *arguments = json.loads(line)
    try:
        answer = {"result": CALLS[call](*arguments)}
    except Exception as error:  # whatever it is, the test is to see it
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
