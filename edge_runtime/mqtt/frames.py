"""MQTT frames of the lane: PUBLISH and PUBACK cut out of the bytes read. Pure: knows no socket.

MQTT 3.1.1, sections 2, 3.3 and 3.4; MQTT 5.0, sections 1.5, 2, 3.3 and 3.4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from typing import Any

import msgspec

from edge_runtime.mqtt.topics import INVALID_TOPIC
from edge_runtime.records import NO_PROPERTIES, Message, Properties

log = logging.getLogger(__name__)
PUBLISH, PUBACK, DUP, QOS_3 = 0x30, 0x40, 0x08, 0x06
PAYLOAD_FORMAT, EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA = 0x01, 0x02, 0x03, 0x08, 0x09
SUBSCRIPTION_ID, TOPIC_ALIAS, USER = 0x0B, 0x23, 0x26
MAX_CACHED_HEADS = 4_096
MAX_CACHED_BYTES = 256
TRUNCATED = "PUBLISH: its fields reach beyond its end"

# First byte of a PUBLISH at QoS 0 or 1 to (qos, retain, dup); None for every other frame.
_FLAGS: list[tuple[int, bool, bool] | None] = [
    (first >> 1 & 3, bool(first & 1), bool(first & DUP)) if first & 0xF4 == PUBLISH else None for first in range(256)
]


class Cut(msgspec.Struct):
    """What was in the bytes of one read, each kind in the order it came.

    answers: (packet id, reason code) of PUBACKs; one id may come twice. control: the frames left to paho, whole.
    """

    messages: list[Message] = []
    answers: list[tuple[int, int]] = []
    control: bytes = b""


class FrameError(ValueError):
    """The peer sent what MQTT rules out: close the connection. before: what was cut ahead of the frame at fault."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.before = Cut()


