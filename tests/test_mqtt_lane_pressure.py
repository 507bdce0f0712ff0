"""What becomes of what the lane sends: a peer that stops reading, connections that break in the middle of a frame."""

from __future__ import annotations

import struct
import time
from contextlib import suppress

import lane_server
import pytest
from driving import confirmed, drive, receive
from lane_server import PING, PINGRESP, Connected, MakeClient, Publisher, Server, numbers, payloads
from scripted import MAXIMUM_PACKET_SIZE, STEP_S, packet

from edge_runtime.mqtt.encode import puback_frames
from edge_runtime.mqtt.frames import FrameCutter
from edge_runtime.records import Message, Outgoing

server, connected = lane_server.server, lane_server.connected


def test_a_peer_that_stops_reading_is_still_read_and_answered_in_order(connected: Connected, server: Server) -> None:
    client = connected(settings={"max_unwritten_bytes": 200_000, "max_outgoing": 10_000})
    out = Publisher(client)
    out.publish_until(lambda: out.open >= 20)
    assert client.wants_write()
    assert client.written < out.tokens[-1]

    server.line.sendall(b"".join(packet(0x32, server.body(b"in/a", b"%d" % n, mid=n + 1)) for n in range(50)))
    messages = receive(client, 50)
    before = time.monotonic()
    client.acknowledge(messages[0].epoch, [message.mid for message in messages])
    client.flush()
    assert time.monotonic() - before < 2.0

    acks = puback_frames(range(1, 51))
    heard = server.hear(client, lambda heard: heard.control == acks and len(heard.messages) == len(out.tokens))
    out.collect()
    assert payloads(messages) == [b"%d" % n for n in range(50)]
    assert numbers(heard.messages) == list(range(len(out.tokens)))
    assert out.numbers(reason="") == list(range(len(out.tokens)))
    assert client.written == out.tokens[-1]


def test_an_acknowledgement_does_not_wait_behind_the_queue(connected: Connected, server: Server) -> None:
    """Only what is already behind the socket goes before it, not the thousands that wait for room there."""
    client = connected(settings={"max_unwritten_bytes": 100_000, "max_outgoing": 10_000})
    out = Publisher(client)
    out.publish_until(lambda: out.open >= 100)
    server.line.sendall(packet(0x32, server.body(b"in/a", b"x", mid=3)))
    [message] = receive(client, 1)
    client.acknowledge(message.epoch, [message.mid])

    heard = server.hear(client, lambda heard: heard.control == puback_frames([3]))

    assert len(heard.messages) < len(out.tokens) - 50


def test_pings_go_on_while_a_peer_does_not_read(connected: Connected, server: Server) -> None:
    """The ping waits behind what was written before it; the connection stays, as long as the broker gives an answer."""
    client = connected(settings={"max_unwritten_bytes": 100_000, "max_outgoing": 10_000, "keepalive_s": 1})
    out = Publisher(client)
    out.publish_until(lambda: out.open >= 20)
    time_to_ping = time.monotonic() + 1.1
    while time.monotonic() < time_to_ping:
        client.poll(STEP_S)
    server.line.sendall(PINGRESP)

    heard = server.hear(client, lambda heard: PING in heard.control and len(heard.messages) == len(out.tokens))

    assert numbers(heard.messages) == list(range(len(out.tokens)))
    assert client.counters.disconnects == 0


def test_what_does_not_fit_behind_a_peer_that_stops_reading_is_refused_with_the_reason(
    connected: Connected, server: Server
) -> None:
    client = connected(settings={"max_unwritten_bytes": 50_000, "max_outgoing": 5})
    out = Publisher(client)
    out.publish_until(lambda: "outgoing queue full" in out.known.values())
    refused = set(out.numbers(reason="outgoing queue full"))
    kept = [number for number in range(len(out.tokens)) if number not in refused]

    heard = server.hear(client, lambda heard: len(heard.messages) == len(kept))
    assert numbers(heard.messages) == kept
    out.publish()
    assert numbers(server.hear(client, lambda heard: len(heard.messages) == 1).messages) == [len(out.tokens) - 1]
    out.collect()
    assert set(out.numbers(reason="")) == {*kept, len(out.tokens) - 1}
    assert out.open == 0


