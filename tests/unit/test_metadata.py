"""The metadata tree and the session tokens, without servers."""

import dataclasses
import json

import pytest

from nova.endpoint.metadata import VERSIONS, InstanceMetadata, Tokens, resolve

MAC = "02:16:3e:00:00:01"
META = InstanceMetadata(
    instance_id="i-0000000a", ami_id="ami-00000001", aki="aki-00000002", ari="ari-00000003",
    reservation_id="r-00000004", launch_index=2, hostname="i-0000000a", local_ipv4="10.202.1.3",
    public_ipv4="192.0.2.9", mac=MAC, instance_type="m1.small", zone="nova", region="nova",
    security_groups=("default", "web"), key_name="my key", public_key="ssh-rsa AAAA me\n",
    user_data=b"#!\x00\xff", project_id="proj", launch_time=1258300800.0, cidr="10.202.1.0/24",
    gateway="10.202.1.1", block_device_mapping={"ami": "vda", "root": "/dev/vda"})
BARE = dataclasses.replace(META, aki=None, ari=None, public_ipv4=None, security_groups=(), key_name=None,
                           public_key=None, user_data=None, block_device_mapping={})


def get(path: str, meta: InstanceMetadata = META) -> str | None:
    content = resolve(meta, path)
    return None if content is None else content.decode()


def test_versions_are_listed_at_the_top():
    assert get("/") == get("") == "\n".join(VERSIONS)
    assert VERSIONS[0] == "1.0" and VERSIONS[-2:] == ("2009-04-04", "latest")


@pytest.mark.parametrize("path, content", [
    ("ami-id", "ami-00000001"), ("kernel-id", "aki-00000002"), ("ramdisk-id", "ari-00000003"),
    ("instance-id", "i-0000000a"), ("reservation-id", "r-00000004"), ("ami-launch-index", "2"),
    ("hostname", "i-0000000a"), ("local-hostname", "i-0000000a"), ("local-ipv4", "10.202.1.3"),
    ("public-ipv4", "192.0.2.9"), ("public-hostname", "192.0.2.9"), ("mac", MAC),
    ("instance-type", "m1.small"), ("instance-action", "none"), ("security-groups", "default\nweb"),
    ("placement/availability-zone", "nova"), ("public-keys/", "0=my key"), ("public-keys", "0=my key"),
    ("public-keys/0/", "openssh-key"), ("public-keys/0/openssh-key", "ssh-rsa AAAA me\n"),
    ("block-device-mapping/", "ami\nroot"), ("block-device-mapping/root", "/dev/vda"),
    ("network/", "interfaces/"), ("network/interfaces/macs/", MAC + "/"),
    (f"network/interfaces/macs/{MAC}/local-ipv4s", "10.202.1.3"),
    (f"network/interfaces/macs/{MAC}/device-number", "0"),
    (f"network/interfaces/macs/{MAC}/subnet-ipv4-cidr-block", "10.202.1.0/24"),
])
def test_items(path, content):
    assert get("/latest/meta-data/" + path) == content
    assert get("/2009-04-04/meta-data/" + path) == content


def test_directories_are_marked_except_below_a_version():
    assert get("/latest/") == get("/latest") == "dynamic\nmeta-data\nuser-data"
    lines = get("/latest/meta-data/").split("\n")
    assert {"public-keys/", "placement/", "block-device-mapping/", "network/", "ami-id"} <= set(lines)
    assert lines == sorted(lines)
    assert get("/latest/dynamic/") == "instance-identity/"
    assert get("/latest/dynamic/instance-identity/") == "document"


