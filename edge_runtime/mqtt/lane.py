"""The frame lane: PUBLISH and PUBACK go past paho, one read and one write for all of them; the rest stays paho's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from paho.mqtt import client as paho

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.encode import puback_frames, publish_frame, publish_frames
from edge_runtime.mqtt.frames import FrameCutter, FrameError
from edge_runtime.mqtt.lane_socket import LaneClient, LaneSocket, on_register_write
from edge_runtime.mqtt.link import Link
from edge_runtime.mqtt.sending import Entry, SendQueue
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.transport import MAX_MESSAGES, UNPUBLISHABLE, Counters, Kind
from edge_runtime.records import Message, Outgoing

READ_BYTES = 262_144
PINGRESP = b"\xd0\x00"
FIRST_MID, LAST_MID = 1_024, 65_535


class LaneTraffic:
    """traffic.Traffic says what its methods promise.

    A read lands in one buffer that is kept: recv, asked for so much, would get and return memory from the system for
    every read, which costs more than the read.
    """

    kind: Kind = "lane"

    def __init__(
        self, settings: MqttSettings, account: wire.Account, *, link: Link, queue: SendQueue, counters: Counters
    ) -> None:
        self.more = False
        self._settings, self._account, self._counters = settings, account, counters
        self._link, self._queue = link, queue
        self._five = settings.protocol == "5"
        self._max_unwritten_bytes = settings.max_unwritten_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._paho: paho.Client
        self._lane: LaneSocket
        self._cutter: FrameCutter
        self._quick_ack: Callable[[], None]
        self._ends: deque[tuple[int, Entry]] = deque()
        self._held: list[Message] = []
        self._completed: list[Message] = []
        self._heard = False
        self._epoch = self._read_ns = 0
        self._mid = LAST_MID
        self._window = self._packet_limit = 0

    def new_paho(self) -> paho.Client:
        client = wire.new_client(self._settings, self._account, self._link.errors, make=LaneClient)
        client.flush_timeout_s = self._settings.flush_timeout_s
        client.on_message = self._on_message
        client.on_socket_register_write = on_register_write
        return client

    def opened(self, epoch: int) -> None:
        self._paho, self._epoch = self._link.client, epoch
        lane = self._paho.socket()
        assert isinstance(lane, LaneSocket)  # noqa: S101  LaneClient has made it
        self._lane = lane
        self._cutter = FrameCutter(five=self._five, epoch=epoch, max_packet_bytes=self._settings.maximum_packet_bytes)
        self._quick_ack = wire.quick_ack(self._link.line)
        self._window = 0
        self._ends.clear()

    def accepted(self, limits: wire.Limits, *, session_present: bool) -> None:
        """To a session the broker still holds, what was in flight goes again, under the old ids, if there is room."""
        window, self._packet_limit = wire.allowed(limits, self._settings)
        self._window = min(window, LAST_MID - FIRST_MID + 1)
        if not session_present or len(self._queue.in_flight) > self._window:
            self._queue.send_anew()
        self._queue.again.extend(self._queue.in_flight)
        self._send_again()

    def lost(self) -> None:
        """A frame that was cut off, in or out, is forgotten; the messages it belongs to come, or go, again."""
        self._note_written()
        if self._ends and self._ends[0][1].ahead:
            self._part_first_end()
            self._note_written()
        self._ends.clear()
        self._heard = self.more = False
        self._queue.disconnected()

    def read(self, now_ns: int) -> list[Message]:
        self._read_ns = now_ns
        lane = self._lane
        if not self._held:
            count = lane.read_into(self._buffer)
            if lane.write_needs_input:
                lane.write()
            if count:
                self._heard = True
                self._quick_ack()
                self._held = self._take(bytes(self._buffer[:count]))
            elif lane.ended:
                self._let_paho_end()
        messages, self._held = self._held, []
        if len(messages) > MAX_MESSAGES:
            messages, self._held = messages[:MAX_MESSAGES], messages[MAX_MESSAGES:]
        self.more = lane.hides_input or bool(self._held)
        return messages

    def rest(self) -> list[Message]:
        held, self._held = self._held, []
        return held

    def keep_alive(self) -> None:
        """What the lane has read is a sign of life that paho has not seen: it is told by an answer to its ping."""
        if self._heard:
            self._heard = False
            self._lane.control += PINGRESP
            self._let_paho_read()
        self._paho.loop_misc()

    def wants_write(self) -> bool:
        lane = self._lane
        waits = lane.sent < lane.queued and not (lane.mute or lane.write_needs_input)
        return waits or lane.called or lane.read_needs_room

    def write(self) -> None:
        lane = self._lane
        if lane.called:
            lane.called = False
            self._paho.loop_write()
        lane.write()
        self._note_written()
        if lane.ended:
            self._let_paho_end()

    def flush(self) -> None:
        self.write()
        if self._queue.waits:
            self.pump()

    def acknowledge(self, mids: Sequence[int]) -> None:
        self._lane.put(puback_frames([mid for mid in mids if mid]))

    def publish(self, message: Outgoing) -> int:
        lane, queue, qos = self._lane, self._queue, message.qos
        if lane.queued - lane.sent < self._max_unwritten_bytes and (
            not qos or (qos == 1 and len(queue.in_flight) < self._window)
        ):
            entry = queue.pass_by(message)
            if entry is not None:
                self._send(entry, None)
                return entry.token
        token = queue.add(message, connected=True)
        self.pump()
        return token

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        if len(messages) > 1:
            messages = messages[self._send_together(messages) :]
        for message in messages:
            self.publish(message)
        return self._queue.last_token

    def _send_together(self, messages: Sequence[Outgoing]) -> int:
        """Send the first messages, as many as the window has room for, past the empty queue; how many.

        That is none when one is not like the others, or there is no room for all of their bytes: each is to go by
        itself then.
        """
        lane, queue, qos = self._lane, self._queue, messages[0].qos
        if qos:
            messages = messages[: self._window - len(queue.in_flight)]
        if queue.waits or not messages:
            return 0
        mids = self._next_mids(len(messages)) if qos else ()
        try:
            frames = publish_frames(messages, mids, limit=self._packet_limit, five=self._five)
        except ValueError:
            return 0
        if lane.queued - lane.sent + len(frames) > self._max_unwritten_bytes:
            return 0
        lane.put(frames)
        entry = queue.pass_in_flight(messages, mids, self._read_ns) if qos else queue.pass_unwritten(messages)
        self._ends.append((lane.queued, entry))
        return len(messages)

    def _send_again(self) -> None:
        """What is in flight since the connection before, under the old packet ids, as far as there is room."""
        lane, queue = self._lane, self._queue
        while queue.again and lane.queued - lane.sent < self._max_unwritten_bytes:
            mid = queue.again.popleft()
            entry = queue.in_flight.get(mid)
            if entry is None:
                continue
            frame = publish_frame(entry.message, mid=mid, dup=True, expiry_s=queue.expiry_s(entry), five=self._five)
            if len(frame) > self._packet_limit:
                queue.answered([(mid, wire.too_large(len(frame), self._packet_limit))])
            else:
                lane.put(frame)
                queue.sent(mid, entry, self._read_ns)
                self._ends.append((lane.queued, entry))

    def pump(self) -> None:
        lane, queue = self._lane, self._queue
        if queue.again:
            self._send_again()
        while queue.waits and lane.queued - lane.sent < self._max_unwritten_bytes:
            entry = queue.take(self._window)
            if entry is None:
                return
            self._send(entry, queue.expiry_s(entry))

    def _send(self, entry: Entry, expiry_s: int | None) -> None:
        message, mid = entry.message, self._next_mid() if entry.message.qos else 0
        try:
            frame = publish_frame(message, mid, False, expiry_s, self._five)
        except ValueError as error:
            self._queue.fail(entry, f"{UNPUBLISHABLE}: {error}")
            return
        if len(frame) > self._packet_limit:
            self._queue.fail(entry, wire.too_large(len(frame), self._packet_limit))
            return
        lane = self._lane
        lane.put(frame)
        if mid:
            self._queue.sent(mid, entry, self._read_ns)
        else:
            self._queue.unwritten.append(entry)
        self._ends.append((lane.queued, entry))

    def _next_mids(self, count: int) -> Sequence[int]:
        mids = range(self._mid + 1, self._mid + 1 + count)
        if mids[-1] > LAST_MID or not self._queue.in_flight.keys().isdisjoint(mids):
            return [self._next_mid() for _ in range(count)]
        self._mid = mids[-1]
        return mids

    def _next_mid(self) -> int:
        """The next packet id that is free; paho's own stay below FIRST_MID, as it takes two a connection at most."""
        mid = self._mid
        while True:
            mid = mid + 1 if mid < LAST_MID else FIRST_MID
            if mid not in self._queue.in_flight:
                self._mid = mid
                return mid

    def _note_written(self) -> None:
        lane = self._lane
        if lane.sent == lane.queued and self._window and not self._queue.again:
            self._ends.clear()
            self._queue.all_left()
            return
        while self._ends and self._ends[0][0] <= lane.sent:
            _, entry = self._ends.popleft()
            if entry.message.qos:
                self._queue.reached(entry)
            else:
                self._queue.left()

    def _part_first_end(self) -> None:
        """Of messages of QoS 0 that were put together some may have left: from now on each is by itself."""
        end, _ = self._ends.popleft()
        for entry in reversed(self._queue.part()):
            self._ends.appendleft((end, entry))
            end -= len(publish_frame(entry.message, mid=0, dup=False, expiry_s=None, five=self._five))

    def _take(self, chunk: bytes) -> list[Message]:
        try:
            cut = self._cutter.cut(chunk, self._read_ns, self._queue.in_flight)
        except FrameError as error:
            self._link.problem = f"the broker sent what is not MQTT: {error}"
            cut = error.before
            self._lane.end()
        if cut.answers:
            self._queue.answered([(mid, wire.refusal(code) if code else "") for mid, code in cut.answers])
            codes = [code for _, code in cut.answers if code]
            self._counters.no_subscribers += codes.count(wire.NO_SUBSCRIBERS)
        if not cut.control and not self._lane.ended:
            return cut.messages
        self._lane.control += cut.control
        return cut.messages + self._let_paho_read()

    def _let_paho_read(self) -> list[Message]:
        """Give paho what is its own, the end of the connection included; messages of QoS 2 come back."""
        while self._lane.control and self._link.open:
            self._paho.loop_read()
        self._let_paho_end()
        completed, self._completed = self._completed, []
        return completed

    def _let_paho_end(self) -> None:
        while self._lane.ended and self._link.open:
            self._paho.loop_read()

    def _on_message(self, client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        self._completed.append(wire.taken(client, message, received_ns=self._read_ns, epoch=self._epoch))
