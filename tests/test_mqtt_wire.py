from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.records import Outgoing

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
SETTINGS = MqttSettings(url="mqtt://localhost")


@settings(max_examples=50, deadline=None)
@given(
    message=st.builds(
        Outgoing,
        topic=st.just("plant/ü"),
        payload=st.binary(max_size=300),
        qos=st.just(1),
        content_type=text,
        message_expiry_s=st.none() | st.integers(0, 2**32 - 1),
        user=st.lists(st.tuples(text, text), max_size=40).map(tuple),
        response_topic=text,
        correlation_data=st.binary(max_size=30),
    )
)
def test_a_packet_is_never_larger_than_it_is_said_to_be_and_carries_every_property(message: Outgoing) -> None:
    account = wire.read_account(SETTINGS, "client")
    client = wire.new_client(SETTINGS, account, wire.LastError(), make=paho.Client)
    wire.publish(client, message, message.message_expiry_s, SETTINGS)
    (queued,) = client._out_messages.values()
    packed = queued.properties.pack() if queued.properties else b"\x00"
    unpacked = Properties(PacketTypes.PUBLISH)
    unpacked.unpack(packed)
    found = wire.to_properties(unpacked)

    size = 1 + 4 + 2 + len(queued.topic.encode()) + 2 + len(packed) + len(queued.payload)
    assert size <= wire.packet_bytes(message)
    assert found.user == message.user
    assert (found.content_type, found.message_expiry_s) == (message.content_type, message.message_expiry_s)
    assert (found.response_topic, found.correlation_data) == (message.response_topic, message.correlation_data)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, ""), (0x10, ""), (0x87, "Not authorized"), (0x97, "Quota exceeded"), (0xFE, "reason code 0xfe")],
)
def test_a_refusal_is_named_and_a_success_is_not(code: int, reason: str) -> None:
    assert wire.refusal(code) == reason


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="TCP_QUICKACK is Linux's")
def test_quick_ack_sets_the_option_the_kernel_has_cleared() -> None:
    option = socket.IPPROTO_TCP, socket.TCP_QUICKACK
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        quick_ack = wire.quick_ack(sock)
        for _ in range(2):
            sock.setsockopt(*option, 0)
            assert not sock.getsockopt(*option)
            quick_ack()
            assert sock.getsockopt(*option)


def test_quick_ack_leaves_a_unix_socket_alone() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        wire.quick_ack(ours)()
