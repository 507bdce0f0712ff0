"""MQTT frames of the lane: PUBLISH and PUBACK, encoded. Pure: knows no socket.

MQTT 3.1.1, sections 2, 3.3 and 3.4; MQTT 5.0, sections 1.5, 2, 3.3 and 3.4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from edge_runtime.mqtt.frames import (
    CONTENT_TYPE,
    CORRELATION_DATA,
    DUP,
    EXPIRY,
    MAX_CACHED_HEADS,
    PUBACK,
    PUBLISH,
    RESPONSE_TOPIC,
    USER,
)
from edge_runtime.mqtt.settings import MAX_PACKET_BYTES
from edge_runtime.mqtt.topics import check_topic
from edge_runtime.records import Outgoing

MAX_FIELD_BYTES = 65_535

Head = tuple[int, bytes, bytes, int]  # first byte, topic, properties, bytes of all between the length and the payload

_start = struct.Struct("!BBB").pack


def publish_frame(message: Outgoing, mid: int, dup: bool, expiry_s: int | None, five: bool) -> bytes:
    """A PUBLISH at QoS 0 or 1. Raises ValueError for what MQTT cannot carry.

    mid: 1 to 65535 at QoS 1; not written at QoS 0. expiry_s: what is left of the message's expiry.
    """
    qos, payload = message.qos, message.payload
    if message.user or message.response_topic or message.correlation_data:
        head = _build_head(message, expiry_s, five=five)
    else:
        head = _head(message.topic, qos, message.retain, message.content_type, expiry_s, five)
    first, topic, properties, length = head
    length += len(payload)
    if dup:
        first |= DUP
    start = _frame_start(first, length)
    if qos:
        return b"".join((start, topic, mid.to_bytes(2, "big"), properties, payload))
    return b"".join((start, topic, properties, payload))


def publish_frames(messages: Sequence[Outgoing], mids: Sequence[int], *, limit: int, five: bool) -> bytes:
    """A PUBLISH for each of several messages; what is the same in the message before is not built again.

    mids: a packet id for each, or none at QoS 0. limit: bytes of the largest packet allowed. Raises ValueError when a
    message is larger, is not of that QoS, has an expiry or other properties of its own, or is what MQTT cannot carry.
    """
    frames: list[bytes] = []
    append = frames.append
    qos = 1 if mids else 0
    topic = content_type = retain = None
    size = -1
    for number, message in enumerate(messages):
        payload = message.payload
        if (
            message.qos != qos
            or message.message_expiry_s is not None
            or message.user
            or message.response_topic
            or message.correlation_data
        ):
            raise ValueError("this message goes by itself")
        if message.topic is not topic or message.content_type is not content_type or message.retain is not retain:
            topic, content_type, retain, size = message.topic, message.content_type, message.retain, -1
            first, encoded, properties, rest = _head(topic, qos, retain, content_type, None, five)
        if len(payload) != size:
            size = len(payload)
            start = _frame_start(first, rest + size)
            if len(start) + rest + size > limit:
                raise ValueError(f"a packet of {len(start) + rest + size} bytes, {limit} allowed")
            start += encoded if qos else encoded + properties
        append(start)
        if qos:
            append(mids[number].to_bytes(2, "big"))
            append(properties)
        append(payload)
    return b"".join(frames)


@lru_cache(maxsize=MAX_CACHED_HEADS)
def _head(  # noqa: PLR0917  keywords would double what a look-up costs
    topic: str, qos: int, retain: bool, content_type: str, expiry_s: int | None, five: bool
) -> Head:
    return _build_head(Outgoing(topic, b"", qos, retain, content_type), expiry_s, five=five)


def _build_head(message: Outgoing, expiry_s: int | None, *, five: bool) -> Head:
    if message.qos not in (0, 1):
        raise ValueError(f"{message.topic}: frames are built at QoS 0 or 1, not {message.qos}")
    check_topic(message.topic)
    topic = _counted(message.topic.encode())
    properties = b""
    if five:
        properties = _encode_properties(message, expiry_s)
        properties = _encode_varint(len(properties)) + properties
    length = len(topic) + len(properties) + (2 if message.qos else 0)
    return PUBLISH | message.qos << 1 | message.retain, topic, properties, length


def _encode_properties(message: Outgoing, expiry_s: int | None) -> bytes:
    parts = [b"" if expiry_s is None else bytes((EXPIRY,)) + expiry_s.to_bytes(4, "big")]
    fields = (
        (CONTENT_TYPE, message.content_type.encode()),
        (RESPONSE_TOPIC, message.response_topic.encode()),
        (CORRELATION_DATA, message.correlation_data),
    )
    parts += [bytes((kind,)) + _counted(content) for kind, content in fields if content]
    parts += [bytes((USER,)) + _counted(name.encode()) + _counted(value.encode()) for name, value in message.user]
    return b"".join(parts)


def _counted(content: bytes) -> bytes:
    if len(content) > MAX_FIELD_BYTES:
        raise ValueError(f"a field of {len(content)} bytes; MQTT allows {MAX_FIELD_BYTES}")
    return len(content).to_bytes(2, "big") + content


def _frame_start(first: int, length: int) -> bytes:
    if 127 < length < 16_384:
        return _start(first, length & 127 | 128, length >> 7)
    if length > MAX_PACKET_BYTES:
        raise ValueError(f"a packet of {length} bytes; MQTT allows {MAX_PACKET_BYTES}")
    return bytes((first,)) + _encode_varint(length)


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def puback_frames(mids: Sequence[int]) -> bytes:
    """One PUBACK without a reason for each packet id, in their order."""
    return b"".join([(PUBACK << 24 | 2 << 16 | mid).to_bytes(4, "big") for mid in mids])
