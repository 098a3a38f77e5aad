"""The one vocabulary of errors.

Each class that a client may see carries the EC2 or S3 error code and the HTTP status; the endpoints turn them into
the answer that the clients know.  The codes and statuses are those of the EC2 API reference ("Error codes") and of
the S3 API reference ("Error responses").  The classes at the end never leave the daemons.
"""

from collections.abc import Mapping
from typing import Any


class NovaError(Exception):
    """Base of all.  The class's `message` is a template that keyword arguments fill; a message given replaces it."""

    code = "InternalError"
    status = 500
    message = "An internal error has occurred."

    def __init__(self, message: str | None = None, **values: Any):
        self.message = message if message is not None else type(self).message.format(**values)
        self.values = values
        super().__init__(self.message)


class ClientError(NovaError):
    """The client's fault.  `headers` are those of the answer that tell more."""

    status = 400
    headers: Mapping[str, str] = {}
    code = "InvalidRequest"
    message = "The request is invalid."


# -- EC2: who is asking ---------------------------------------------------------------------------------------------

class AuthFailure(ClientError):
    code, status = "AuthFailure", 401
    message = "Nova was not able to validate the provided access credentials"


class SignatureDoesNotMatch(ClientError):
    code, status = "SignatureDoesNotMatch", 403
    message = ("The request signature we calculated does not match the signature you provided. "
               "Check your secret key and signing method.")


class RequestExpired(ClientError):
    code = "RequestExpired"
    message = "Request has expired."


class IncompleteSignature(ClientError):
    code = "IncompleteSignature"
    message = "The request signature does not conform to the signing rules."


class UnauthorizedOperation(ClientError):
    code, status = "UnauthorizedOperation", 403
    message = "You are not authorized to perform this operation."


class OperationNotPermitted(ClientError):
    code, status = "OperationNotPermitted", 400
    message = "The operation is not permitted."


class InstanceLocked(OperationNotPermitted):
    message = "The instance '{id}' is locked; a security administrator can unlock it."


# -- EC2: what is asked ---------------------------------------------------------------------------------------------

class InvalidAction(ClientError):
    code = "InvalidAction"
    message = "The action {action} is not valid for this web service."


class MissingAction(ClientError):
    code = "MissingAction"
    message = "The request is missing an action or a required parameter."


class UnsupportedOperation(ClientError):
    code = "UnsupportedOperation"
    message = "The action {action} is not offered by this cloud."


class MissingParameter(ClientError):
    code = "MissingParameter"
    message = "The request must contain the parameter {name}"


class UnknownParameter(ClientError):
    code = "UnknownParameter"
    message = "The parameter {name} is not recognized"


class InvalidParameter(ClientError):
    code = "InvalidParameter"
    message = "A parameter is not valid."


class InvalidParameterValue(ClientError):
    code = "InvalidParameterValue"
    message = "Value ({value}) for parameter {name} is invalid."


class InvalidParameterCombination(ClientError):
    code = "InvalidParameterCombination"
    message = "The parameters must not be used together."


class InvalidNextToken(ClientError):
    code = "InvalidNextToken"
    message = "The token is invalid."


class MalformedQueryString(ClientError):
    code = "MalformedQueryString"
    message = "The query string or form is malformed."


class RequestEntityTooLarge(ClientError):
    code, status = "RequestEntityTooLarge", 413
    message = "The request is larger than {limit} bytes."


class DryRunOperation(ClientError):
    code, status = "DryRunOperation", 412
    message = "Request would have succeeded, but DryRun flag is set."


class IdempotentParameterMismatch(ClientError):
    code = "IdempotentParameterMismatch"
    message = "The client token was used before with other parameters."


class IncorrectInstanceState(ClientError):
    code = "IncorrectInstanceState"
    message = "The instance '{instance_id}' is not in a state from which it can be {verb}; it is {state}."


class IncorrectState(ClientError):
    code = "IncorrectState"
    message = "The resource is in the wrong state for this request."


class InvalidInstanceIDNotFound(ClientError):
    code = "InvalidInstanceID.NotFound"
    message = "The instance ID '{id}' does not exist"


