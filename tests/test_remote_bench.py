"""Measuring for others, piece by piece; the whole of it is in integration/test_remote_bench_broker.py."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import hostile
import msgspec
import numpy as np
import psutil
import pytest
from broker import Broker, until
from bundles import means_model, slow_model
from click.testing import CliRunner
from test_loop import Bench

from edge_runtime import remote_bench as room
from edge_runtime.config import Config, parse
from edge_runtime.errors import ConfigError, ExportError
from edge_runtime.lanes import Connection
from edge_runtime.loop import Loop
from edge_runtime.model import child, compare, comparison
from edge_runtime.model.compare import Answer, Compared, Graph, Order, RemoteBenchSettings, Request
from edge_runtime.model.paired import MIN_ROUNDS, WARM_UP, Rounds, time_in_turn
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import Routes, Tree
from edge_runtime.records import Message, Properties
from edge_runtime.remote_bench import RemoteBench
from edge_runtime.settings import read_toml
from edge_runtime.testing import MemoryClient
from export import remote
from export.artifact import Artifact
from export.cli import main
from export.measure import Latency
from export.remote import Remote, exposed

MEANS = means_model(length=4, channels=2)
ONES = np.ones((1, 4, 2), np.float32)
REPLIES = "edge/v1/n/reply/"
ROUNDS = '{"rounds":{"baseline_ns":[2],"candidate_ns":[1]}}'


def request(
    candidate: bytes = MEANS, *, baseline: bytes = MEANS, window: bytes = ONES.tobytes(), seed: int = 0, **session: str
) -> bytes:
    graphs = Graph(baseline), Graph(candidate, session)
    return msgspec.msgpack.encode(Request(1, *graphs, "x", ONES.shape, window, seed=seed, rounds=MIN_ROUNDS))


@contextmanager
def file_with(raw: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.flush()
        yield file


def compared(raw: bytes, **limits: float) -> Compared:
    with file_with(raw) as file:
        return compare.compare(file, RemoteBenchSettings(**limits))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy with other tests, a child that gives way would not get far."""
    monkeypatch.setattr(child, "_give_way", lambda pid: None)


# What is timed.


def test_both_are_run_equally_often_in_an_order_that_the_seed_decides() -> None:
    def order(seed: int) -> str:
        ran: list[str] = []
        rounds = time_in_turn(lambda: ran.append("b"), lambda: ran.append("c"), seed=seed, most=30)
        assert len(rounds.baseline_ns) == len(rounds.candidate_ns) == 30
        return "".join(ran[2 * WARM_UP :])

    assert order(1) == order(1) != order(2)
    assert order(1).count("b") == order(1).count("c") == 30


def test_two_models_that_are_one_take_the_same_time(hurried: None) -> None:
    found = compared(request())

    assert found.outcome == "measured"
    assert found.rounds is not None
    assert len(found.rounds.baseline_ns) == len(found.rounds.candidate_ns) == 3 * MIN_ROUNDS
    assert 0.2 < np.median(found.rounds.baseline_ns) / np.median(found.rounds.candidate_ns) < 5


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no request: "),
        (b"\x00", "no request: "),
        (b"\x91" * 2000, "no request: "),
        (b"\x81\xa1\xff\x01", "no request: 'utf-8' codec"),
        (request()[:-1], "no request: "),
        (request(window=b"1234"), "no request: a window of 4 bytes, wanted 32 of float32 for the shape (1, 4, 2)"),
        (request(MEANS[:-9]), "the candidate: model.onnx: malformed"),
        (request(baseline=MEANS[:-9]), "the baseline: model.onnx: malformed"),
        (request(baseline=hostile.with_external_data("/etc/passwd")), "the baseline: 1 of 3 tensors have their data"),
        (request(**{"session.optimized_model_filepath": "x"}), "the candidate: session entries not allowed"),
    ],
)
def test_what_is_no_request_or_not_allowed_is_refused(hurried: None, raw: bytes, words: str) -> None:
    found = compared(raw)

    assert found.outcome == "refused"
    assert found.reason.startswith(words)


