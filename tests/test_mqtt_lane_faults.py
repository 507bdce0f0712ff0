"""What may come to the lane from a server, which no real broker can be made to send."""

from __future__ import annotations

import itertools
import struct
import time

import lane_server
import pytest
from driving import confirmed, drive, fates, receive
from lane_server import PINGRESP, PUBACK, PUBCOMP, PUBREC, Connected, MakeClient, Server, await_messages, payloads
from scripted import packet, publish_ids

from edge_runtime.mqtt import lane
from edge_runtime.mqtt.encode import puback_frames
from edge_runtime.records import Message, Outgoing

server, connected = lane_server.server, lane_server.connected


def test_frames_may_come_in_pieces_of_any_size(connected: Connected, server: Server) -> None:
    client = connected(subscriptions=[("in/#", 1)])
    assert server.receive(client)[0] == 0x82
    suback = packet(0x90, b"\x00\x01" + server.properties() + b"\x01")
    raw = (
        packet(0x30, server.body(b"in/a", b"0"))
        + suback
        + packet(0x32, server.body(b"in/b", b"1" * 130, mid=5))
        + PINGRESP
        + puback_frames([40_000])
        + packet(0x31, server.body(b"in/c", b"2"))
    )
    for place in range(1, len(raw)):
        messages = server.pour(raw[:place], client)
        messages += server.pour(raw[place:], client)
        messages += receive(client, 3 - len(messages))
        assert [(m.topic, m.payload, m.qos, m.mid, m.retain) for m in messages] == [
            ("in/a", b"0", 0, 0, False),
            ("in/b", b"1" * 130, 1, 5, False),
            ("in/c", b"2", 0, 0, True),
        ]
    assert client.subscribed
    assert client.counters.disconnects == 0


def test_paho_gets_all_its_packets_of_one_read(connected: Connected, server: Server) -> None:
    client = connected(subscriptions=[("in/#", 1)])
    assert server.receive(client)[0] == 0x82

    server.line.sendall(PINGRESP * 3 + packet(0x90, b"\x00\x01" + server.properties() + b"\x01"))

    drive(client, lambda: client.subscribed)


def test_a_frame_larger_than_the_read_buffer_comes_whole(connected: Connected, server: Server) -> None:
    client = connected()
    large = bytes(range(256)) * 4096
    assert len(large) > 3 * lane.READ_BYTES

    messages = server.pour(
        packet(0x32, server.body(b"in/a", large, mid=1)) + packet(0x30, server.body(b"in/b", b"x")), client
    )
    messages += receive(client, 2 - len(messages))

    assert payloads(messages) == [large, b"x"]


def test_a_frame_larger_than_the_broker_was_told_ends_the_connection_with_the_reason(
    connected: Connected, server: Server
) -> None:
    if not server.five:
        pytest.skip("a broker of MQTT 3.1.1 is told nothing")
    client = connected(settings={"maximum_packet_bytes": 2_000, "reconnect_min_s": 5.0, "reconnect_max_s": 5.0})
    fits = packet(0x30, server.body(b"in/a", bytes(1_980)))
    messages = server.pour(fits + packet(0x30, server.body(b"in/a", bytes(2_000)))[:3], client)

    messages += drive(client, lambda: not client.connected)

    assert payloads(messages) == [bytes(1_980)]
    assert "bytes, 2000 allowed" in client.reason
    assert client.counters.disconnects == 1


def test_a_message_larger_than_taken_which_mqtt_3_1_1_cannot_rule_out_comes_empty_and_is_acknowledged(
    connected: Connected, server: Server
) -> None:
    if server.five:
        pytest.skip("a broker of MQTT 5 is told")
    client = connected(settings={"maximum_packet_bytes": 2_000})
    sizes = [1, 2_000, 1_000_000, 5]
    raw = b"".join(packet(0x32, server.body(b"in/a", bytes(size), mid=mid)) for mid, size in enumerate(sizes, 1))

    messages = server.pour(raw, client)
    messages += receive(client, 4 - len(messages))
    client.acknowledge(messages[0].epoch, [message.mid for message in messages])

    assert [(len(message.payload), message.qos, message.mid) for message in messages] == [
        (1, 1, 1), (0, 1, 2), (0, 1, 3), (5, 1, 4),
    ]  # fmt: skip
    assert server.hear(client, lambda heard: len(heard.control) == 16).control == puback_frames([1, 2, 3, 4])
    assert client.counters.disconnects == 0


