"""Between our records and paho's: everything that is written in paho's words."""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import msgspec
from paho.mqtt import client as paho
from paho.mqtt.client import DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.mqtt.settings import (
    MAX_PACKET_BYTES,
    Endpoint,
    MqttSettings,
    parse_url,
    read_password,
    tls_context,
)
from edge_runtime.mqtt.topics import INVALID_TOPIC, Subscription, check_topic
from edge_runtime.mqtt.transport import PAYLOAD_INVALID, TOO_LARGE, TOPIC_INVALID
from edge_runtime.records import NO_PROPERTIES, Message, Outgoing, Properties

FRAME_BYTES = 5
PROPERTY_BYTES = 16
CONTENT_BYTES, USER_BYTES = 3, 5
MAX_IN_FLIGHT = 65_535
FAILURE = 0x80
NO_SUBSCRIBERS, TAKEN_OVER, TOO_LARGE_CODE = 0x10, 0x8E, 0x95

# mosquitto answers a message above its message_size_limit with 0x95, which is no code of a PUBACK.
_REFUSALS = {0x90: TOPIC_INVALID, 0x99: PAYLOAD_INVALID, TOO_LARGE_CODE: f"{TOO_LARGE}: the broker's word"}

PahoClient = TypeVar("PahoClient", bound=paho.Client)

_SSL_SOURCE = re.compile(r" \(_ssl\.c:\d+\)$")


class LastError(logging.Handler):
    """Keeps the error paho only writes to its log, such as a TLS alert, so that the operator can be told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.args[0] if isinstance(record.args, tuple) and record.args else None
        self.text = error_text(error) if isinstance(error, OSError) else record.getMessage()


def error_text(error: OSError) -> str:
    """One line without Python's decoration: "Connection refused", "certificate verify failed: ..."."""
    verify = getattr(error, "verify_message", "")
    text = f"certificate verify failed: {verify}" if verify else error.strerror or str(error) or type(error).__name__
    return _SSL_SOURCE.sub("", text)


class Account(NamedTuple):
    """Who we are to the broker: what the settings' files hold, read once."""

    client_id: str
    password: str | None
    tls: ssl.SSLContext | None


def read_account(settings: MqttSettings, client_id: str) -> Account:
    """Raises ConfigError for files that cannot be used."""
    return Account(
        client_id,
        read_password(settings.password_file) if settings.password_file else None,
        tls_context(settings) if parse_url(settings.url).tls else None,
    )


