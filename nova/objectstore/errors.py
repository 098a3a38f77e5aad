"""The errors of the object store: codes, statuses and texts of the S3 API reference, "Error responses"."""

import errno
import logging

from nova import exception
from nova.auth.signer import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryParametersError,
    InvalidArgument,
    MissingSecurityHeader,
    RequestTimeTooSkewed,
)
from nova.exception import MalformedXML, MissingRequestBody, NoSuchBucket, NoSuchKey, S3Error

__all__ = [
    "AccessControlListNotSupported", "AccessDenied", "AccessForbidden", "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError", "BadDigest", "BadRequest", "BucketAlreadyExists", "BucketAlreadyOwnedByYou",
    "BucketNotEmpty", "EntityTooLarge", "EntityTooSmall", "IllegalVersioningConfiguration", "IncompleteBody",
    "InsufficientStorage", "InternalError", "InvalidAccessKeyId", "InvalidArgument",
    "InvalidBucketAclWithObjectOwnership", "InvalidBucketName", "InvalidDigest", "InvalidPart", "InvalidPartNumber",
    "InvalidPartOrder", "InvalidPolicyDocument", "InvalidRange", "InvalidRequest", "InvalidTag", "InvalidURI",
    "KeyIsDeleted", "KeyTooLong", "MalformedACL", "MalformedPOSTRequest", "MalformedPolicy", "MalformedTrailer",
    "MalformedXML", "MaxPostPreDataLengthExceeded", "MetadataTooLarge", "MethodNotAllowed", "MissingContentLength",
    "MissingRequestBody", "MissingSecurityHeader", "NoSuchBucket", "NoSuchKey", "NoSuchUpload", "NoSuchVersion",
    "NotImplementedYet", "NotModified", "NothingSet", "PreconditionFailed", "RequestTimeTooSkewed", "S3Error",
    "ServiceUnavailable", "SlowDown", "UnresolvableGrantByEmailAddress", "VersionIsMarker", "XAmzContentSHA256Mismatch",
    "translate",
]

log = logging.getLogger(__name__)


class AccessControlListNotSupported(S3Error):
    code = "AccessControlListNotSupported"
    message = "The bucket does not allow ACLs"


class AccessForbidden(S3Error):
    code, status = "AccessForbidden", 403
    message = "CORSResponse: {reason}"


class BadDigest(S3Error):
    code = "BadDigest"
    message = "The {name} you specified did not match the calculated checksum."


class BadRequest(S3Error):
    code = "BadRequest"
    message = "{reason}"


class BucketAlreadyExists(S3Error):
    code, status = "BucketAlreadyExists", 409
    message = ("The requested bucket name is not available. The bucket namespace is shared by all users of the "
               "system. Please select a different name and try again.")


class BucketAlreadyOwnedByYou(S3Error):
    code, status = "BucketAlreadyOwnedByYou", 409
    message = "Your previous request to create the named bucket succeeded and you already own it."


class BucketNotEmpty(S3Error):
    code, status = "BucketNotEmpty", 409
    message = "The bucket you tried to delete is not empty"


class EntityTooLarge(S3Error):
    code = "EntityTooLarge"
    message = "Your proposed upload exceeds the maximum allowed size of {limit} bytes"


class EntityTooSmall(S3Error):
    code = "EntityTooSmall"
    message = "Your proposed upload is smaller than the minimum allowed size"


class IncompleteBody(S3Error):
    code = "IncompleteBody"
    message = "You did not provide the number of bytes specified by the Content-Length HTTP header."


class InsufficientStorage(S3Error):
    """Amazon's S3 is never full.  The status is that of RFC 4918, which clients do not take for a passing trouble."""

    code, status = "InsufficientStorage", 507
    message = "There is not enough room left in the object store."


class InternalError(S3Error):
    code, status = "InternalError", 500
    message = "We encountered an internal error. Please try again."


class InvalidAccessKeyId(S3Error):
    code, status = "InvalidAccessKeyId", 403
    message = "The AWS Access Key Id you provided does not exist in our records."


class InvalidBucketName(S3Error):
    code = "InvalidBucketName"
    message = "The specified bucket is not valid."


class InvalidBucketAclWithObjectOwnership(S3Error):
    code = "InvalidBucketAclWithObjectOwnership"
    message = "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting"


class InvalidDigest(S3Error):
    code = "InvalidDigest"
    message = "The {name} you specified is not valid."


class InvalidPart(S3Error):
    code = "InvalidPart"
    message = ("One or more of the specified parts could not be found.  The part may not have been uploaded, or the "
               "specified entity tag may not match the part's entity tag.")


class InvalidPartNumber(S3Error):
    code, status = "InvalidPartNumber", 416
    message = "The requested partnumber is not satisfiable"


class InvalidPartOrder(S3Error):
    code = "InvalidPartOrder"
    message = "The list of parts was not in ascending order. Parts must be ordered by part number."


