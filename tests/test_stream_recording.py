from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import RecordingError
from edge_runtime.records import Message, Properties
from edge_runtime.stream import recording
from edge_runtime.stream.recording import Recording, RecordingHeader, RecordingWriter

HEADER = RecordingHeader("8f3a", 1_700_000_000_000_000_000)
START_NS = 5_000_000_000
PROPERTIES = Properties("application/json", (("seq", "7"), ("seq", "")), 60, "answer/here", b"\x00\xff")
MESSAGES = [
    Message("plant/a/vib", b"\x01\x02", 0, qos=1),
    Message("plant/b/vib", b"", 1_000, retain=True),
    Message("plant/a/vib", b"x" * 300, 2_000_001, qos=1, dup=True, properties=PROPERTIES),
    Message("\x00not utf-8 \\xff", b"\n", 3_000_000_000),
    Message("plant/b/vib", b"last", 3_000_000_001, properties=Properties(message_expiry_s=0)),
]


def write(path: Path, messages: list[Message] = MESSAGES) -> Path:
    with closing(RecordingWriter(path, HEADER, start_ns=START_NS)) as writer:
        for message in messages:
            writer.write(msgspec.structs.replace(message, received_ns=message.received_ns + START_NS))
    assert writer.bytes == path.stat().st_size
    assert writer.messages == len(messages)
    return path


def write_bytes(path: Path, body: bytes) -> Path:
    path.write_bytes(body)
    return path


def frame(body: bytes) -> bytes:
    return struct.pack(">II", len(body), zlib.crc32(body)) + body


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    return write(tmp_path / "whole.rec").read_bytes()


def test_what_was_written_is_read_again_as_often_as_asked(tmp_path: Path) -> None:
    found = Recording(write(tmp_path / "a.rec"))

    assert found.header == HEADER
    assert list(found) == list(found) == MESSAGES
    assert (found.unread_bytes, found.problem) == (0, "")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.builds(
    Message,
    topic=text,
    payload=st.binary(max_size=200),
    received_ns=st.integers(0, 2**62),
    qos=st.integers(0, 1),
    retain=st.booleans(),
    dup=st.booleans(),
    properties=st.builds(
        Properties,
        content_type=text,
        user=st.lists(st.tuples(text, text), max_size=3).map(tuple),
        message_expiry_s=st.none() | st.integers(0, 2**32 - 1),
        response_topic=text,
        correlation_data=st.binary(max_size=9),
    ),
)


