"""A load generator: one process, one thread, raw sockets, two MQTT 3.1.1 connections, one clock.

Every payload carries a number that the subject copies to its result, so each result is matched to the moment its
message was written, and all of them are checked afterwards: each number once, with the label that belongs to it.
"""

from __future__ import annotations

import ctypes
import gc
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from benchmarks.workloads import DIGITS, FIRST_NUMBER, PREFIX, Payload

HOST = "127.0.0.1"
CONNECT_S = 10.0
STALL_S = 5.0
DRAIN_S = 10.0
READ_BYTES = 262_144
LATE_NS = 1_000_000
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 0x10, 2, 3, 4, 0x82, 9, b"\xe0\x00"
PUBACK_BYTES = 4
PR_SET_TIMERSLACK = 29

Counter = Callable[[], tuple[float, ...]]


class Run(msgspec.Struct):
    """One run: every message and every result of it.

    first: number of the first message. stamps_ns: per message, when it was written, or due if it was written late.
    arrivals: per result, when it was read, and its payload. begin_ns, end_ns: what is measured lies between; earlier
    is warm-up. late: messages written more than LATE_NS after they were due. own_cpu_s: of the generator in that time.
    costs: what the counters rose by in that time.
    """

    first: int
    stamps_ns: list[int]
    arrivals: list[tuple[int, bytes]]
    begin_ns: int = 0
    end_ns: int = 0
    late: int = 0
    own_cpu_s: float = 0.0
    costs: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