class InvalidInstanceIDMalformed(ClientError):
    code = "InvalidInstanceID.Malformed"
    message = "Invalid id: \"{id}\" (expecting \"i-...\")"


class InvalidAMIIDNotFound(ClientError):
    code = "InvalidAMIID.NotFound"
    message = "The image id '[{id}]' does not exist"


class InvalidAMIIDMalformed(ClientError):
    code = "InvalidAMIID.Malformed"
    message = "Invalid id: \"{id}\" (expecting \"ami-...\")"


class InvalidAMIIDUnavailable(ClientError):
    code = "InvalidAMIID.Unavailable"
    message = "The image ID '{id}' is not available; its state is {state}."


class InvalidAMINameDuplicate(ClientError):
    code = "InvalidAMIName.Duplicate"
    message = "AMI name {name} is already in use by AMI {id}"


class InvalidAMINameMalformed(ClientError):
    code = "InvalidAMIName.Malformed"
    message = ("AMI names must be between 3 and 128 characters long, and may contain letters, numbers, spaces, '(', "
               "')', '[', ']', '.', '-', '/', '@', apostrophes and '_'")


class InvalidAMIAttributeItemValue(ClientError):
    code = "InvalidAMIAttributeItemValue"
    message = "Invalid attribute item value \"{value}\" for {name} item type."


class InvalidProductCode(ClientError):
    code = "InvalidProductCode.Malformed"
    message = "The product code \"{value}\" is not valid: at most 128 printable ASCII characters are expected."


class InvalidManifest(ClientError):
    code = "InvalidManifest"
    message = "The manifest or image is not valid: {reason}"


class InvalidImage(ClientError):
    code = "InvalidFormat"
    message = "The image cannot be taken: {reason}"


class InvalidKeyPairNotFound(ClientError):
    code = "InvalidKeyPair.NotFound"
    message = "The key pair '{id}' does not exist"


class InvalidKeyPairDuplicate(ClientError):
    code = "InvalidKeyPair.Duplicate"
    message = "The keypair '{name}' already exists."


class InvalidKeyFormat(ClientError):
    code = "InvalidKey.Format"
    message = "Key is not in valid OpenSSH public key format"


class InvalidGroupNotFound(ClientError):
    code = "InvalidGroup.NotFound"
    message = "The security group '{id}' does not exist"


class InvalidZoneNotFound(ClientError):
    code = "InvalidParameterValue"
    message = "Invalid availability zone: [{id}]"


class InvalidInstanceType(ClientError):
    code = "InvalidInstanceType"
    message = "The following supplied instance types do not exist: [{id}]"


class InvalidUserDataMalformed(ClientError):
    code = "InvalidUserData.Malformed"
    message = "User data is not valid: {reason}"


class InvalidID(ClientError):
    code = "InvalidID"
    message = "The ID '{id}' is not valid"


class TagLimitExceeded(ClientError):
    code = "TagLimitExceeded"
    message = "A resource has too many tags."


class ResourceCountExceeded(ClientError):
    code = "ResourceCountExceeded"
    message = "More resources than the request may name."


class InstanceLimitExceeded(ClientError):
    code = "InstanceLimitExceeded"
    message = "You have requested more instances than your limit allows."


class VolumeLimitExceeded(ClientError):
    code = "VolumeLimitExceeded"
    message = "You have requested more volumes than your limit allows."


class AddressLimitExceeded(ClientError):
    code = "AddressLimitExceeded"
    message = "You have requested more public addresses than your limit allows."


class InsufficientInstanceCapacity(NovaError):
    code, status = "InsufficientInstanceCapacity", 500
    message = "There is no host with enough capacity for the instances you requested."


class InsufficientFreeAddressesInSubnet(ClientError):
    code = "InsufficientFreeAddressesInSubnet"
    message = "The project's network has not enough free addresses for the instances you requested."


class DependencyViolation(ClientError):
    code = "DependencyViolation"
    message = "{what} still has {owned}; remove them first."


# -- administration: users, projects, hosts ---------------------------------------------------------------------------

class InvalidUserNotFound(ClientError):
    code = "InvalidUser.NotFound"
    message = "The user '{id}' does not exist"


