from __future__ import annotations

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from broker import Broker, until
from bundles import means_manifest, write_means_bundle
from click.testing import CliRunner, Result
from daemon import Daemon
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.cli import main
from edge_runtime.config import load
from edge_runtime.errors import ConfigError
from edge_runtime.init import Choices, init, node_name, render
from edge_runtime.model.bundle import read
from edge_runtime.model.manifest import Manifest, OutputSpec, StateSpec
from edge_runtime.pipelines import fitted
from edge_runtime.records import InputSpec
from edge_runtime.settings import read_toml

SETTING = re.compile(r"^# (\w+) = ")
HOSTILE = 'a "b" \\ ü \n[node]\nid = "x" # \x7f\x01'

MANIFESTS = {
    "scores": means_manifest(labels=("ok", "worn", "broken")),
    "two labels": means_manifest(rate_hz=50.0),
    "one channel": means_manifest(labels=("only",)),
    "error": msgspec.structs.replace(means_manifest(), labels=(), output=OutputSpec("y", "error"), threshold=1.5e-7),
    "probability": msgspec.structs.replace(
        means_manifest(), labels=("silence", "speech"), output=OutputSpec("y", "probability")
    ),
    "streaming": msgspec.structs.replace(means_manifest(), states=(StateSpec("h", "h1", (1, 4)),)),
    "many channels": means_manifest(labels=tuple(f"l{i}" for i in range(40))),
    "hostile words": msgspec.structs.replace(
        means_manifest(), labels=(HOSTILE, "not x", "b"), precision=HOSTILE,
        input=InputSpec("x", (HOSTILE, "."), (HOSTILE, ""), 4, 4),
    ),
    "a name of dashes": msgspec.structs.replace(means_manifest(), name="-"),
}  # fmt: skip


def uncommented(lines: list[str], at: int) -> str:
    """The file with one commented setting taken, in place of the line of its table that has the same key."""
    key = lines[at][2:].split(" = ")[0]
    start = max(i for i in range(at) if lines[i].startswith("["))
    end = next((i for i in range(at, len(lines)) if lines[i].startswith("[")), len(lines))
    kept = [f"# {line}" if start < i < end and line.startswith(f"{key} = ") else line for i, line in enumerate(lines)]
    kept[at] = lines[at][2:]
    return "\n".join(kept)


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_the_file_and_each_of_its_commented_settings_are_valid_and_fit_the_model(
    tmp_path: Path, manifest: Manifest
) -> None:
    lines = render(manifest, "b.edge", Choices(node="n1")).splitlines()
    choices = [i for i, line in enumerate(lines) if SETTING.match(line)]
    path = tmp_path / "device.toml"

    for text in ["\n".join(lines), *(uncommented(lines, at) for at in choices)]:
        path.write_text(text)
        config = load(path)
        (pipeline,) = config.pipelines.values()
        fitted(pipeline, manifest)
        assert config.node.id == "n1"
        assert config.node.state_dir == str(tmp_path / "state")
    assert len(choices) >= 24


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_every_setting_that_is_often_chosen_has_a_line_in_its_table(manifest: Manifest) -> None:
    lines = render(manifest, "b.edge", Choices(node="n1", pipeline="p")).splitlines()
    offered = []
    for line in lines:
        if line.startswith("["):
            section = line[1:-1].partition(".")[0]
        elif found := SETTING.match(line):
            offered.append(f"{section}.{found[1]}")

    assert {
        "node.metrics_interval_s", "node.inline_limit_ms", "mqtt.client", "mqtt.max_unwritten_bytes",
        "models.intra_op_threads", "models.max_batch", "pipelines.deadline_ms", "pipelines.execution",
        "pipelines.delivery", "latency.enabled", "latency.slowest", "store.profile",
    } <= set(offered)  # fmt: skip
    assert any(SETTING.match(line) and "time_field" in line and "clock_synced = true" in line for line in lines)


