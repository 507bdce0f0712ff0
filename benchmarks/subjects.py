"""What is measured: the C echo, the script of naive.py, the daemon, an HTTP server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import judge
from benchmarks.processes import Subject
from benchmarks.programs import Programs, words
from benchmarks.workloads import ONE_EACH, Workload
from edge_runtime.demo.broker import free_port

FOLDER = Path(__file__).parent
ECHO_KEEP = 64
CONFIG = """\
[node]
id = "{node}"
state_dir = "{folder}/state"
{node_settings}

[mqtt]
url = "mqtt://127.0.0.1:{port}"
{mqtt_settings}

[latency]
{latency_settings}

[models.m]
bundle = "{bundle}"

[pipelines.p]
source = {{ topic = "{topic}", qos = {qos}, {source} }}
window = {{ {window} }}
model = "m"
result_qos = {qos}
queue = {{ max = 1000 }}
delivery = "{delivery}"
"""


class Place(msgspec.Struct, frozen=True):
    """Where a subject is to run. port: of the broker."""

    port: int
    qos: int
    folder: Path
    programs: Programs


class DaemonSettings(msgspec.Struct, frozen=True):
    """Lines of the daemon's configuration, table by table; and the tier of delivery."""

    node: str = ""
    mqtt: str = ""
    latency: str = ""
    delivery: str = "memory"


def _echo(name: str, form: str) -> Callable[[Workload, Place], Subject]:
    """Every message is a result of its own."""

    def make(workload: Workload, place: Place) -> Subject:
        topic, results = f"in/{name}/{workload.name}", f"out/{name}/{workload.name}"
        options = {
            "--port": str(place.port),
            "--subscribe": topic,
            "--publish": results,
            "--qos": str(place.qos),
            "--form": form,
        }
        return Subject(
            name,
            (str(place.programs.echo), *words(options)),
            topic,
            results,
            place.folder / f"{name}-{workload.name}.log",
            msgspec.structs.replace(workload, cut=ONE_EACH),
            judge=judge.echoes,
            keep=ECHO_KEEP,
        )

    return make


def _naive(workload: Workload, place: Place) -> Subject:
    topic, results = f"in/naive/{workload.name}", f"out/naive/{workload.name}"
    options = {
        "--port": str(place.port),
        "--model": str(workload.model.onnx),
        "--labels": ",".join(workload.model.labels),
        "--topic": topic,
        "--results": results,
        "--qos": str(place.qos),
    }
    command = (sys.executable, str(FOLDER / "naive.py"), *words(options), *workload.naive)
    return Subject("naive", command, topic, results, place.folder / f"naive-{workload.name}.log", workload)


def _daemon(name: str, settings: DaemonSettings) -> Callable[[Workload, Place], Subject]:
    def make(workload: Workload, place: Place) -> Subject:
        node = f"{name}-{workload.name}-{place.qos}"
        config = place.folder / f"{node}.toml"
        for left in place.folder.glob("state/store.db*"):
            left.unlink()  # windows would go on where the round before has ended
        config.write_text(
            CONFIG.format(
                node=node,
                folder=place.folder,
                port=place.port,
                bundle=workload.model.bundle,
                topic=f"in/{node}",
                qos=place.qos,
                source=workload.settings,
                window=workload.window,
                node_settings=settings.node,
                mqtt_settings=settings.mqtt,
                latency_settings=settings.latency,
                delivery=settings.delivery,
            )
        )
        command = (sys.executable, "-m", "edge_runtime", "run", str(config), "--json")
        results = f"edge/v1/{node}/p/p/out/{node}"
        return Subject(name, command, f"in/{node}", results, config.with_suffix(".log"), workload, keeps_ledger=True)

    return make


def _http(workload: Workload, place: Place) -> Subject:
    port = free_port()
    options = {
        "--model": str(workload.model.onnx),
        "--labels": ",".join(workload.model.labels),
        "--port": str(port),
    }
    command = (sys.executable, str(FOLDER / "http_peer.py"), *words(options))
    return Subject("http", command, "/predict", "", place.folder / f"http-{workload.name}.log", workload, port=port)


SUBJECTS: dict[str, Callable[[Workload, Place], Subject]] = {
    "echo": _echo("echo", "single"),
    "echo-batch": _echo("echo-batch", "batch"),
    "naive": _naive,
    "callbacks": _daemon("callbacks", DaemonSettings(mqtt='client = "callbacks"')),
    "lane": _daemon("lane", DaemonSettings()),
    "normal": _daemon("normal", DaemonSettings(delivery="normal")),
    "full": _daemon("full", DaemonSettings(delivery="full")),
    "on": _daemon("on", DaemonSettings(node="metrics_interval_s = 1.0", latency="interval_s = 1.0")),
    "off": _daemon("off", DaemonSettings(node="metrics_interval_s = 0", latency="enabled = false")),
    "http": _http,
}