class InvalidUserDuplicate(ClientError):
    code = "InvalidUser.Duplicate"
    message = "The user '{id}' already exists."


class InvalidProjectNotFound(ClientError):
    code = "InvalidProject.NotFound"
    message = "The project '{id}' does not exist"


class InvalidProjectDuplicate(ClientError):
    code = "InvalidProject.Duplicate"
    message = "The project '{id}' already exists."


class InvalidAccessKeyDuplicate(ClientError):
    code = "InvalidAccessKey.Duplicate"
    message = "Another user has this access key."


class InvalidHostNotFound(ClientError):
    code = "InvalidHost.NotFound"
    message = "The host '{id}' does not exist"


# -- IAM (API reference, "Common errors" and those of each action) ----------------------------------------------------

class NoSuchEntity(ClientError):
    code, status = "NoSuchEntity", 404
    message = "The {kind} with name {id} cannot be found."


class EntityAlreadyExists(ClientError):
    code, status = "EntityAlreadyExists", 409
    message = "User with name {id} already exists."


class DeleteConflict(ClientError):
    code, status = "DeleteConflict", 409
    message = "Cannot delete entity, must delete {what} first."


class LimitExceeded(ClientError):
    code, status = "LimitExceeded", 409
    message = "Cannot exceed quota for {what}: {limit}"


# -- EC2: the cloud's own troubles ------------------------------------------------------------------------------------

class Unavailable(NovaError):
    code, status = "Unavailable", 503
    message = "The service is unavailable. Please try again shortly."


class Busy(Unavailable):
    """Somebody that Nova asks wants to be asked less often."""


class InternalError(NovaError):
    """Something that should not have happened; the log has the details under the request id."""


# -- S3 ---------------------------------------------------------------------------------------------------------------

class S3Error(ClientError):
    """Base of the errors that the object store answers; nova/objectstore/errors.py has the rest."""


class MalformedXML(S3Error):
    code = "MalformedXML"
    message = "The XML you provided was not well-formed or did not validate against our published schema"


class MissingRequestBody(S3Error):
    code = "MissingRequestBodyError"
    message = "Request Body is empty"


class NoSuchBucket(S3Error):
    code, status = "NoSuchBucket", 404
    message = "The specified bucket does not exist"


class NoSuchKey(S3Error):
    code, status = "NoSuchKey", 404
    message = "The specified key does not exist."


class QuotaExceeded(S3Error):
    """Amazon's S3 has no such limit; code and status are those of Ceph's object gateway, which clients know."""

    code, status = "QuotaExceeded", 403
    message = "You have requested more object storage than your limit allows."


# -- inside the daemons -----------------------------------------------------------------------------------------------

class DatastoreUnavailable(Unavailable):
    """Redis does not answer."""


class Exists(NovaError):
    """A record that was to be created is there already.  `kind` and `id` name it."""

    message = "{kind} {id} exists already"

    def __init__(self, kind: str, id: str):
        super().__init__(kind=kind, id=id)
        self.kind, self.id = kind, id


class NotFound(NovaError):
    """A record that was to be changed is not there."""

    message = "{kind} {id} does not exist"


class Conflict(NovaError):
    """Somebody else changed the record in between; read it again."""

    message = "{kind} {id} was changed by somebody else"


class Exhausted(NovaError):
    """A pool has nothing left, or a counter would pass its limit.  `name` says which."""

    message = "{name} is exhausted"

    def __init__(self, name: str):
        super().__init__(name=name)
        self.name = name


class LaunchFailed(NovaError):
    """An instance cannot be launched, and trying again will not help."""


class ImageUnavailable(LaunchFailed):
    """An image's file is gone or damaged."""


class NoRoom(LaunchFailed):
    """The host's disk has no room for an image, and nothing can go."""


class ProcessError(NovaError):
    """An external command failed; the message has its arguments, exit code and what it said."""


class Timeout(NovaError):
    """Something took longer than it was allowed to."""


class RpcTimeout(Timeout):
    """Nobody answered in time."""

    message = "{topic} did not answer {method} within {timeout:g} s"


class RemoteError(NovaError):
    """The other side of an RPC raised something; `message` is what it said."""