def test_stopping_before_a_peer_that_does_not_read_takes_no_longer_than_allowed(
    connected: Connected, server: Server
) -> None:
    client = connected(settings={"max_unwritten_bytes": 100_000, "max_outgoing": 100})
    out = Publisher(client)
    out.publish_until(lambda: out.open >= 20)

    before = time.monotonic()
    client.stop(0.5)

    assert time.monotonic() - before < 3.0
    out.collect()
    assert out.open == 0
    assert set(out.known.values()) == {"", "stopped"}


# Across connections.


def test_half_a_frame_is_forgotten_with_its_connection(connected: Connected, server: Server) -> None:
    client = connected()
    frame = packet(0x32, server.body(b"in/a", b"x" * 300, mid=5))
    old: list[Message] = []
    for place in (1, 2, 3, 8, len(frame) - 1):
        old += server.pour(frame + frame[:place], client)
        old += receive(client, 1 - len(old))
        server.welcome(client, session_present=True)
        server.line.sendall(frame)
        [new] = receive(client, 1)
        assert [new.payload] == payloads(old) == [b"x" * 300]
        assert new.epoch > old[0].epoch
        old.clear()


def test_everything_is_written_by_one_flush_when_there_is_room(connected: Connected, server: Server) -> None:
    client = connected()
    out = Publisher(client, size=10_000)
    for _ in range(20):
        out.publish()

    client.flush()

    assert not client.wants_write()
    assert client.written == out.tokens[-1]
    out.collect()
    assert out.open == 0


def test_what_the_peer_has_read_is_not_sent_twice(connected: Connected, server: Server) -> None:
    client = connected(settings={"max_unwritten_bytes": 4_000_000, "max_outgoing": 10_000})
    out = Publisher(client, size=10_000)
    out.publish_until(lambda: out.open >= 300)
    cutter = FrameCutter(five=server.five, epoch=0, max_packet_bytes=1 << 24)
    first: list[Message] = []
    server.line.settimeout(0.1)
    with suppress(TimeoutError):
        while True:
            first += cutter.cut(server.line.recv(1 << 20), 0, ()).messages

    server.welcome(client)
    again = server.hear(client, lambda heard: numbers(heard.messages)[-1:] == [len(out.tokens) - 1])

    assert len(first) > 20
    assert not set(numbers(first)) & set(numbers(again.messages))


def test_a_frame_cut_off_on_its_way_out_goes_again_whole(connected: Connected, server: Server) -> None:
    client = connected(settings={"max_unwritten_bytes": 100_000, "max_outgoing": 10_000})
    out = Publisher(client)
    out.publish_until(lambda: out.open >= 20)
    first = server.hear(client, lambda heard: len(heard.messages) >= 3)
    out.collect()
    written = out.numbers(reason="")

    server.welcome(client)
    again = server.hear(client, lambda heard: numbers(heard.messages)[-1:] == [len(out.tokens) - 1])
    out.collect()

    assert numbers(first.messages) == list(range(len(first.messages)))
    resumed_at = numbers(again.messages)[0]
    assert resumed_at == len(written)
    assert numbers(again.messages) == list(range(resumed_at, len(out.tokens)))
    assert out.open == 0
    assert set(out.known.values()) == {""}


