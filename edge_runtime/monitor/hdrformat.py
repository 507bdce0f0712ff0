"""HdrHistogram's V2 encoding, as `hdrlog` writes and `hdrread` reads it."""

from __future__ import annotations

import struct

WORD_SIZE_BITS = 0xF0
"""Of a cookie; readers of V2 ignore them."""
WORD_SIZE_WRITTEN = 0x10

COOKIE = 0x1C849303
COMPRESSED_COOKIE = 0x1C849304

COMPRESSED_HEADER = struct.Struct(">II")
"""COMPRESSED_COOKIE, bytes that follow."""
PAYLOAD_HEADER = struct.Struct(">IIIIQQd")
"""COOKIE, bytes of counts that follow, offset, significant digits, lowest and highest value, conversion ratio."""
