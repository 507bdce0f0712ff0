"""A pipeline's settings held against its model: what contradicts it is refused at the start."""

from __future__ import annotations

import msgspec
import pytest
from bundles import means_manifest

from edge_runtime.config import PipelineSettings
from edge_runtime.model.manifest import StateSpec
from edge_runtime.pipelines import fitted
from edge_runtime.stream.decode import SourceSettings
from edge_runtime.stream.states import StateSettings
from edge_runtime.stream.window import WindowSettings

PIPELINE = PipelineSettings(SourceSettings("t/+s"), "m")
STREAMING = msgspec.structs.replace(means_manifest(), states=(StateSpec("s", "sN", (1, 2)),))


def test_window_hop_is_the_bundles_unless_said_otherwise() -> None:
    wanted = msgspec.structs.replace(PIPELINE, window=WindowSettings(hop=2))

    assert fitted(PIPELINE, means_manifest())[0].hop == 4
    assert fitted(wanted, means_manifest())[0].hop == 2
    assert fitted(PIPELINE, STREAMING)[0].hop == 4


@pytest.mark.parametrize(
    ("manifest", "changes", "words"),
    [
        (STREAMING, {"window": WindowSettings(hop=2)}, "window.hop = 2: the state of means@1.0.0 wants 4"),
        (means_manifest(), {"state": StateSettings(max_windows=9)}, "state is set, but means@1.0.0 carries none"),
        (means_manifest(), {"window": WindowSettings(samples=5)}, "window.samples = 5, the model takes 4"),
        (
            means_manifest(),
            {"source": SourceSettings("t/+s", channels=3)},
            "source has 3 channels, means@1.0.0 takes 2",
        ),
    ],
)
def test_settings_that_the_model_rules_out_are_named(manifest, changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        fitted(msgspec.structs.replace(PIPELINE, **changes), manifest)