@pytest.mark.parametrize("size", [1, 100, 5_000])
def test_what_the_kernel_cannot_show_is_not_left_lying(
    connected: Connected, server: Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A TLS record holds 16 KiB; of one that is larger than the read buffer, OpenSSL keeps the rest to itself."""
    monkeypatch.setattr(lane, "READ_BYTES", 700)
    client = connected()
    count = 40_000 // (size + 10)
    server.line.sendall(b"".join(packet(0x30, server.body(b"a", bytes(size))) for _ in range(count)))

    assert len(await_messages(client, count)) == count


def test_records_of_any_size_and_number_come_whole(connected: Connected, server: Server) -> None:
    client = connected()
    frames = b"".join(packet(0x30, server.body(b"a", b"%d" % n * 50)) for n in range(2_000))
    edges = itertools.accumulate(itertools.cycle([1, 16_384, 30, 10_000, 40_000]), initial=0)
    messages: list[Message] = []
    for start, end in itertools.pairwise(edges):
        messages += server.pour(frames[start:end], client)
        if end >= len(frames):
            break
    messages += await_messages(client, 2_000 - len(messages)) if len(messages) < 2_000 else []

    assert payloads(messages) == [b"%d" % n * 50 for n in range(2_000)]


def test_what_is_not_mqtt_ends_the_connection_after_the_messages_before_it(
    connected: Connected, server: Server
) -> None:
    client = connected(settings={"reconnect_min_s": 5.0, "reconnect_max_s": 5.0})
    server.line.sendall(packet(0x30, server.body(b"a", b"good")) + packet(0x36, server.body(b"a", b"bad", mid=1)))

    messages = drive(client, lambda: not client.connected)

    assert payloads(messages) == [b"good"]
    assert client.reason == "the broker sent what is not MQTT: PUBLISH: QoS 3"


@pytest.mark.parametrize(
    "bad",
    [
        packet(0x90, b""),
        packet(0x90, b"\x00"),
        packet(0x50, b"\x01"),
        packet(0x62, b""),
        packet(0x20, b"\x00"),
        packet(0x34, b"\x00\x09a"),
        packet(0x00, b""),
    ],
    ids=["SUBACK", "half a SUBACK", "PUBREC", "PUBREL", "CONNACK", "QoS 2", "packet type 0"],
)
def test_what_paho_finds_malformed_ends_the_connection_too(connected: Connected, server: Server, bad: bytes) -> None:
    client = connected(settings={"reconnect_min_s": 5.0, "reconnect_max_s": 5.0})
    server.line.sendall(packet(0x30, server.body(b"a", b"good")) + bad)

    messages = drive(client, lambda: not client.connected)

    assert payloads(messages) == [b"good"]
    assert client.reason == "the broker sent what is not MQTT"


def test_qos_2_goes_its_way_through_paho(connected: Connected, server: Server) -> None:
    client = connected()
    server.line.sendall(packet(0x34, server.body(b"a", b"x", mid=9)) + packet(0x30, server.body(b"a", b"y")))
    assert server.receive(client) == (PUBREC, b"\x00\x09")
    server.send_packet(0x62, b"\x00\x09")

    messages = receive(client, 1)
    assert server.receive(client)[0] == PUBCOMP
    assert [(message.payload, message.mid) for message in messages] == [(b"x", 0)]


def test_two_answers_to_one_message_confirm_it_once(connected: Connected, server: Server) -> None:
    client = connected()
    token = client.publish(Outgoing("out/a", b"x", qos=1))
    [(mid, _)] = publish_ids(server.received(client, quiet_s=0.05))
    server.line.sendall(puback_frames([mid, mid, 1, 65_535]))
    assert confirmed(client, 1) == [(token, "")]

    second = client.publish(Outgoing("out/a", b"y", qos=1))
    [(mid, _)] = publish_ids(server.received(client, quiet_s=0.05))
    server.line.sendall(puback_frames([mid]))
    assert confirmed(client, 1) == [(second, "")]
    assert client.counters.disconnects == 0


def test_a_refusal_is_told_with_its_reason_and_an_unknown_one_with_its_number(
    connected: Connected, server: Server
) -> None:
    if not server.five:
        pytest.skip("MQTT 3.1.1 has no reasons")
    client = connected()
    tokens = [client.publish(Outgoing("out/a", b"x", qos=1)) for _ in range(4)]
    mids = [mid for mid, _ in publish_ids(server.received(client, quiet_s=0.05))]
    for mid, reason in zip(mids, [b"\x87", b"\x10", b"\xee", b"\x97\x00"], strict=True):
        server.send_packet(PUBACK, struct.pack("!H", mid) + reason)

    known = dict(confirmed(client, 4))
    assert [known[token] for token in (tokens[0], tokens[1], tokens[3])] == ["Not authorized", "", "Quota exceeded"]
    assert "0xee" in known[tokens[2]].lower() or "238" in known[tokens[2]]


def test_messages_right_behind_the_connack_are_taken_and_can_be_acknowledged(
    make_client: MakeClient, server: Server
) -> None:
    client = make_client(server.url, settings=server.settings)
    server.accept(client)
    connack = packet(0x20, b"\x01\x00" + server.properties())
    server.line.sendall(connack + b"".join(packet(0x32, server.body(b"a", b"%d" % n, mid=n)) for n in (1, 2)))

    messages = receive(client, 2)
    client.acknowledge(messages[0].epoch, [message.mid for message in messages])
    assert client.connected
    assert server.hear(client, lambda heard: len(heard.control) == 8).control == puback_frames([1, 2])


def test_a_broker_that_leaves_with_a_reason_is_quoted(connected: Connected, server: Server) -> None:
    if not server.five:
        pytest.skip("MQTT 3.1.1 has no reasons")
    client = connected(settings={"reconnect_min_s": 5.0, "reconnect_max_s": 5.0})
    server.line.sendall(packet(0x30, server.body(b"a", b"last")) + packet(0xE0, b"\x8b\x05\x1f\x00\x02ok"))

    messages = drive(client, lambda: not client.connected)

    assert payloads(messages) == [b"last"]
    assert client.reason == "the broker disconnected us: Server shutting down"


def test_what_the_broker_said_before_it_closed_is_read_though_nothing_more_can_be_written(
    connected: Connected, server: Server
) -> None:
    """It closes with input unread, which resets the connection, and the client finds that out as it publishes."""
    client = connected(settings={"reconnect_min_s": 5.0, "reconnect_max_s": 5.0})
    tokens = [client.publish(Outgoing("out/a", b"x", qos=1)) for _ in range(2)]
    mids = [mid for mid, _ in publish_ids(server.received(client, quiet_s=0.05))]
    tokens.append(client.publish(Outgoing("out/a", b"never read")))
    client.flush()
    frames = [packet(0x30, server.body(b"a", b"%d" % n)) for n in range(9)]
    server.line.sendall(b"".join(frames) + puback_frames(mids[:1]) + (b"\xe0\x01\x8e" if server.five else b""))
    server.hang_up()
    time.sleep(0.05)

    for _ in range(3):
        tokens.append(client.publish(Outgoing("out/a", bytes(100))))
        client.flush()
    messages = drive(client, lambda: not client.connected)

    assert payloads(messages) == [b"%d" % n for n in range(9)]
    assert client.reason
    if server.five:
        assert client.reason == "the broker disconnected us: Session taken over"
    assert sorted(fates(client)) == [(tokens[0], ""), (tokens[2], "")]
