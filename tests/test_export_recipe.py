"""What a user gets who writes a wrong recipe: one line with the file, what was found and what was wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import ExportError
from export.recipe import Budget, Recipe, load

pytestmark = pytest.mark.torch

TONES = Path(__file__).parent / "export_recipes" / "tones.py"


def changed(folder: Path, old: str, new: str) -> Path:
    text = TONES.read_text()
    assert old in text
    path = folder / "recipe.py"
    path.write_text(text.replace(old, new))
    return path


def test_a_recipe_is_loaded_with_its_settings_and_defaults() -> None:
    recipe = load(TONES)

    assert (recipe.name, recipe.seed, recipe.labels) == ("tones", 7, ("low", "middle", "high"))
    assert (recipe.output, recipe.threshold, recipe.train, recipe.metric) == ("logits", None, None, None)
    assert recipe.budget == Budget(max_drop=0.05)
    assert recipe.data().train.inputs.shape == (600, 2, 256)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('NAME = "tones"\n', "", "NAME is missing, wanted str"),
        ("SEED = 7", 'SEED = "7"', "SEED is '7' (str), wanted int"),
        ("SEED = 7", "SEED = True", "SEED is True (bool), wanted int"),
        ('VERSION = "0.1.0"', 'VERSION = "1"', "VERSION is '1', wanted MAJOR.MINOR.PATCH"),
        ('LABELS = ("low", "middle", "high")', 'LABELS = "low"', "LABELS is 'low', wanted a tuple of strings"),
        ('("low", "middle", "high")', '("low", "low", "high")', "LABELS repeats itself: ('low', 'low', 'high')"),
        ("EPOCHS = 4", 'OUTPUT = "logit"', "OUTPUT is 'logit', wanted one of scores, logits, probability,"),
        ("EPOCHS = 4", 'OUTPUT = "error"', "train() is missing, wanted one for error"),
        ("BUDGET = Budget(max_drop=0.05)", "BUDGET = 0.05", "BUDGET is 0.05 (float), wanted Budgets"),
        ('units=("g", "g")', 'units=("g",)', "INPUT has 1 units for 2 channels"),
        ("def build(", "def built(", "build() is missing, wanted a function"),
        ("def data(", "train = 3\n\n\ndef data(", "train() is 3, wanted a function"),
        ("import numpy as np", "import numpie as np", "line 3: the recipe raised ModuleNotFoundError: No module named"),
        ("SEED = 7", "SEED = 7 +", "the recipe raised SyntaxError"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = changed(tmp_path, old, new)

    with pytest.raises(ExportError) as refused:
        load(path)

    assert str(refused.value).startswith(str(path))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("inputs.astype(np.float32)", "inputs", "train.inputs is float64, wanted a numpy array of float32"),
        ("targets.astype(np.int64)", "targets + 1", "train.targets runs from 1 to 3, 3 labels"),
        ("targets.astype(np.int64)", "targets[1:]", "train.targets has shape (599,), wanted (600,)"),
        ("inputs.astype(np.float32)", "inputs.astype(np.float32)[:, :1]", "shape (600, 1, 256), wanted (n, 2, 256)"),
        ("inputs.astype(np.float32)", "np.log(-abs(inputs.astype(np.float32)))", "train.inputs holds NaN or infinity"),
        ("    return Splits(", "    return dict(", "data() returned dict, wanted export.recipe.Splits"),
        ("np.random.default_rng(SEED)", "1 / 0", "data() raised ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
def test_wrong_data_is_refused_in_one_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = changed(tmp_path, old, new)

    with pytest.raises(ExportError) as refused:
        load(path).data()

    assert str(refused.value).startswith(str(path))
    assert told in str(refused.value)


def test_two_recipes_may_each_have_a_neighbour_of_the_same_name(tmp_path: Path) -> None:
    for folder, name in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "neighbour.py").write_text(f'NAME = "{name}"\n')
        changed(tmp_path / folder, 'NAME = "tones"', "from neighbour import NAME")

    names = [load(tmp_path / folder / "recipe.py").name for folder in ("a", "b")]

    assert names == ["one", "two"]
    assert "neighbour" not in sys.modules
    assert str(tmp_path / "a") not in sys.path


def test_what_a_recipe_prints_does_not_reach_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(
        tmp_path,
        "    generator = np.random.default_rng(SEED)",
        "    print('hello')\n    generator = np.random.default_rng(SEED)",
    )

    load(path).data()

    assert capsys.readouterr() == ("", "hello\n")


def test_without_torch_the_extra_to_install_is_named() -> None:
    script = f"import sys; sys.modules['torch'] = None\nfrom export.cli import main; main(['run', {str(TONES)!r}])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert done.stderr == (
        "edge-export: torch not installed; edge-export needs: pip install 'edge-runtime[export,cpu]'\n"
    )


def test_help_does_not_import_anything_heavy() -> None:
    script = (
        "import sys\nfrom export.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('heavy:', [m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'rich') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout.endswith("heavy: []\n")


def test_labels_of_the_fixture_recipe_are_all_in_its_test_split() -> None:
    recipe: Recipe = load(TONES)

    assert set(np.unique(recipe.data().test.targets)) == {0, 1, 2}
