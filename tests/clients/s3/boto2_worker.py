"""boto 2 under Debian's own Python on the object store: one call a line, its answer a line, as JSON.

Run as ``/usr/bin/python3 boto2_worker.py``; the environment is novarc's.  It imports nothing of Nova.
"""

import io
import json
import os
import sys
from urllib.parse import urlsplit

import boto
from boto.s3.connection import OrdinaryCallingFormat, S3Connection

url = urlsplit(os.environ["S3_URL"])
boto.config.add_section("Boto")
boto.config.set("Boto", "num_retries", "0")
if url.scheme == "https":
    boto.config.set("Boto", "ca_certificates_file", os.environ["SSL_CERT_FILE"])
s3 = S3Connection(os.environ["EC2_ACCESS_KEY"], os.environ["EC2_SECRET_KEY"], is_secure=url.scheme == "https",
                  host=url.hostname, port=url.port, calling_format=OrdinaryCallingFormat())
PART = 5 << 20


def put(bucket, key, path, content_type, metadata):
    new = s3.get_bucket(bucket).new_key(key)
    for name, value in metadata.items():
        new.set_metadata(name, value)
    new.set_contents_from_filename(path, headers={"Content-Type": content_type} if content_type else None)


def put_in_parts(bucket, key, path):
    upload = s3.get_bucket(bucket).initiate_multipart_upload(key)
    with open(path, "rb") as file:
        for number, block in enumerate(iter(lambda: file.read(PART), b""), 1):
            upload.upload_part_from_file(io.BytesIO(block), number)
    upload.complete_upload()


def get(bucket, key, path):
    s3.get_bucket(bucket).get_key(key).get_contents_to_filename(path)


def get_range(bucket, key, first, last):
    data = s3.get_bucket(bucket).get_key(key).get_contents_as_string(headers={"Range": f"bytes={first}-{last}"})
    return data.hex()


def head(bucket, key):
    found = s3.get_bucket(bucket).get_key(key)
    return [found.size, found.etag.strip('"'), found.content_type, found.metadata]


def level(bucket, prefix):
    found = list(s3.get_bucket(bucket).list(prefix, "/"))
    return [[one.name for one in found if one.__class__.__name__ == name] for name in ("Key", "Prefix")]


def delete_many(bucket, keys):
    result = s3.get_bucket(bucket).delete_keys(keys)
    if result.errors or sorted(one.key for one in result.deleted) != sorted(keys):
        raise AssertionError(f"deleted {result.deleted}, not {result.errors}")


CALLS = {
    "make_bucket": lambda bucket: s3.create_bucket(bucket) and None,
    "remove_bucket": lambda bucket: s3.delete_bucket(bucket) and None,
    "buckets": lambda: [bucket.name for bucket in s3.get_all_buckets()],
    "put": put,
    "put_in_parts": put_in_parts,
    "get": get,
    "get_range": get_range,
    "head": head,
    "keys": lambda bucket, prefix: [key.name for key in s3.get_bucket(bucket).list(prefix)],
    "level": level,
    "copy": lambda bucket, key, new: s3.get_bucket(bucket).copy_key(new, bucket, key) and None,
    "delete": lambda bucket, key: s3.get_bucket(bucket).delete_key(key) and None,
    "delete_many": delete_many,
    "presign": lambda method, bucket, key: s3.generate_url(600, method, bucket, key),
}

for line in sys.stdin:
    call, *arguments = json.loads(line)
    try:
        answer = {"result": CALLS[call](*arguments)}
    except Exception as error:  # whatever it is, the test is to see it
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
