"""Decoding of query strings and forms (application/x-www-form-urlencoded), strictly and fast.

A form can be megabytes (user data), nearly all of it one base64 value, so the escapes that base64 needs are
undone by bulk replacement before the general decoder sees the value.
"""

import re
from urllib.parse import unquote

from nova import exception

#: more parameters than any client sends in one request
MAX_PARAMETERS = 10_000

_BASE64_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def parse_pairs(raw: bytes) -> list[tuple[str, str]]:
    """The parameters of a query string or form, in their order; ``+`` is a space.

    :raises exception.MalformedQueryString: not UTF-8, a broken percent escape, or more than MAX_PARAMETERS
    """
    try:
        text = raw.decode("utf-8")
        if not text:
            return []
        if text.count("&") >= MAX_PARAMETERS:
            raise exception.MalformedQueryString(f"There are more than {MAX_PARAMETERS} parameters.")
        pairs = []
        for item in text.split("&"):
            if item:
                name, _, value = item.partition("=")
                pairs.append((_decode(name), _decode(value)))
        return pairs
    except UnicodeDecodeError:
        raise exception.MalformedQueryString("The query string or form is not UTF-8.") from None


def _decode(text: str) -> str:
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    if len(text) > 4096:
        # An escape's own % never belongs to another escape, so undoing these first changes nothing else.
        for escape, character in _BASE64_ESCAPES:
            text = text.replace(escape, character)
    if _BROKEN_ESCAPE.search(text):
        raise exception.MalformedQueryString("The query string or form has a broken percent escape.")
    return unquote(text, errors="strict")