class _Answer(msgspec.Struct):
    """What both subjects' results have in common; the daemon says which messages its window spans."""

    seq: int | tuple[int, int]
    label: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What became of a run's messages. missing: never answered. repeated: answered again. wrong: with a label or a
    number that does not belong to them. latencies_ns: of the measured messages, in the order they were sent.
    """

    missing: int
    repeated: int
    wrong: int
    latencies_ns: list[int]

    @property
    def faults(self) -> int:
        return self.missing + self.repeated + self.wrong


def judge(run: Run, payloads: Sequence[Payload], *, labelled: bool = True) -> Verdict:
    """Hold every result against the message it answers. labelled: results carry a label."""
    answered: dict[int, int] = {}
    repeated = wrong = 0
    for at_ns, body in run.arrivals:
        answer = msgspec.json.decode(body, type=_Answer)
        first, last = answer.seq if isinstance(answer.seq, tuple) else (answer.seq, answer.seq)
        number = first - FIRST_NUMBER
        known = first == last and run.first <= number < run.first + len(run.stamps_ns)
        if not known or (labelled and answer.label != payloads[number % len(payloads)].label):
            wrong += 1
        elif number in answered:
            repeated += 1
        else:
            answered[number] = at_ns
    sent = list(enumerate(run.stamps_ns, run.first))
    latencies = [
        answered[number] - stamp for number, stamp in sent if number in answered and run.begin_ns <= stamp < run.end_ns
    ]
    return Verdict(sum(number not in answered for number, _ in sent), repeated, wrong, latencies)


class Generator:
    """Publishes to one topic and reads the results from another, at one QoS."""

    def __init__(self, port: int, payloads: Sequence[Payload], *, topic: str, results: str, qos: int) -> None:
        self._qos = qos
        self._frames = [publish_frame(topic, payload.body, qos) for payload in payloads]
        bodies_at = [len(frame) - len(p.body) for frame, p in zip(self._frames, payloads, strict=True)]
        self._number_ats = [at + len(PREFIX) for at in bodies_at]
        self._mid_ats = [at - 2 for at in bodies_at]
        self._next = 0
        self._published = 0
        self._puback_bytes = 0
        self._stamps_ns: list[int] = []
        self._arrivals: list[tuple[int, bytes]] = []
        self._rest = b""
        self._publisher = _connect(port)
        self._subscriber = _connect(port)
        self._subscriber.sendall(bytes([SUBSCRIBE]) + _sized(struct.pack("!H", 1) + _text(results) + bytes([qos])))
        _expect(self._subscriber, SUBACK)

    def close(self) -> None:
        for sock in (self._publisher, self._subscriber):
            sock.sendall(DISCONNECT)
            sock.close()

    def closed_loop(self, outstanding: int, *, warm_up_s: float, seconds: float, counter: Counter) -> Run:
        """Keep so many messages unanswered: the highest rate without a growing backlog."""
        with self._running(counter) as (run, measure):
            begin_ns = time.monotonic_ns() + int(warm_up_s * 1e9)
            end_ns = begin_ns + int(seconds * 1e9)
            self._send(outstanding)
            answered = outstanding
            while answered and time.monotonic_ns() < begin_ns:
                self._send(answered := self._answers())
            measure()
            while answered and time.monotonic_ns() < end_ns:
                self._send(answered := self._answers())
            measure()
        return run

    def open_loop(self, rate_hz: float, *, warm_up_s: float, seconds: float, counter: Counter) -> Run:
        """One message every 1 / rate_hz on an absolute schedule, whatever comes back."""
        warm_up = round(rate_hz * warm_up_s)
        with self._running(counter) as (run, measure):
            begin_ns = time.monotonic_ns() + 1_000_000
            for i in range(warm_up + round(rate_hz * seconds)):
                due_ns = begin_ns + int(i * 1e9 / rate_hz)
                if i == warm_up:
                    measure()
                self._receive(0.0)
                while (left_ns := due_ns - time.monotonic_ns()) > 0:
                    self._receive(left_ns / 1e9)
                self._send(1)
                if self._stamps_ns[-1] - due_ns > LATE_NS:
                    self._stamps_ns[-1] = max(due_ns, run.begin_ns)
                    run.late += i >= warm_up
            measure()
        return run

    @contextmanager
    def _running(self, counter: Counter) -> Iterator[tuple[Run, Callable[[], None]]]:
        """A run, and a call that begins and then ends what is measured of it; waits for the last results."""
        run = Run(self._next, [], [])
        self._stamps_ns, self._arrivals = run.stamps_ns, run.arrivals

        def measure() -> None:
            now_ns, own_s, costs = time.monotonic_ns(), time.process_time(), counter()
            if not run.begin_ns:
                run.begin_ns, run.own_cpu_s, run.costs = now_ns, own_s, costs
            else:
                run.end_ns, run.own_cpu_s = now_ns, own_s - run.own_cpu_s
                run.costs = tuple(after - before for before, after in zip(run.costs, costs, strict=True))

        with _undisturbed():
            yield run, measure
            deadline_ns = time.monotonic_ns() + int(DRAIN_S * 1e9)
            while self._open() and time.monotonic_ns() < deadline_ns:
                self._receive(0.1)

    def _open(self) -> bool:
        unacknowledged = self._qos > 0 and self._puback_bytes < PUBACK_BYTES * self._published
        return unacknowledged or len(self._arrivals) < len(self._stamps_ns)

    def _send(self, count: int) -> None:
        """Write so many messages at once."""
        if not count:
            return
        parts = []
        for number in range(self._next, self._next + count):
            which = number % len(self._frames)
            frame, at = self._frames[which], self._number_ats[which]
            frame[at : at + DIGITS] = b"%d" % (FIRST_NUMBER + number)
            if self._qos:
                mid_at = self._mid_ats[which]
                frame[mid_at : mid_at + 2] = (number % 65_535 + 1).to_bytes(2, "big")
            parts.append(bytes(frame))
        self._next += count
        self._published += count
        self._stamps_ns += [time.monotonic_ns()] * count
        self._publisher.sendall(b"".join(parts))

    def _answers(self) -> int:
        """Wait for results; how many came, 0 when there was none for STALL_S."""
        deadline_ns = time.monotonic_ns() + int(STALL_S * 1e9)
        while not (count := self._receive(STALL_S)) and time.monotonic_ns() < deadline_ns:
            pass
        return count

    def _receive(self, timeout_s: float) -> int:
        """Read what has come, waiting at most so long for it; the number of results."""
        readable = select.select([self._subscriber, self._publisher], [], [], timeout_s)[0]
        if self._publisher in readable:
            self._puback_bytes += len(_read(self._publisher))
        if self._subscriber not in readable:
            return 0
        received = _read(self._subscriber)
        now_ns = time.monotonic_ns()
        before = len(self._arrivals)
        pubacks: list[bytes] = []
        self._rest = cut(self._rest + received if self._rest else received, now_ns, self._arrivals, pubacks)
        if pubacks:
            self._subscriber.sendall(b"".join(pubacks))
        return len(self._arrivals) - before


def cut(data: bytes, now_ns: int, arrivals: list[tuple[int, bytes]], pubacks: list[bytes]) -> bytes:
    """Take the whole PUBLISH packets out of data; what is left over. Other packets are passed over."""
    at, size = 0, len(data)
    while at + 2 <= size:
        length, shift, body = 0, 0, at + 1
        while True:
            if body == size:
                return data[at:]
            byte = data[body]
            body += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        end = body + length
        if end > size:
            break
        if data[at] >> 4 == PUBLISH:
            start = body + 2 + (data[body] << 8 | data[body + 1])
            if data[at] & 0x06:
                pubacks.append(b"\x40\x02" + data[start : start + 2])
                start += 2
            arrivals.append((now_ns, data[start:end]))
        at = end
    return data[at:]


def publish_frame(topic: str, body: bytes, qos: int) -> bytearray:
    """A whole PUBLISH packet (MQTT 3.1.1, section 3.3), with room for a packet id at QoS 1."""
    variable = _text(topic) + (b"\x00\x00" if qos else b"")
    return bytearray(bytes([PUBLISH << 4 | qos << 1]) + _sized(variable + body))


def _sized(body: bytes) -> bytes:
    """The remaining length, then the rest of a packet (section 2.2.3)."""
    left, length = len(body), bytearray()
    while True:
        left, digit = left >> 7, left & 0x7F
        length.append(digit | (0x80 if left else 0))
        if not left:
            return bytes(length) + body


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("!H", len(raw)) + raw


def _connect(port: int) -> socket.socket:
    """An open MQTT connection: clean session, no keepalive, an id the broker chooses."""
    sock = socket.create_connection((HOST, port), CONNECT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(bytes([CONNECT]) + _sized(_text("MQTT") + bytes([4, 2, 0, 0]) + _text("")))
    _expect(sock, CONNACK)
    return sock


def _expect(sock: socket.socket, packet_type: int) -> None:
    """Read one short packet of this type whose last byte says success."""
    packet = b""
    while len(packet) < 2 or len(packet) < 2 + packet[1]:
        packet += sock.recv(1) or _closed()
    if packet[0] >> 4 != packet_type or packet[-1] >= 0x80 or (packet_type == CONNACK and packet[-1]):
        raise ConnectionError(f"the broker answered {packet.hex()}, wanted packet type {packet_type}")


def _read(sock: socket.socket) -> bytes:
    return sock.recv(READ_BYTES) or _closed()


def _closed() -> bytes:
    raise ConnectionError("the broker closed the generator's connection")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector's pauses, and with sleeps as exact as the kernel can make them."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