def new_client(
    settings: MqttSettings, account: Account, errors: LastError, *, make: Callable[..., PahoClient]
) -> PahoClient:
    """A client of paho's, or of a class under it, that never connects, retries or acknowledges by itself."""
    endpoint = parse_url(settings.url)
    five = settings.protocol == "5"
    client = make(
        CallbackAPIVersion.VERSION2,
        client_id=account.client_id,
        clean_session=None if five else settings.session_expiry_s == 0,
        protocol=paho.MQTTv5 if five else paho.MQTTv311,
        transport="websockets" if endpoint.path else "tcp",
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = settings.connect_timeout_s
    client.max_inflight_messages = settings.max_inflight
    if settings.username:
        client.username_pw_set(settings.username, account.password)
    if account.tls is not None:
        client.tls_set_context(account.tls)
    if endpoint.path:
        client.ws_set_options(path=endpoint.path)
    client.enable_logger(_error_log(errors))
    _set_address(client, settings, endpoint)
    return client


def _error_log(errors: LastError) -> logging.Logger:
    logger = logging.Logger("paho", level=logging.ERROR)  # noqa: LOG001 - private to one client, not in the tree
    logger.addHandler(errors)
    return logger


def _properties(packet_type: int) -> PahoProperties:
    return PahoProperties(packet_type)  # type: ignore[no-untyped-call]


def _set_address(client: paho.Client, settings: MqttSettings, endpoint: Endpoint) -> None:
    if settings.protocol == "3.1.1":
        client.connect_async(endpoint.host, endpoint.port, settings.keepalive_s)
        return
    properties = _properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.ReceiveMaximum = settings.receive_maximum
    properties.MaximumPacketSize = settings.maximum_packet_bytes
    client.connect_async(endpoint.host, endpoint.port, settings.keepalive_s, clean_start=False, properties=properties)


def set_will(client: paho.Client, will: Outgoing, settings: MqttSettings) -> None:
    properties = None
    if settings.protocol == "5":
        properties = _properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = settings.will_delay_s
        properties.ContentType = will.content_type
    client.will_set(will.topic, will.payload, will.qos, will.retain, properties)


def subscribe(
    client: paho.Client, subscriptions: list[Subscription], settings: MqttSettings, *, retained: bool
) -> int | None:
    """Send one SUBSCRIBE; its packet id. On MQTT 5 the broker is told whether to send retained messages for it."""
    if settings.protocol == "3.1.1":
        _, mid = client.subscribe(subscriptions)
    else:
        when = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
        _, mid = client.subscribe([(name, SubscribeOptions(qos, retainHandling=when)) for name, qos in subscriptions])
    return mid


def publish(
    client: paho.Client, message: Outgoing, expiry_s: int | None, settings: MqttSettings
) -> paho.MQTTMessageInfo:
    """Queue one PUBLISH in paho. Raises ValueError when its topic is not one."""
    check_topic(message.topic)
    properties = None
    if settings.protocol == "5":
        properties = _publish_properties(message, expiry_s)
    return client.publish(message.topic, message.payload, message.qos, message.retain, properties)


class _Packed(PahoProperties):
    """Properties packed once: all that paho does with them is to pack them, which takes it longer than to send them."""

    _packed: bytes

    def __init__(self, properties: PahoProperties) -> None:
        super().__init__(properties.packetType)  # type: ignore[no-untyped-call]
        packed = properties.pack()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_packed", packed)  # paho's own __setattr__ takes MQTT's names only

    def pack(self) -> bytes:
        return self._packed


def _publish_properties(message: Outgoing, expiry_s: int | None) -> PahoProperties | None:
    if message.user or message.response_topic or message.correlation_data:
        properties = _common_properties(message.content_type, expiry_s)
        properties.UserProperty = list(message.user)
        if message.response_topic:
            properties.ResponseTopic = message.response_topic
        if message.correlation_data:
            properties.CorrelationData = message.correlation_data
        return properties
    if message.content_type or expiry_s is not None:
        return _packed_properties(message.content_type, expiry_s)
    return None


@lru_cache(maxsize=256)
def _packed_properties(content_type: str, expiry_s: int | None) -> PahoProperties:
    return _Packed(_common_properties(content_type, expiry_s))


def _common_properties(content_type: str, expiry_s: int | None) -> PahoProperties:
    properties = _properties(PacketTypes.PUBLISH)
    if content_type:
        properties.ContentType = content_type
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


def packet_bytes(message: Outgoing) -> int:
    """The size of a PUBLISH, to a few bytes, never too small."""
    size = FRAME_BYTES + PROPERTY_BYTES + len(message.topic.encode()) + len(message.content_type.encode())
    for name, value in message.user:
        size += USER_BYTES + len(name.encode()) + len(value.encode())
    for content in (message.response_topic.encode(), message.correlation_data):
        size += CONTENT_BYTES + len(content) if content else 0
    return size + len(message.payload)


def refusal(code: int) -> str:
    """Why the broker refused a message, by its PUBACK's reason code; "" when it took it."""
    return "" if code < FAILURE else _refusal(code)


@lru_cache(maxsize=256)
def _refusal(code: int) -> str:
    if code in _REFUSALS:
        return _REFUSALS[code]
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except (KeyError, ValueError):
        return f"reason code 0x{code:02x}"


def too_large(size: int, limit: int) -> str:
    return f"{TOO_LARGE}: {size} bytes, {limit} allowed"


def taken(client: paho.Client, message: paho.MQTTMessage, *, received_ns: int, epoch: int) -> Message:
    """Our record of a message paho hands over.

    We subscribe at QoS 0 and 1. One of QoS 2, from an old session, is completed here and keeps no packet id.
    """
    found = to_message(message, received_ns=received_ns, epoch=epoch)
    if found.qos < 2:
        return found
    client.ack(found.mid, 2)
    return msgspec.structs.replace(found, mid=0)


def to_message(message: paho.MQTTMessage, *, received_ns: int, epoch: int) -> Message:
    """Our record of a PUBLISH.

    A topic that is not UTF-8 is written with backslash escapes behind a NUL, which no real topic can hold and no
    filter matches (topics.match), so that the message can be dead-lettered like any other.
    """
    try:
        topic = message.topic
    except UnicodeDecodeError as error:
        topic = INVALID_TOPIC + error.object.decode("utf-8", "backslashreplace")
    return Message(
        topic=topic,
        payload=bytes(message.payload),
        received_ns=received_ns,
        qos=message.qos,
        mid=message.mid,
        retain=bool(message.retain),
        dup=bool(message.dup),
        properties=to_properties(message.properties),
        epoch=epoch,
    )


def to_properties(found: PahoProperties | None) -> Properties:
    if found is None:
        return NO_PROPERTIES
    return Properties(
        content_type=getattr(found, "ContentType", ""),
        user=tuple(getattr(found, "UserProperty", ())),
        message_expiry_s=getattr(found, "MessageExpiryInterval", None),
        response_topic=getattr(found, "ResponseTopic", ""),
        correlation_data=bytes(getattr(found, "CorrelationData", b"")),
    )


class Limits(msgspec.Struct, frozen=True):
    """What a broker's CONNACK allows; what it left out is as the specification says (MQTT 5.0, section 3.2.2.3).

    receive_maximum: QoS 1 messages we may have unacknowledged with it. shared_subscriptions, topic_alias_maximum:
    told for the operator, the daemon uses neither.
    """

    session_expiry_s: int
    keepalive_s: int
    receive_maximum: int = MAX_IN_FLIGHT
    maximum_packet_bytes: int = MAX_PACKET_BYTES
    maximum_qos: int = 2
    retain: bool = True
    wildcards: bool = True
    shared_subscriptions: bool = True
    topic_alias_maximum: int = 0


def limits(found: PahoProperties | None, settings: MqttSettings) -> Limits:
    """The limits in a CONNACK's properties; None, as in every CONNACK of MQTT 3.1.1, stands for none of them."""
    return Limits(
        session_expiry_s=getattr(found, "SessionExpiryInterval", settings.session_expiry_s),
        keepalive_s=getattr(found, "ServerKeepAlive", settings.keepalive_s),
        receive_maximum=getattr(found, "ReceiveMaximum", MAX_IN_FLIGHT),
        maximum_packet_bytes=getattr(found, "MaximumPacketSize", MAX_PACKET_BYTES),
        maximum_qos=getattr(found, "MaximumQoS", 2),
        retain=bool(getattr(found, "RetainAvailable", True)),
        wildcards=bool(getattr(found, "WildcardSubscriptionAvailable", True)),
        shared_subscriptions=bool(getattr(found, "SharedSubscriptionAvailable", True)),
        topic_alias_maximum=getattr(found, "TopicAliasMaximum", 0),
    )


def allowed(limits: Limits, settings: MqttSettings) -> tuple[int, int]:
    """How many messages may be in flight, and the bytes of the largest packet, by the broker's word and ours."""
    window = min(limits.receive_maximum, settings.max_inflight)
    return window, min(limits.maximum_packet_bytes, settings.maximum_packet_bytes)


def farewell(flags: DisconnectFlags, code: ReasonCode, keepalive_s: int) -> str:
    """Why paho says the connection ended, for the operator; "" when it says no more than that."""
    if flags.is_disconnect_packet_from_server:
        return f"the broker disconnected us: {code}"
    if str(code) == "Keep alive timeout":
        return f"no sign of life within {keepalive_s} s"
    return "the broker sent what is not MQTT" if str(code) == "Protocol error" else ""


def granted(code: ReasonCode) -> int | None:
    """The QoS a SUBACK code grants, or None for a refusal."""
    return None if code.is_failure else int(code.value)


def _is_tcp(sock: socket.socket) -> bool:
    """A unix socket has no TCP options."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def no_delay(sock: socket.socket) -> None:
    """Small packets go out at once."""
    if _is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quick_ack(sock: socket.socket) -> Callable[[], None]:
    """What to call after every read, so that what was read is acknowledged at once.

    Else a broker without nodelay holds the next packet back for 40 ms. Linux clears the option by itself; elsewhere it
    does not exist, and nothing is to be done.
    """
    if hasattr(socket, "TCP_QUICKACK") and _is_tcp(sock):
        return partial(sock.setsockopt, socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return _nothing


def _nothing() -> None: ...