def test_taking_a_commented_setting_changes_what_is_loaded(tmp_path: Path) -> None:
    lines = render(MANIFESTS["scores"], "b.edge", Choices(node="n1")).splitlines()
    path = tmp_path / "device.toml"
    found = []
    for at in (i for i, line in enumerate(lines) if SETTING.match(line)):
        path.write_text(uncommented(lines, at))
        (pipeline,) = load(path).pipelines.values()
        found.append(
            (pipeline.source.format, pipeline.source.fields, pipeline.source.seq_field, pipeline.decide.alarm_on)
        )

    assert ("raw", (), "", "") in found
    assert ("json", (), "seq", "") in found
    assert ("json", ("c0", "c1", "c2"), "", "") in found
    assert ("json", (), "", "not ok") in found


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("two labels", 'alarm_on = "moving"'),
        ("scores", 'alarm_on = "not ok"'),
        ("probability", 'alarm_on = "speech"'),
        ("error", "score = 1.5e-7"),
    ],
)
def test_the_alarm_offered_is_made_of_the_bundles_own_labels_or_threshold(name: str, setting: str) -> None:
    text = render(MANIFESTS[name], "b.edge", Choices(node="n1"))

    assert f"# decide = {{ {setting}, " in text


def test_comments_tell_window_rate_channels_units_and_labels() -> None:
    text = render(MANIFESTS["two labels"], "b.edge", Choices(node="n1"))

    assert "# A window is 4 samples at 50 Hz (0.08 s); a new one begins every 4 (0.08 s)." in text
    assert '#   "c0" ["1"]\n#   "c1" ["1"]\n' in text
    assert '#   "still"\n#   "moving"\n' in text


def test_words_of_a_bundle_cannot_put_a_line_of_their_own_into_the_file(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(render(MANIFESTS["hostile words"], HOSTILE, Choices(node="n1", topic="a/+b")))
    table = read_toml(tmp_path / "d.toml")

    assert table["node"] == {"id": "n1", "state_dir": "state"}
    assert table["models"]["means"] == {"bundle": HOSTILE}


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_the_file_as_it_was(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(render(MANIFESTS["scores"], text, Choices(node=text, topic=text)), newline="")
    table = read_toml(path)

    assert table["models"]["means"]["bundle"] == text
    assert table["node"]["id"] == text


@given(host=st.text(max_size=100))
def test_a_node_id_made_of_any_host_name_is_valid(host: str) -> None:
    assert re.fullmatch("[A-Za-z0-9_-]{1,64}", node_name(host))


@pytest.mark.parametrize(
    ("host", "node"), [("press-hall-1.plant.local", "press-hall-1"), ("Müller's Pi", "M-ller-s-Pi"), ("", "node")]
)
def test_a_node_id_resembles_the_host_name(host: str, node: str) -> None:
    assert node_name(host) == node


@pytest.mark.parametrize(
    ("bundle", "output", "reference"),
    [
        ("m.edge", "device.toml", "m.edge"),
        ("models/m.edge", "device.toml", "models/m.edge"),
        ("models/m.edge", "conf/device.toml", "../models/m.edge"),
        ('with space "ü".edge', "device.toml", 'with space "ü".edge'),
    ],
)
def test_the_bundle_is_found_from_the_files_folder(tmp_path: Path, bundle: str, output: str, reference: str) -> None:
    for name in (bundle, output):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write_means_bundle(tmp_path / bundle)
    init(path, tmp_path / output, Choices(node="n1"))

    assert read_toml(tmp_path / output)["models"]["means"]["bundle"] == reference
    assert read(Path(load(tmp_path / output).models["means"].bundle)).manifest.name == "means"


def test_a_link_to_a_bundle_is_named_not_what_it_leads_to(tmp_path: Path) -> None:
    write_means_bundle(tmp_path / "means-1.0.0.edge")
    (tmp_path / "current.edge").symlink_to("means-1.0.0.edge")
    init(tmp_path / "current.edge", tmp_path / "device.toml", Choices(node="n1"))

    assert read_toml(tmp_path / "device.toml")["models"]["means"]["bundle"] == "current.edge"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text("mine")
    found = run(write_means_bundle(tmp_path / "m.edge"), "-o", path)

    assert found.exit_code == 2
    assert found.stderr == f"error: {path}: is there already and is not overwritten; name another file\n"
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--node", "press hall"], "node.id: found the name 'press hall'"),
        (["--broker", "localhost"], "must start with mqtt://"),
        (["--topic", "plant/+/vib"], "name it"),
        (["--topic", "edge/v1/#all"], "own results"),
        (["--pipeline", 'a "b"'], "found the name 'a \"b\"'"),
    ],
)
def test_an_impossible_choice_is_one_line_and_leaves_no_file(tmp_path: Path, options: list[str], words: str) -> None:
    found = run(write_means_bundle(tmp_path / "m.edge"), "-o", tmp_path / "device.toml", "--node", "n1", *options)

    assert found.exit_code == 2
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.edge"]