@pytest.mark.parametrize("version, has, has_not", [
    ("1.0", {"ami-id", "public-keys/", "security-groups"}, {"local-hostname", "placement/", "mac"}),
    ("2007-01-19", {"local-hostname", "public-ipv4"}, {"instance-type"}),
    ("2007-08-29", {"instance-type"}, {"ramdisk-id"}),
    ("2007-10-10", {"ramdisk-id"}, {"block-device-mapping/"}),
    ("2007-12-15", {"block-device-mapping/"}, {"kernel-id", "placement/"}),
    ("2008-02-01", {"kernel-id", "placement/"}, {"instance-action"}),
    ("2008-09-01", {"instance-action"}, {"mac"}),
])
def test_a_version_has_what_it_brought(version, has, has_not):
    lines = set(get(f"/{version}/meta-data/").split("\n"))
    assert has <= lines and not has_not & lines
    for item in has_not:
        assert get(f"/{version}/meta-data/{item}") is None
    assert get(f"/{version}/dynamic/") is None


@pytest.mark.parametrize("path", [
    "/2010-01-01/", "/2021-03-23/meta-data/instance-id", "/latest/nope", "/latest/meta-data/nope", "/nope",
    "/latest/meta-data/instance-id/deeper", "/latest/meta-data/public-keys/1/openssh-key",
    "/latest/meta-data/../user-data", "/latest/dynamic/instance-identity/pkcs7",
])
def test_what_is_not_there(path):
    assert get(path) is None


def test_more_slashes_than_needed_do_no_harm():
    assert get("//latest//meta-data/instance-id/") == "i-0000000a"


def test_an_instance_without_extras_has_no_empty_items():
    lines = set(get("/latest/meta-data/", BARE).split("\n"))
    assert not lines & {"kernel-id", "ramdisk-id", "public-ipv4", "public-hostname", "public-keys/",
                        "security-groups", "block-device-mapping/"}
    assert get("/latest/user-data", BARE) is None
    assert get("/latest/", BARE) == "dynamic\nmeta-data"
    assert get("/latest/meta-data/public-keys/", BARE) is None


def test_user_data_is_given_back_byte_for_byte():
    assert resolve(META, "/latest/user-data") == resolve(META, "/1.0/user-data/") == b"#!\x00\xff"


def test_identity_document():
    document = json.loads(get("/latest/dynamic/instance-identity/document"))
    assert document["instanceId"] == "i-0000000a" and document["accountId"] == "proj"
    assert document["pendingTime"] == "2009-11-15T16:00:00Z" and document["privateIp"] == "10.202.1.3"


def every_path(meta: InstanceMetadata, base: str) -> list[str]:
    """What a crawler such as cloud-init's finds by following listings."""
    found = []
    for line in get(base, meta).split("\n"):
        name = line.split("=")[0] + "/" if base.endswith("public-keys/") else line
        found += every_path(meta, base + name) if name.endswith("/") else [base + name]
    return found


def test_everything_that_is_listed_can_be_fetched():
    for meta in (META, BARE):
        paths = [p for v in VERSIONS for p in every_path(meta, f"/{v}/meta-data/")]
        assert len(paths) > 60 and all(resolve(meta, p) is not None for p in paths)


class TestTokens:
    def setup_method(self):
        self.now = 1000.0
        self.tokens = Tokens(b"secret", lambda: self.now)

    def test_a_token_lasts_as_long_as_was_asked(self):
        token = self.tokens.issue("i-1", 60)
        assert self.tokens.remaining(token, "i-1") == 60
        self.now += 59.5
        assert self.tokens.remaining(token, "i-1") == 1
        self.now += 1
        assert self.tokens.remaining(token, "i-1") == 0

    def test_it_is_good_for_its_instance_and_cloud_only(self):
        token = self.tokens.issue("i-1", 60)
        assert self.tokens.remaining(token, "i-2") == 0
        assert Tokens(b"other", lambda: self.now).remaining(token, "i-1") == 0
        assert Tokens(b"secret", lambda: self.now).remaining(token, "i-1") == 60

    def test_no_changed_character_is_accepted(self):
        token = self.tokens.issue("i-1", 60)
        for i in range(len(token)):
            changed = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1:]
            assert self.tokens.remaining(changed, "i-1") == 0

    @pytest.mark.parametrize("junk", ["", "x", "=", "ä", "A" * 10000, "AAAA\n", " ", "A" * 64])
    def test_junk_is_no_token(self, junk):
        assert self.tokens.remaining(junk, "i-1") == 0