@given(sent=st.lists(messages, max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_messages_come_back_equal(tmp_path_factory: pytest.TempPathFactory, sent: list[Message]) -> None:
    found = Recording(write(tmp_path_factory.mktemp("any") / "a.rec", sent))

    assert list(found) == sent


def test_a_file_cut_off_anywhere_gives_the_messages_before_the_cut(tmp_path: Path, whole: bytes) -> None:
    path, counts = tmp_path / "cut.rec", []
    first = len(whole) - sum(len(part) for part in frames(whole))
    for size in range(first, len(whole) + 1):
        found = Recording(write_bytes(path, whole[:size]))
        read = list(found)
        counts.append(len(read))
        assert read == MESSAGES[: len(read)]
        assert bool(found.unread_bytes) == ("cut off" in found.problem)
        assert found.unread_bytes == size - first - sum(len(part) for part in frames(whole)[: len(read)])

    assert counts == sorted(counts)
    assert set(counts) == set(range(len(MESSAGES) + 1))


def frames(whole: bytes) -> list[bytes]:
    """The message frames of a recording."""
    found, at = [], 8
    while at < len(whole):
        length = struct.unpack_from(">I", whole, at)[0] + 8
        found.append(whole[at : at + length])
        at += length
    return found[1:]


def test_a_file_cut_off_inside_its_header_has_no_messages_and_says_so(tmp_path: Path, whole: bytes) -> None:
    first = len(whole) - sum(len(part) for part in frames(whole))
    for size in range(first):
        with pytest.raises(RecordingError, match=r"is no recording|no header that can be read"):
            Recording(write_bytes(tmp_path / "cut.rec", whole[:size]))


def test_a_flipped_byte_costs_its_frame_and_those_after_it_and_nothing_else(tmp_path: Path, whole: bytes) -> None:
    path, reached = tmp_path / "flipped.rec", set()
    for at in range(len(whole)):
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found = Recording(path)
            except RecordingError:
                continue
            read = list(found)
            reached.add(len(read))
            assert read == MESSAGES[: len(read)]
            assert found.problem
            assert found.unread_bytes >= len(whole) - at

    assert reached == set(range(len(MESSAGES)))


def test_zeros_after_the_last_frame_are_no_messages(tmp_path: Path, whole: bytes) -> None:
    found = Recording(write_bytes(tmp_path / "zeros.rec", whole + bytes(4096)))

    assert list(found) == MESSAGES
    assert found.unread_bytes == 4096
    assert "0 bytes" in found.problem


@pytest.mark.parametrize("length", [2**32 - 1, recording.MAX_FRAME_BYTES])
def test_a_lying_length_is_not_believed(tmp_path: Path, whole: bytes, length: int) -> None:
    found = Recording(write_bytes(tmp_path / "lie.rec", whole + struct.pack(">II", length, 0) + b"abc"))
    tracemalloc.start()
    try:
        read = list(found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert read == MESSAGES
    assert found.unread_bytes == 11
    assert peak < 1_000_000


NO_MESSAGES = {
    "a map": msgspec.msgpack.encode({"t": 1}),
    "a topic number nobody has": msgspec.msgpack.encode([0, 99, 0, b"", None]),
    "a negative topic number": msgspec.msgpack.encode([0, -1, 0, b"", None]),
    "QoS 2": msgspec.msgpack.encode([0, "a", 8, b"", None]),
    "text that is not UTF-8": b"\x95\x00\xa1\xff\x00\xc4\x00\xc0",
    "a lying array": b"\x95\x00\xa1a\x00\xc4\x00\x95\xa0\xdd\xff\xff\xff\xff",
    "a deep nest": b"\x96\x00\xa1a\x00\xc4\x00\xc0" + b"\x91" * 100_000 + b"\x01",
    "too short": msgspec.msgpack.encode([0, "a"]),
}


@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=list(NO_MESSAGES))
def test_a_whole_frame_that_holds_no_message_ends_the_reading(tmp_path: Path, whole: bytes, body: bytes) -> None:
    found = Recording(write_bytes(tmp_path / "odd.rec", whole + frame(body) + frames(whole)[0]))

    assert list(found) == MESSAGES
    assert "holds no message" in found.problem


@given(bodies=st.lists(st.binary(max_size=60), max_size=4))
@settings(max_examples=150, deadline=None)
def test_frames_of_any_bytes_are_never_an_exception(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]
) -> None:
    head = b"EDGEREC\x01" + frame(msgspec.msgpack.encode(HEADER))
    path = write_bytes(tmp_path_factory.mktemp("any") / "a.rec", head + b"".join(map(frame, bodies)))

    assert len(list(Recording(path))) <= len(bodies)


def test_elements_of_a_later_minor_version_are_passed_over(tmp_path: Path, whole: bytes) -> None:
    body = msgspec.msgpack.encode([4_000_000_000, 0, 1, b"new", None, {"more": 1}])

    assert list(Recording(write_bytes(tmp_path / "more.rec", whole + frame(body))))[-1].topic == "plant/a/vib"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no recording"),
        (b"SQLite format 3\x00", "is no recording: it begins with b'SQLite f', wanted b'EDGEREC'"),
        (b"EDGEREC\x02" + bytes(20), "format 2; this version reads format 1"),
        (b"EDGEREC\x01" + frame(b"\x80"), "no header that can be read"),
    ],
)
def test_what_is_no_recording_is_refused_with_what_was_found(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(RecordingError) as caught:
        Recording(write_bytes(tmp_path / "a.rec", content))

    assert says in str(caught.value)
    assert str(tmp_path / "a.rec") in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.rec", "No such file"), (tmp_path, "is no regular file")):
        with pytest.raises(RecordingError, match=why):
            Recording(path)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.rec")
    with pytest.raises(RecordingError, match="is no regular file"):
        Recording(tmp_path / "pipe.rec")


def test_a_recording_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = write(tmp_path / "a.rec")
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec")
    before = path.read_bytes()
    with pytest.raises(RecordingError, match="exists already"):
        RecordingWriter(path, HEADER, start_ns=0)

    assert path.read_bytes() == before


def test_a_topic_is_written_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", [Message("plant/pump-1/vibration", b"12", n) for n in range(100)])

    assert path.read_bytes().count(b"plant/pump-1/vibration") == 1
    assert path.stat().st_size < 100 * (8 + 10) + 100


def test_topics_without_end_get_no_numbers_and_still_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_TOPICS", 2)
    sent = [Message(f"t/{n % 5}", bytes([n]), n) for n in range(20)]
    path = write(tmp_path / "a.rec", sent)

    assert list(Recording(path)) == sent
    assert [path.read_bytes().count(f"t/{n}".encode()) for n in range(5)] == [1, 1, 4, 4, 4]


def test_what_was_flushed_can_be_read_while_the_file_is_written(tmp_path: Path) -> None:
    with closing(RecordingWriter(tmp_path / "a.rec", HEADER, start_ns=0)) as writer:
        writer.write(MESSAGES[0])
        writer.flush()
        writer.write(MESSAGES[1])

        assert list(Recording(tmp_path / "a.rec")) == MESSAGES[:1]


def test_a_message_too_large_for_a_frame_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_FRAME_BYTES", 1000)
    with closing(RecordingWriter(tmp_path / "a.rec", HEADER, start_ns=0)) as writer:
        with pytest.raises(RecordingError, match="at most 1,000"):
            writer.write(Message("a", bytes(1000), 0))
        writer.write(Message("b", b"", 0))

    assert [message.topic for message in Recording(tmp_path / "a.rec")] == ["b"]


FULL = """
import sys
from pathlib import Path
from edge_runtime.errors import RecordingError
from edge_runtime.records import Message
from edge_runtime.stream.recording import RecordingHeader, RecordingWriter
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
writer = RecordingWriter(Path(sys.argv[1]), RecordingHeader("a", 0), start_ns=0)
try:
    for n in range(1000):
        writer.write(Message("a", bytes(1000), n))
        writer.flush()
except RecordingError as error:
    print(error)
    writer.close()
"""


def test_a_file_that_takes_no_more_is_one_error_and_readable_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "full.rec"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    found = Recording(path)

    assert "cannot be written any more: File too large; what came before can be read" in done.stdout
    assert [message.received_ns for message in found] == list(range(19))
    assert "cut off" in found.problem


def test_the_reader_in_the_documentation_reads_the_same(tmp_path: Path, whole: bytes) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "recordings.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    header, *read = namespace["messages"](write_bytes(tmp_path / "a.rec", whole + b"torn"))

    assert header == {"id": HEADER.id, "start_unix_ns": HEADER.start_unix_ns}
    assert [(t, topic, payload) for t, topic, _, payload, _ in read] == [
        (m.received_ns, m.topic, m.payload) for m in MESSAGES
    ]
    assert [flags for _, _, flags, _, _ in read] == [1, 2, 5, 0, 0]
    assert read[2][4] == ["application/json", [["seq", "7"], ["seq", ""]], 60, "answer/here", b"\x00\xff"]
    assert f"{recording.MAX_FRAME_BYTES:,}" in page