class InvalidPolicyDocument(S3Error):
    code = "InvalidPolicyDocument"
    message = "Invalid Policy: {reason}"


class InvalidRange(S3Error):
    code, status = "InvalidRange", 416
    message = "The requested range is not satisfiable"


class InvalidRequest(S3Error):
    code = "InvalidRequest"
    message = "{reason}"


class InvalidTag(S3Error):
    code = "InvalidTag"
    message = "{reason}"


class InvalidURI(S3Error):
    code = "InvalidURI"
    message = "Couldn't parse the specified URI."


class KeyTooLong(S3Error):
    code = "KeyTooLongError"
    message = "Your key is too long"


class MalformedACL(S3Error):
    code = "MalformedACLError"
    message = "The XML you provided was not well-formed or did not validate against our published schema"


class MalformedPolicy(S3Error):
    """The message says what is wrong with it."""

    code = "MalformedPolicy"
    message = "This policy contains invalid Json"


class MalformedPOSTRequest(S3Error):
    code = "MalformedPOSTRequest"
    message = "The body of your POST request is not well-formed multipart/form-data."


class MalformedTrailer(S3Error):
    code = "MalformedTrailerError"
    message = "The request contained trailing data that was not well-formed or did not conform to our published schema."


class MaxPostPreDataLengthExceeded(S3Error):
    code = "MaxPostPreDataLengthExceededError"
    message = "Your POST request fields preceding the upload file were too large."


class MetadataTooLarge(S3Error):
    code = "MetadataTooLarge"
    message = "Your metadata headers exceed the maximum allowed metadata size"


class MethodNotAllowed(S3Error):
    code, status = "MethodNotAllowed", 405
    message = "The specified method is not allowed against this resource."


class MissingContentLength(S3Error):
    code, status = "MissingContentLength", 411
    message = "You must provide the Content-Length HTTP header."


class NoSuchUpload(S3Error):
    code, status = "NoSuchUpload", 404
    message = ("The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
               "or completed.")


class NoSuchVersion(S3Error):
    code, status = "NoSuchVersion", 404
    message = "The specified version does not exist."


class KeyIsDeleted(NoSuchKey):
    """The current version is a delete marker; :param version: its id"""

    def __init__(self, version: str):
        super().__init__()
        self.headers = {"x-amz-delete-marker": "true", "x-amz-version-id": version}


class VersionIsMarker(MethodNotAllowed):
    """The version that was asked for is a delete marker, of which nothing can be read.

    :param modified: when it was made, as headers have times
    """

    def __init__(self, version: str, modified: str):
        super().__init__()
        self.headers = {"x-amz-delete-marker": "true", "x-amz-version-id": version, "Last-Modified": modified,
                        "Allow": "DELETE"}


class IllegalVersioningConfiguration(S3Error):
    code = "IllegalVersioningConfigurationException"
    message = "The Versioning element must be specified"


class NotImplementedYet(S3Error):
    code, status = "NotImplemented", 501
    message = "{what} is not implemented."


class NotModified(S3Error):
    """Not an error: the client's copy is current.  It has no body."""

    code, status = "NotModified", 304
    message = "Not Modified"


class NothingSet(S3Error):
    """A configuration of a bucket that nobody has set; each has a code of its own."""

    status = 404

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class PreconditionFailed(S3Error):
    code, status = "PreconditionFailed", 412
    message = "At least one of the pre-conditions you specified did not hold"


class ServiceUnavailable(S3Error):
    code, status = "ServiceUnavailable", 503
    message = "Service is unable to handle request."


class SlowDown(S3Error):
    code, status = "SlowDown", 503
    message = "Please reduce your request rate."


class UnresolvableGrantByEmailAddress(S3Error):
    code = "UnresolvableGrantByEmailAddress"
    message = "The e-mail address you provided does not match any account on record."


class XAmzContentSHA256Mismatch(S3Error):
    code = "XAmzContentSHA256Mismatch"
    message = "The provided 'x-amz-content-sha256' header does not match what was computed."


def translate(error: Exception) -> S3Error:
    """What the client is told of an error; what it is not told is logged."""
    if isinstance(error, S3Error | exception.SignatureDoesNotMatch):
        return error  # type: ignore[return-value]
    if isinstance(error, exception.Busy):
        log.warning("busy: %s", error)
        return SlowDown()
    if isinstance(error, exception.Unavailable):
        log.warning("unavailable: %r", error)
        return ServiceUnavailable()
    if isinstance(error, exception.RequestEntityTooLarge):
        return EntityTooLarge(limit=error.values["limit"])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("the object store's disk is full: %s", error)
        return InsufficientStorage()
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        log.error("the object store's disk cannot be written: %s", error)
        return ServiceUnavailable()
    log.error("internal error", exc_info=error)
    return InternalError()