def test_a_folder_that_is_not_there_and_garbage_for_a_bundle_are_one_line_each(tmp_path: Path) -> None:
    bundle = write_means_bundle(tmp_path / "m.edge")
    (tmp_path / "garbage.edge").write_bytes(b"PK garbage")
    nowhere = run(bundle, "-o", tmp_path / "none" / "device.toml")
    garbage = run(tmp_path / "garbage.edge", "-o", tmp_path / "device.toml")

    assert (nowhere.exit_code, garbage.exit_code) == (2, 1)
    assert nowhere.stderr == f"error: {tmp_path}/none/device.toml: cannot be written: No such file or directory\n"
    assert "not a whole bundle" in garbage.stderr
    assert not (tmp_path / "device.toml").exists()


def test_a_name_that_is_not_utf8_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    bundle = write_means_bundle(tmp_path / "m\udcff.edge")
    with pytest.raises(ConfigError, match="not UTF-8"):
        init(bundle, tmp_path / "device.toml", Choices(node="n1"))

    assert not (tmp_path / "device.toml").exists()


@pytest.mark.broker
def test_the_commands_it_prints_lead_from_a_bundle_to_an_answer(broker: Broker, tmp_path: Path) -> None:
    """check says ready, run runs, and the payload of the last command gives a result on the topic of the third."""
    folder = tmp_path / "with space"
    folder.mkdir()
    write_means_bundle(folder / "m.edge")
    options = ["--broker", broker.url, "--node", "n1", "--topic", "plant/+machine/vib", "--pipeline", "vibration"]
    printed = run(folder / "m.edge", "-o", folder / "device.toml", *options).stdout
    check, start, subscribe, publish = [line for line in printed.splitlines() if line and line[0] not in "#w"]

    found = CliRunner().invoke(main, ["check", str(folder / "device.toml")])
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (0, "ready to run")
    assert (check, start) == tuple(f"edge-runtime {verb} '{folder}/device.toml'" for verb in ("check", "run"))
    assert subscribe == f"mosquitto_sub -h 127.0.0.1 -p {broker.port} -v -t 'edge/v1/n1/p/vibration/#'"
    payload, _, send = publish.partition(" | ")
    assert send == f"mosquitto_pub -h 127.0.0.1 -p {broker.port} -q 1 -s -t plant/machine-1/vib"

    zeros = subprocess.run(["sh", "-c", payload], capture_output=True, check=True).stdout
    probe = broker.probe("edge/v1/n1/p/vibration/#")
    with closing(Daemon(folder / "device.toml")) as daemon:
        until(lambda: "Sending SUBACK to edge-runtime-n1\n" in broker.log, what="the daemon subscribed")
        probe.publish("plant/machine-1/vib", zeros)
        (result,) = probe.wait_for(1)
        assert json.loads(result.payload)["label"] == "still"
        assert result.topic == "edge/v1/n1/p/vibration/out/machine-1"
        daemon.stop()


def test_the_rows_sent_are_bounded_for_a_very_long_window(tmp_path: Path) -> None:
    bundle = write_means_bundle(tmp_path / "m.edge", means_manifest(length=300_000))
    written = init(bundle, tmp_path / "device.toml", Choices(node="n1"))
    zeros = subprocess.run(["sh", "-c", written.publish.partition(" | ")[0]], capture_output=True, check=True).stdout

    (pipeline,) = load(tmp_path / "device.toml").pipelines.values()
    assert 500_000 < len(zeros) < pipeline.source.max_payload_bytes
    assert len(json.loads(zeros)[0]) == 2
