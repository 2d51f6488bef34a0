# SPDX-License-Identifier: GPL-2.0-or-later
"""Binary data that somebody pasted as text: hexadecimal, with 0x before it or not, or base64; with white space."""

from __future__ import annotations

import base64
import binascii
import re

from veil.formats.errors import FormatError

__all__ = ["from_text"]

_HEX = re.compile(rb"(?:0[xX])?[0-9a-fA-F]+")
#: Both alphabets of RFC 4648.
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_BLANK = b" \t\r\n\v\f"


def from_text(data: bytes) -> bytes:
    """The bytes that a text stands for; bytes that are no such text are returned as they are.

    Raises FormatError for text that begins as one of these and cannot be one. Digits that can be both are hexadecimal.
    """
    text = data.translate(None, _BLANK)
    if _HEX.fullmatch(text):
        digits = text[2:] if text[:2] in (b"0x", b"0X") else text
        if len(digits) % 2:
            raise FormatError(f"{len(digits)} hexadecimal digits, an odd number: one is missing or too many")
        return bytes.fromhex(digits.decode())
    if _BASE64.fullmatch(text):
        plain = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        if len(plain) % 4 == 1 or (text.endswith(b"=") and len(text) % 4):
            raise FormatError(
                f"{len(text)} characters of base64, which is not a length that base64 can have: it is cut short"
            )
        try:
            return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except binascii.Error as error:
            raise FormatError("the base64 is not valid") from error
    return data