def test_a_model_that_is_too_slow_or_too_large_fails_by_the_limits_name(hurried: None) -> None:
    slow = slow_model(length=4, channels=2)
    endless = request(slow, window=np.full((1, 4, 2), 1e12, np.float32).tobytes())
    by_clock, by_cpu = compared(endless, timeout_s=3), compared(endless, cpu_s=1)
    bomb = compared(request(hostile.memory_bomb(at_load=False)), memory_mb=600)

    assert by_clock.reason.endswith(": not finished after remote_bench.timeout_s = 3 s")
    assert by_cpu.reason.endswith(": used more than remote_bench.cpu_s = 1 s of processor time")
    assert bomb.reason.startswith("running the candidate: needs more memory than remote_bench.memory_mb = 600 allows")
    assert {by_clock.outcome, by_cpu.outcome, bomb.outcome} == {"failed"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import signal; signal.raise_signal(signal.SIGSEGV)", "loading the candidate: crashed with SIGSEGV"),
        (
            "import signal; signal.raise_signal(signal.SIGKILL)",
            "loading the candidate: ended by SIGKILL, as a system does that has no memory left ('it printed nothing')",
        ),
        ("print('MemoryError')", "loading the candidate: needs more memory than remote_bench.memory_mb = 1200 allows"),
        ("raise SystemExit(3)", "loading the candidate: ended with status 3 and no report ('it printed nothing')"),
        ("tell(b'{' * 100_000)", "loading the candidate: "),
        ('tell(b\'{"begun":"\\xff"}\')', "loading the candidate: ended with status 0 and no report"),
        ('tell(b\'{"rounds":{"baseline_ns":[],"candidate_ns":[]}}\')', "loading the candidate: ended with status 0"),
        ('tell(b\'{"rounds":{"baseline_ns":[1],"candidate_ns":[1,1]}}\')', "loading the candidate: ended with"),
        ('tell(b\'{"rounds":{"baseline_ns":[1],"candidate_ns":[0]}}\')', "loading the candidate: ended with status 0"),
        (f"tell(b'{ROUNDS}'); raise SystemExit(3)", "loading the candidate: ended with status 3"),
        ("print('a\\x1b[2Jb')", r"loading the candidate: ended with status 0 and no report ('a\\x1b[2Jb')"),
    ],
)
def test_a_child_that_dies_fails_with_what_it_was_doing(
    hurried: None, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    begin = "import os, sys; tell = lambda raw: os.write(int(sys.argv[1]), raw)\n"
    monkeypatch.setattr(compare, "CHILD", ("-c", f'{begin}tell(b\'{{"begun":"loading the candidate"}}\\n\')\n{code}'))
    found = compared(b"")

    assert found.outcome == "failed"
    assert found.reason.startswith(words)


def test_a_child_that_others_left_no_time_says_nothing_of_the_candidate(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CHILD", ("-c", "import time; time.sleep(60)"))
    found = compared(b"", timeout_s=2)

    assert found.outcome == "unable"
    assert "of processor time within remote_bench.timeout_s = 2 s" in found.reason


def test_all_children_together_get_the_time_of_one_request(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os, sys, time; time.sleep(1.5); os.write(int(sys.argv[1]), b'{ROUNDS}')"
    monkeypatch.setattr(compare, "CHILD", ("-c", code))

    assert compared(b"", timeout_s=4).outcome == "unable"
    assert compared(b"", timeout_s=30).rounds == Rounds([2] * 3, [1] * 3)


def test_every_child_has_an_order_of_its_own_that_follows_from_the_requests_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(comparison, "time_in_turn", lambda *_runs, seed, most: seeds.append(seed))
    for process in (0, 2):
        comparison._measure(Order(process, RemoteBenchSettings()), request(seed=5), lambda _line: None)

    assert seeds == [5, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="idle scheduling is Linux's")
def test_a_child_gives_way_to_everything_else() -> None:
    code = (
        "import os, json, time\n"
        "def found(name):\n"
        "    try:\n"
        "        return open(f'/proc/self/{name}').read().strip()\n"
        "    except OSError:\n"
        "        return None\n"
        "until = time.monotonic() + 20\n"
        "while os.sched_getscheduler(0) != os.SCHED_IDLE or found('oom_score_adj') != '1000':\n"
        "    assert time.monotonic() < until\n"
        "print(json.dumps([os.nice(0), found('autogroup')]))"
    )
    ended = child.run(("-c", code), timeout_s=60, yielding=True)
    nice, autogroup = json.loads(ended.output)

    assert nice == 19
    assert autogroup is None or autogroup.endswith("nice 19")


@pytest.mark.skipif(sys.platform != "linux", reason="idle scheduling is Linux's")
def test_where_a_child_may_not_give_way_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(child.os, "sched_setscheduler", refuse)

    assert compared(request()) == Compared(
        "unable", "no process for it that gives way to others: Operation not permitted"
    )


def test_a_child_leaves_no_folder_even_when_whoever_started_it_is_killed() -> None:
    code = (
        "import os, sys\nfrom edge_runtime.model import child\n"
        "before = os.listdir(os.environ['HOME'])\n"
        "child.begin(sys.argv)\n"
        "print(before, os.path.exists(os.environ['HOME']))"
    )

    assert child.run(("-c", code), timeout_s=30).output == b"[] False\n"


def test_a_child_that_is_cancelled_ends_at_once() -> None:
    read, write = os.pipe()
    os.write(write, b"\0")
    start_s = time.monotonic()
    ended = child.run(("-c", "import time; time.sleep(60)"), timeout_s=60, cancel=read)
    os.close(read)
    os.close(write)

    assert ended.cancelled
    assert time.monotonic() - start_s < 30


# Who is answered.


class Held:
    """A comparison that ends when it is told to, or cancelled."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.begun: list[bytes] = []

    def __call__(self, request: IO[bytes], settings: RemoteBenchSettings, *, cancel: int) -> Compared:
        request.seek(0)
        self.begun.append(request.read())
        while not self.end.wait(0.005):
            if select_readable(cancel):
                return Compared("stopping", "the node is stopping")
        return Compared("failed", "told to")


def select_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(room, "compare", held)
    return held


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient()


@pytest.fixture
def bench(client: MemoryClient) -> Iterator[RemoteBench]:
    bench = RemoteBench(client, RemoteBenchSettings(max_request_bytes=1024), replies=REPLIES)
    yield bench
    bench.stop()


def message(payload: bytes = b"r", reply: str = f"{REPLIES}a", correlation: bytes = b"1", mid: int = 1) -> Message:
    properties = Properties(response_topic=reply, correlation_data=correlation)
    return Message("edge/v1/n/cmd/bench", payload, 0, qos=1, mid=mid, properties=properties, epoch=7)


def answers(client: MemoryClient) -> list[tuple[str, bytes, str]]:
    return [(out.topic, out.correlation_data, json.loads(out.payload)["outcome"]) for out in client.published]


def test_requests_are_acknowledged_at_once_and_answered_one_at_a_time(
    held: Held, bench: RemoteBench, client: MemoryClient
) -> None:
    bench.serve([message(b"first"), message(correlation=b"2", mid=2)])
    assert client.acknowledged == [(7, 1), (7, 2)]
    assert answers(client) == [(f"{REPLIES}a", b"2", "busy")]

    bench.serve([message(b"first", mid=3)])
    held.end.set()
    until(lambda: bench.serve([]) or len(client.published) == 2, what="the first answer")
    assert answers(client)[1] == (f"{REPLIES}a", b"1", "failed")
    bench.serve([message(correlation=b"3")])
    until(lambda: bench.serve([]) or len(client.published) == 3, what="the third answer")
    assert held.begun == [b"first", b"r"]
    assert bench.counts == {"busy": 1, "failed": 2, "sent again while it is measured": 1}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (message(reply=""), "without response topic or correlation data"),
        (message(correlation=b""), "without response topic or correlation data"),
        (message(correlation=b"c" * 65), "correlation data of more than 64 bytes"),
        (message(reply=f"{REPLIES}{'/' * 300}"), f"response topic not {REPLIES}NAME"),
        (message(reply=f"{REPLIES}{'a' * 65}"), f"response topic not {REPLIES}NAME"),
        (message(reply="in/a"), f"response topic not {REPLIES}NAME"),
        (message(reply=f"{REPLIES}#"), f"response topic not {REPLIES}NAME"),
    ],
)
def test_a_request_that_nobody_could_be_answered_is_dropped_and_counted(
    held: Held, client: MemoryClient, caplog: pytest.LogCaptureFixture, asked: Message, why: str
) -> None:
    bench = RemoteBench(client, RemoteBenchSettings(), replies=REPLIES)
    bench.serve([asked] * 5)

    assert client.published == []
    assert len(client.acknowledged) == 5
    assert held.begun == []
    assert bench.counts == {why: 5}
    logged = [(record.reason, record.times) for record in caplog.records if record.msg == "bench_request_dropped"]
    assert logged == [(why, 1), (why, 2), (why, 4)]


def test_a_request_that_is_too_large_is_answered_and_not_begun(
    held: Held, bench: RemoteBench, client: MemoryClient
) -> None:
    bench.serve([message(bytes(1025))])

    assert answers(client) == [(f"{REPLIES}a", b"1", "too_large")]
    assert held.begun == []


def test_a_fault_of_our_own_is_an_answer_with_its_traceback_in_the_log_and_the_next_one_is_measured(
    monkeypatch: pytest.MonkeyPatch, bench: RemoteBench, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "compare", lambda *_request, cancel: {}[cancel])
    bench.serve([message()])
    until(lambda: bench.serve([]) or client.published, what="an answer")
    bench.serve([message()])
    until(lambda: bench.serve([]) or len(client.published) == 2, what="another answer")

    assert answers(client) == [(f"{REPLIES}a", b"1", "unable")] * 2
    (first, _) = [record for record in caplog.records if record.msg == "bench_error"]
    assert first.exc_info is not None
    assert first.exc_info[0] is KeyError


def no_descriptors() -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def no_threads(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("lack", [(os, "pipe", no_descriptors), (threading.Thread, "start", no_threads)])
def test_where_nothing_can_be_begun_the_answer_says_so_and_nothing_is_left_open(
    monkeypatch: pytest.MonkeyPatch, bench: RemoteBench, client: MemoryClient, lack: tuple[object, str, object]
) -> None:
    before = psutil.Process().num_fds()
    monkeypatch.setattr(*lack)
    bench.serve([message()])

    assert answers(client) == [(f"{REPLIES}a", b"1", "unable")]
    assert psutil.Process().num_fds() == before


def test_whoever_sends_many_that_are_too_large_fills_no_log(
    bench: RemoteBench, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.serve([message(bytes(1025))] * 5)

    assert len(client.published) == 5
    assert len([record for record in caplog.records if record.msg == "bench_done"]) == 3


def test_a_stop_ends_what_was_begun_and_says_so(held: Held, bench: RemoteBench, client: MemoryClient) -> None:
    bench.serve([message()])
    bench.stop()

    assert answers(client) == [(f"{REPLIES}a", b"1", "stopping")]


def test_what_a_service_takes_is_in_no_ledger_and_no_queue() -> None:
    pipelines, client = Bench(), MemoryClient()
    taken: list[Message] = []

    class Service:
        def serve(self, messages: list[Message]) -> None:
            taken.extend(messages)

        def stop(self) -> None: ...

    loop = Loop(
        [pipelines.connection, Connection(client, Routes([]), service=Service())],
        pipelines.loop._lanes.values(),
        ledger=pipelines.ledger,
        publications=Publications(Tree("edge/v1", "n"), result_qos={"p": 1}, dead_letters=DeadLetterSettings()),
        worker=None,
        max_waiting=10,
    )
    client.arrive(message(), message())
    pipelines.arrive([[1, 0]] * 2)
    for _ in range(3):
        loop.step(0.0)
    view = loop.account()

    assert len(taken) == 2
    assert view.imbalances == ()
    assert [(one.pipeline, one.received) for one in view.pipelines] == [("p", 1)]


# Who is allowed.


def config(folder: Path, *, node: str = "allow_remote_bench = true", mqtt: str = "", url: str = "mqtt://h") -> Config:
    path = folder / "device.toml"
    path.write_text(
        f'[node]\nid = "n"\n{node}\n[mqtt]\nurl = "{url}"\n{mqtt}\n[models.m]\nbundle = "m.edge"\n'
        '[pipelines.p]\nsource = { topic = "in/+a" }\nmodel = "m"\n'
    )
    return parse(read_toml(path), path)


SECRET = 'username = "u"\npassword_file = "p"'


def test_it_is_off_by_default_and_then_there_is_no_connection_for_it(tmp_path: Path) -> None:
    found = config(tmp_path, node="")

    assert not found.node.allow_remote_bench
    assert room.remote_bench(found, Tree("edge/v1", "n"), "c") == []


def test_its_connection_takes_one_request_at_a_time_and_none_that_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[MqttSettings, bool]] = []
    monkeypatch.setattr(room, "make_client", lambda found, *, keeps_session, **_: asked.append((found, keeps_session)))
    (connection,) = room.remote_bench(config(tmp_path, mqtt=SECRET), Tree("edge/v1", "n"), "c")
    ((settings, keeps_session),) = asked

    assert connection.service is not None
    assert (settings.receive_maximum, settings.session_expiry_s, keeps_session) == (1, 0, False)
    assert settings.maximum_packet_bytes == RemoteBenchSettings().max_request_bytes + room.PACKET_HEAD_BYTES


def test_it_needs_credentials_for_the_broker(tmp_path: Path) -> None:
    certificate = config(tmp_path, url="mqtts://h", mqtt='cert = "c"\nkey = "k"')

    assert config(tmp_path, mqtt=SECRET).node.allow_remote_bench
    assert certificate.node.allow_remote_bench
    for mqtt in ("", 'username = "u"'):
        with pytest.raises(ConfigError, match="node.allow_remote_bench: found true without credentials"):
            config(tmp_path, mqtt=mqtt)


def test_it_needs_the_request_and_response_of_mqtt_5(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3.1.1"):
        config(tmp_path, mqtt=f'{SECRET}\nprotocol = "3.1.1"')


# Who asks.


def test_a_target_is_read_from_its_url() -> None:
    url = "mqtts://ann@broker.local:8884/press-1?ca=ca.pem&password_file=pass&root=plant/edge"
    found = Remote.of(url)

    assert found.name == "mqtts://broker.local:8884/press-1"
    assert found._settings.username == "ann"
    assert (found._settings.ca, found._settings.password_file) == ("ca.pem", "pass")
    assert found._tree.bench == "plant/edge/press-1/cmd/bench"
    assert Remote.of("mqtt://ann@h/n", password_file="x")._settings.password_file == "x"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mqtt://h", "node '' is not a name"),
        ("mqtt://h/a/b", "node 'a/b' is not a name"),
        ("http://h/n", "must start with mqtt://"),
        ("mqtt://ann:secret@h/n", "must not hold a password"),
        ("mqtt://h/n?verify=no", "unknown in the query: verify; allowed: ca, cert, key, password_file, root"),
        ("mqtt://h/n?ca=x", "ca, cert and key need TLS"),
        ("mqtt://h/n?password_file=x", "password_file needs a username"),
        ("mqtt://h:x/n", "is no address"),
    ],
)
def test_a_target_that_is_none_is_refused_with_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(ExportError) as caught:
        Remote.of(url)

    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("mqtt://ann@broker.local/n?password_file=x", True),
        ("mqtt://ann@192.168.1.7:1883/n?root=a&password_file=x", True),
        ("mqtts://ann@broker.local/n?password_file=x", False),
        ("mqtt://broker.local/n", False),
        ("mqtt://ann@localhost/n?password_file=x", False),
        ("mqtt://ann@127.0.0.1:1884/n?password_file=x", False),
        ("mqtt://ann@[::1]/n?password_file=x", False),
    ],
)
def test_a_password_that_goes_over_a_network_as_plain_text_is_warned_of(url: str, *, warned: bool) -> None:
    assert bool(exposed(url)) == warned


def test_the_command_warns_of_such_a_password_before_anything_else(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")

    done = CliRunner().invoke(main, ["compress", str(model), "--target", "mqtt://ann@broker.local/n?password_file=x"])

    assert done.exit_code == 1
    warned = "edge-export: warning: the password for broker.local goes over the network as plain text; wanted mqtts://"
    assert done.stderr.splitlines()[0] == warned


def graph(model: bytes) -> Artifact:
    return Artifact("m", "float32", model, "x", "y", ())


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[Request]]:
    """What a node is asked that gives an answer."""
    asked: list[Request] = []

    def answer_with(answer: Answer) -> list[Request]:
        def ask(_self: Remote, payload: bytes) -> Answer:
            asked.append(msgspec.msgpack.decode(payload, type=Request))
            return answer

        monkeypatch.setattr(Remote, "_ask", ask)
        return asked

    return answer_with


def test_a_node_is_asked_with_both_models_the_window_and_the_seed(
    answered: Callable[[Answer], list[Request]],
) -> None:
    asked = answered(Answer(1, "measured", rounds=Rounds([2000], [1000])))
    found = Remote.of("mqtt://h/n").cost(graph(b"baseline"), graph(b"candidate"), ONES, seed=(1 << 32) + 3)

    assert isinstance(found, Latency)
    assert (found.p50_us, found.speedup) == (1.0, 2.0)
    assert asked == [Request(1, Graph(b"baseline"), Graph(b"candidate"), "x", (1, 4, 2), ONES.tobytes(), seed=3)]


@pytest.mark.parametrize("outcome", ["busy", "unable", "stopping"])
def test_what_is_not_the_candidates_fault_is_none_of_its_failures(
    answered: Callable[[Answer], list[Request]], outcome: compare.Outcome
) -> None:
    answered(Answer(1, outcome, "others left it no time"))
    with pytest.raises(ExportError, match=f"mqtt://h/n: {outcome}: others left it no time"):
        Remote.of("mqtt://h/n").cost(graph(b""), graph(b""), ONES, seed=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b'{"v":1,"outcome":"\xff"}',
        b"[" * 100_000,
        b'{"v":1,"outcome":"measured","rounds":{"baseline_ns":[],"candidate_ns":[]}}',
    ],
)
def test_what_no_daemon_says_is_told_by_its_topic(payload: bytes) -> None:
    with pytest.raises(ExportError, match="edge/v1/n/reply/t: what came is no answer: "):
        remote._decode(Message("edge/v1/n/reply/t", payload, 0), Answer)


@pytest.mark.broker
def test_a_session_that_is_not_to_be_kept_is_not_missed(broker: Broker, make_client: Callable[..., object]) -> None:
    brief = {"session_expiry_s": 0}
    kept = make_client(broker.url, client_id="kept", settings=brief)
    unkept = make_client(broker.url, client_id="unkept", settings=brief, keeps_session=False)

    def both_connected(times: int) -> bool:
        for one in (kept, unkept):
            one.poll(0.005)
        return all(one.counters.connects == times for one in (kept, unkept))

    until(lambda: both_connected(1), what="the first connection")
    broker.kill()
    broker.start()
    until(lambda: both_connected(2), what="the second connection")

    assert (kept.counters.sessions_lost, unkept.counters.sessions_lost) == (1, 0)
