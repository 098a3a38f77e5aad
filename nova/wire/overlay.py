"""What Nova's EC2 differs in from the published model, as data.

The model is Amazon's; these tables say where a private cloud with clients of every age needs something else.
Everything here is applied by the other modules of nova.wire; nothing here knows an action's meaning.
"""

from typing import Any

#: added to the model's description, merged level by level: shapes, members of shapes, operations
ADDITIONS: dict[str, Any] = {}

#: enumerations whose values are the cloud's own, so that any string passes and the action judges it
OPEN_ENUMS = frozenset({"InstanceType"})

#: members (shape, member) that the model requires and that clients of the first versions of the API leave out
OPTIONAL = frozenset({("RegisterImageRequest", "Name")})

#: actions that answer <return>true</return> although they return something else too: clients of the first
#: versions of the API, where they returned nothing else, read only that
ALWAYS_RETURN = frozenset({"AssociateAddress"})

#: what belongs to the protocol and is no parameter of an action
PROTOCOL_PARAMETERS = frozenset({
    "Action", "Version", "AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp",
    "Expires", "SecurityToken",
})
#: names that begin so belong to the protocol too (Signature Version 4 in the query)
PROTOCOL_PREFIX = "X-Amz-"


def merge(base: dict[str, Any], additions: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the additions in it; dictionaries are merged, everything else is replaced."""
    merged = dict(base)
    for name, value in additions.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
