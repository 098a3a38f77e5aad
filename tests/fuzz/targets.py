"""The targets by name; each is built when it is asked for, because some read service models first."""

from collections.abc import Callable

from tests.fuzz import bodies, disks, documents, http, requests, signatures
from tests.fuzz.run import Target

TARGETS: dict[str, Callable[[], Target]] = {
    "chunks": bodies.chunks,
    "frames": bodies.frames,
    "signature": signatures.signature,
    "range": requests.ranges,
    "xml": documents.xml,
    "policy": documents.policies,
    "conditions": requests.preconditions,
    "http": http.requests,
    "request": requests.requests,
    "form": bodies.forms,
    "post-policy": documents.post_policies,
    "configuration": documents.configurations,
    "access-list": requests.access_lists,
    "query": requests.queries,
    "ec2": requests.ec2,
    "disk": disks.disks,
}