class FrameCutter:
    """Cuts what one connection reads into frames; keeps the beginning of a frame until its rest has come.

    five: MQTT 5, else 3.1.1. epoch: of the connection, for its messages. max_packet_bytes: the largest frame taken;
    a larger message comes out with an empty payload on MQTT 3.1.1, and is a fault on MQTT 5.
    """

    def __init__(self, *, five: bool, epoch: int, max_packet_bytes: int) -> None:
        self._five = five
        self._epoch = epoch
        self._max_packet_bytes = max_packet_bytes
        self._held = bytearray()
        self._wanted = self._left = 0
        self._large: Message | None = None
        self._heads: dict[bytes, tuple[str, Properties]] = {}

    def cut(self, chunk: bytes, received_ns: int, in_flight: Container[int]) -> Cut:
        """Take aside PUBLISH at QoS 0 and 1, and PUBACK when its packet id is in flight; the rest is control.

        received_ns: when the read of this chunk began. Raises FrameError; nothing can be cut after that.
        """
        found = Cut()
        if self._left:
            chunk = chunk[self._step_over(len(chunk), received_ns, found.messages) :]
        if self._held:
            chunk = self._completed(chunk)
        if not chunk:
            return found
        control: list[bytes] = []
        try:
            at, wanted = self._sort(chunk, received_ns, in_flight, found, control)
        except (FrameError, IndexError) as error:
            found.control = b"".join(control)
            fault = error if isinstance(error, FrameError) else FrameError(TRUNCATED)
            fault.before = found
            raise fault from None
        if control:
            found.control = b"".join(control)
        if at < len(chunk):
            self._held += chunk[at:]
            self._wanted = wanted
        return found

    def _completed(self, chunk: bytes) -> bytes:
        """What is held with the chunk behind it, or b"" while that is less than is wanted."""
        held = self._held
        if len(held) + len(chunk) < self._wanted:
            held += chunk
            return b""
        self._held = bytearray()
        return b"".join((held, chunk))

    def _sort(  # noqa: C901  the hot loop: to call a function for a step would cost more than the step
        self, chunk: bytes, received_ns: int, in_flight: Container[int], found: Cut, control: list[bytes]
    ) -> tuple[int, int]:
        """Sort the whole frames; where the first one that is not whole begins, and how many bytes it has at least.

        Raises FrameError, or IndexError when a PUBLISH at the end of the chunk claims fields beyond it.
        """
        append, heads, five = found.messages.append, self._heads, self._five
        epoch, limit = self._epoch, self._max_packet_bytes
        at, size = 0, len(chunk)
        sure = size if size <= limit else 0  # a frame that ends up to here is whole and not too large
        last = size - 3 if chunk[-1] > 127 else size - 2  # where a frame can begin at the latest to show its length
        while at <= last:
            first, length, start = chunk[at], chunk[at + 1], at + 2
            if length > 127:
                length += (chunk[start] << 7) - 128
                start += 1
                if length > 16_383:
                    length, start = _varint(chunk, at + 1, size)
            end = start + length
            if end > sure:
                if end - at > limit:
                    if wanted := self._too_large(chunk, at, start, end):
                        return at, wanted
                    at += self._step_over(size - at, received_ns, found.messages)
                    continue
                if end > size:
                    return at, end - at
            begin, at = at, end
            if first == PUBLISH:  # a guess, right for nearly all: a head that is known ends nowhere else
                rest = start + 2 + chunk[start + 1]
                if five:
                    rest += 1 + chunk[rest]
                known = heads.get(chunk[start:rest])
                if known is not None and rest <= end:
                    append(Message(known[0], chunk[rest:end], received_ns, 0, 0, False, False, known[1], epoch))
                    continue
            flags = _FLAGS[first]
            if flags is not None:
                append(self._publish(chunk, flags, start, end, received_ns))
            elif self._is_control(first, chunk[start:end], in_flight, found.answers):
                control.append(chunk[begin:end])
        return at, size - at + 1

    def _publish(self, chunk: bytes, flags: tuple[int, bool, bool], start: int, end: int, received_ns: int) -> Message:
        """A PUBLISH at QoS 0 or 1. Raises FrameError, or IndexError when it claims fields beyond the chunk."""
        qos, retain, dup = flags
        topic_end = rest = start + 2 + (chunk[start] << 8 | chunk[start + 1])
        mid = 0
        if qos:
            mid = chunk[rest] << 8 | chunk[rest + 1]
            rest += 2
        if self._five:
            length, rest = chunk[rest], rest + 1
            if length > 127:
                length, rest = _varint(chunk, rest - 1, end)
            rest += length
        if rest > end or (qos and not mid):
            raise FrameError(TRUNCATED if rest > end else "PUBLISH: packet id 0")
        head = chunk[start:topic_end] + chunk[topic_end + 2 : rest] if qos else chunk[start:rest]
        topic, properties = self._heads.get(head) or self._read(head)
        return Message(topic, chunk[rest:end], received_ns, qos, mid, retain, dup, properties, self._epoch)

    def _too_large(self, chunk: bytes, at: int, start: int, end: int) -> int:
        """Read the head of a message that is to be stepped over; how many bytes of it that takes, 0 when it is done.

        A broker of MQTT 3.1.1 cannot be told the limit: unacknowledged, it would come for ever. Raises FrameError.
        """
        size, flags = end - at, _FLAGS[chunk[at]]
        if self._five or flags is None:
            raise FrameError(f"a packet of {size} bytes, {self._max_packet_bytes} allowed")
        qos, retain, dup = flags
        topic_end = start + 2 + int.from_bytes(chunk[start : start + 2], "big")
        rest = topic_end + 2 * qos if start + 2 <= len(chunk) else start + 2
        if len(chunk) < rest <= end:
            return rest - at
        mid = int.from_bytes(chunk[topic_end:rest], "big")
        if rest > end or (qos and not mid):
            raise FrameError(TRUNCATED if rest > end else "PUBLISH: packet id 0")
        topic, _ = self._read(chunk[start:topic_end])
        if self._large is None:
            log.warning("mqtt_message_too_large", extra={"topic": topic[:MAX_CACHED_BYTES], "bytes": size})
        self._large, self._left = Message(topic, b"", 0, qos, mid, retain, dup, epoch=self._epoch), size
        return 0

    def _step_over(self, size: int, received_ns: int, messages: list[Message]) -> int:
        """How many of the next bytes belong to the message that is too large; with its last one it is handed over."""
        taken = min(self._left, size)
        self._left -= taken
        if self._large is not None and not self._left:
            messages.append(msgspec.structs.replace(self._large, received_ns=received_ns))
        return taken

    def _is_control(self, first: int, body: bytes, in_flight: Container[int], answers: list[tuple[int, int]]) -> bool:
        """Whether a frame that is no PUBLISH at QoS 0 or 1 is left to paho; a PUBACK in flight goes to the answers."""
        if first & 0xF0 != PUBACK:
            if first & 0xF6 == PUBLISH | QOS_3:
                raise FrameError("PUBLISH: QoS 3")
            return True
        if first == PUBACK and len(body) == 2 and (mid := body[0] << 8 | body[1]) in in_flight:
            answers.append((mid, 0))
            return False
        mid, code = _puback(first, body, five=self._five)
        if mid not in in_flight:
            return True
        answers.append((mid, code))
        return False

    def _read(self, head: bytes) -> tuple[str, Properties]:
        """Topic and properties of a PUBLISH's variable header without its packet id; remembered, as most come again."""
        topic_end = 2 + int.from_bytes(head[:2], "big")
        properties = NO_PROPERTIES
        if self._five:
            _, begin = _varint(head, topic_end, len(head))
            properties = _properties(head[begin:])
        read = _topic(head[2:topic_end]), properties
        if len(head) <= MAX_CACHED_BYTES:
            if len(self._heads) >= MAX_CACHED_HEADS:
                self._heads.clear()
            self._heads[head] = read
        return read


