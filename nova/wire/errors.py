"""Errors as the EC2 API writes them (EC2 API reference, "Common errors"), and as the plain query protocol has them."""

from nova.wire.xml import escape

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


def write(code: str, message: str, request_id: str) -> bytes:
    """The XML of an EC2 error."""
    return (f"{_HEAD}<Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
            f"</Error></Errors><RequestID>{escape(request_id)}</RequestID></Response>").encode()


#: what the plain query protocol calls errors that EC2 calls otherwise (IAM API reference, "Common errors")
PLAIN_CODES = {"AuthFailure": "InvalidClientTokenId", "UnauthorizedOperation": "AccessDenied",
               "UnknownParameter": "ValidationError", "MissingParameter": "ValidationError",
               "InvalidParameterValue": "ValidationError", "Unavailable": "ServiceUnavailable",
               "InternalError": "ServiceFailure"}


def write_query(code: str, message: str, request_id: str, namespace: str, sender: bool = True) -> bytes:
    """The XML of an error in the plain query protocol; `sender`: the client is at fault, not the service."""
    fault, code = "Sender" if sender else "Receiver", PLAIN_CODES.get(code, code)
    return (f'{_HEAD}<ErrorResponse xmlns="{escape(namespace)}"><Error><Type>{fault}</Type>'
            f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
            f"<RequestId>{escape(request_id)}</RequestId></ErrorResponse>").encode()