def test_what_is_in_flight_goes_again_in_order_and_new_messages_behind_it(connected: Connected, server: Server) -> None:
    client = connected()
    out = Publisher(client, size=10)
    for _ in range(6):
        out.publish(qos=1)
    first = server.hear(client, lambda heard: len(heard.messages) == 6).messages
    server.line.sendall(puback_frames([first[4].mid, first[1].mid]))
    confirmed_numbers: list[int] = []
    while len(confirmed_numbers) < 2:
        client.poll(STEP_S)
        out.collect()
        confirmed_numbers = out.numbers(reason="")

    server.hang_up()
    drive(client, lambda: not client.connected)
    out.publish(qos=1)
    server.welcome(client, session_present=True)
    out.publish(qos=1)
    again = server.hear(client, lambda heard: len(heard.messages) == 6).messages

    assert [(n, m.dup, m.mid) for n, m in zip(numbers(again), again, strict=True)][:4] == [
        (number, True, first[number].mid) for number in (0, 2, 3, 5)
    ]
    assert [(n, m.dup) for n, m in zip(numbers(again), again, strict=True)][4:] == [(6, False), (7, False)]
    assert not {m.mid for m in again[4:]} & {m.mid for m in again[:4]}
    server.line.sendall(puback_frames([message.mid for message in again]))
    drive(client, lambda: out.collect() or out.open == 0)
    assert set(out.known.values()) == {""}


def test_what_is_in_flight_and_too_large_for_the_new_connection_is_refused(
    connected: Connected, server: Server
) -> None:
    if not server.five:
        pytest.skip("MQTT 3.1.1 states no limits")
    client = connected()
    out = Publisher(client, size=5_000)
    out.publish(qos=1)
    server.hear(client, lambda heard: len(heard.messages) == 1)

    server.welcome(client, session_present=True, properties=bytes([MAXIMUM_PACKET_SIZE, 0, 0, 4, 0]))
    small = client.publish(Outgoing("out/a", struct.pack("!I", 99), qos=1))

    heard = server.hear(client, lambda heard: len(heard.messages) == 1)
    assert numbers(heard.messages) == [99]
    server.line.sendall(puback_frames([heard.messages[0].mid]))
    known = dict(confirmed(client, 2))
    assert known[small] == ""
    assert known[out.tokens[0]].startswith("packet too large")


def test_packet_ids_wrap_around_and_never_meet_those_of_paho_or_of_a_message_in_flight(
    make_client: MakeClient,
) -> None:
    server = Server("3.1.1")
    client = make_client(server.url, settings={**server.settings, "max_inflight": 5_000}, subscriptions=[("in/#", 1)])
    server.welcome(client)
    assert server.receive(client) == (0x82, b"\x00\x01\x00\x04in/#\x01")
    stuck = client.publish(Outgoing("out/a", b"stuck", qos=1))
    [first] = server.hear(client, lambda heard: len(heard.messages) == 1).messages
    seen: set[int] = set()
    known: dict[int, str] = {}
    total = 0
    while total < 70_000:
        for _ in range(2_000):
            client.publish(Outgoing("out/a", b"x", qos=1))
        heard = server.hear(client, lambda heard: len(heard.messages) == 2_000).messages
        seen.update(message.mid for message in heard)
        total += len({message.mid for message in heard})
        server.line.sendall(puback_frames([message.mid for message in heard]))
        known.update(confirmed(client, 2_000))

    assert first.mid not in seen
    assert stuck not in known
    assert set(known.values()) == {""}
    assert len(seen) < total == 70_000
    assert min(seen) > 1_000
    server.line.sendall(puback_frames([first.mid]))
    assert confirmed(client, 1) == [(stuck, "")]
    client.unsubscribe()
    assert server.receive(client)[1][:2] == b"\x00\x02"
    server.close()


def test_an_acknowledgement_never_crosses_over_to_the_next_connection(connected: Connected, server: Server) -> None:
    client = connected()
    server.line.sendall(packet(0x32, server.body(b"in/a", b"x", mid=5)))
    [message] = receive(client, 1)
    client.acknowledge(message.epoch, [message.mid])

    server.hang_up()
    server.welcome(client, session_present=True)
    client.acknowledge(message.epoch, [message.mid])
    client.publish(Outgoing("out/a", struct.pack("!I", 1)))

    heard = server.hear(client, lambda heard: len(heard.messages) == 1)
    assert heard.control == b""