def _topic(raw: bytes) -> str:
    """A topic that is not UTF-8 is marked as wire.to_message marks it. Raises FrameError."""
    if not raw:
        raise FrameError("PUBLISH: an empty topic")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return INVALID_TOPIC + raw.decode("utf-8", "backslashreplace")


def _varint(raw: bytes, at: int, stop: int) -> tuple[int, int]:
    """A variable byte integer, and where it ends: behind stop when it does not end before."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= stop:
            return 0, stop + 1
        value |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at
    raise FrameError("a length of more than 4 bytes")


def _puback(first: int, body: bytes, *, five: bool) -> tuple[int, int]:
    """Packet id and reason code; of the properties behind them only the length is looked at. Raises FrameError."""
    size = len(body)
    whole = size == 2 or (five and (size == 3 or (size > 3 and sum(_varint(body, 3, size)) == size)))
    mid = int.from_bytes(body[:2], "big")
    if first != PUBACK or not whole or not mid:
        raise FrameError(f"PUBACK: 0x{first:02x} {body[:8].hex()} of {size} bytes is not one")
    return mid, body[2] if size > 2 else 0


def _field(raw: bytes, at: int, size: int) -> bytes:
    if at + size > len(raw):
        raise FrameError("PUBLISH: a property reaches beyond the properties")
    return raw[at : at + size]


def _byte(raw: bytes, at: int) -> tuple[int, int]:
    return _field(raw, at, 1)[0], at + 1


def _seconds(raw: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(_field(raw, at, 4), "big"), at + 4


def _number(raw: bytes, at: int) -> tuple[int, int]:
    value, end = _varint(raw, at, len(raw))
    _field(raw, at, end - at)
    return value, end


def _binary(raw: bytes, at: int) -> tuple[bytes, int]:
    size = int.from_bytes(_field(raw, at, 2), "big")
    return _field(raw, at + 2, size), at + 2 + size


def _text(raw: bytes, at: int) -> tuple[str, int]:
    encoded, end = _binary(raw, at)
    try:
        text = encoded.decode()
    except UnicodeDecodeError:
        raise FrameError(f"PUBLISH: a property is not UTF-8: {encoded[:32]!r}") from None
    if "\x00" in text:
        raise FrameError(f"PUBLISH: a property holds a NUL character: {encoded[:32]!r}")
    return text, end


def _pair(raw: bytes, at: int) -> tuple[tuple[str, str], int]:
    name, at = _text(raw, at)
    value, at = _text(raw, at)
    return (name, value), at


# The properties a PUBLISH to us may have: our name for those that are used, and how they are read.
_READERS: dict[int, tuple[str, Callable[[bytes, int], tuple[Any, int]]]] = {
    PAYLOAD_FORMAT: ("", _byte),
    EXPIRY: ("message_expiry_s", _seconds),
    CONTENT_TYPE: ("content_type", _text),
    RESPONSE_TOPIC: ("response_topic", _text),
    CORRELATION_DATA: ("correlation_data", _binary),
    SUBSCRIPTION_ID: ("", _number),
    USER: ("user", _pair),
}
_REPEATED = (SUBSCRIPTION_ID, USER)


def _properties(raw: bytes) -> Properties:
    """What the daemon uses of a PUBLISH's properties, raw without their length. Raises FrameError."""
    user: list[tuple[str, str]] = []
    single: dict[str, Any] = {}
    seen: set[int] = set()
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind not in _READERS:
            why = "a topic alias, none was offered" if kind == TOPIC_ALIAS else f"unknown property 0x{kind:02x}"
            raise FrameError(f"PUBLISH: {why}")
        if kind in seen and kind not in _REPEATED:
            raise FrameError(f"PUBLISH: property 0x{kind:02x} twice")
        seen.add(kind)
        name, read = _READERS[kind]
        value, at = read(raw, at + 1)
        if kind == USER:
            user.append(value)
        elif name:
            single[name] = value
    return Properties(user=tuple(user), **single)
