"""The demo, with a fraction of its training: the structure is checked here, the losses by the full run."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from warpmerge.demo import run, text
from warpmerge.demo.model import Config
from warpmerge.demo.recipes import METHODS
from warpmerge.demo.result import DemoResult, Row
from warpmerge.demo.train import Schedule, batches, one_thread, to_tokens
from warpmerge.demo.workspace import Workspace
from warpmerge.errors import MergeError

FAST = 0.5  # seconds of training
SINGLES = ["base", "prose", "source", "unicode"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    lines = []
    directory = tmp_path_factory.mktemp("demo") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "HELD_OUT", 2)  # evaluating takes most of the time here
        result = run(directory, seconds=FAST, echo=lines.append)
        yield result, directory, "\n".join(lines)


def tensors(directory):
    """Every tensor of a model directory: its dtype and shape, by name."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                found[name] = (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
    return found


def test_models_are_sharded_hugging_face_directories(demo):
    _, directory, _ = demo
    for name in SINGLES:
        model = directory / "models" / name
        weight_map = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
        assert set(weight_map) == set(tensors(model))
        assert len(set(weight_map.values())) >= 2
        assert {dtype for dtype, _ in tensors(model).values()} == {"BF16"}
        assert json.loads((model / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_merged_directories_have_the_layout_of_the_base(demo):
    result, directory, _ = demo
    assert result.problems == []
    for method in METHODS:
        assert tensors(directory / "merged" / method) == tensors(directory / "models" / "base")


def test_table_is_complete_and_finite(demo):
    result, _, output = demo
    assert [row.model for row in result.singles] == ["base", *(f"tuned on {name}" for name in SINGLES[1:])]
    assert [row.model for row in result.merged] == list(METHODS)
    for row in result.singles + result.merged:
        assert len(row.losses) == len(result.domains) == 3
        assert all(map(math.isfinite, row.losses))
    assert result.table in output
    assert result.verdict in output
    assert [merge.method for merge in result.merges] == list(METHODS)


def test_second_run_uses_the_models_again(demo):
    first, directory, _ = demo
    lines = []
    again = run(directory, seconds=FAST, echo=lines.append)
    assert "\n".join(lines).count("used again") == len(SINGLES)
    assert again.table == first.table


def test_only_models_with_the_same_settings_are_used_again(tmp_path):
    first = Workspace(tmp_path, {"steps": 1})
    first.model("base").mkdir(parents=True)
    (first.model("base") / "model.safetensors.index.json").touch()
    first.finished("base")
    assert Workspace(tmp_path, {"steps": 1}).has("base")
    assert not Workspace(tmp_path, {"steps": 1}).has("prose")
    assert not Workspace(tmp_path, {"steps": 2}).has("base")


def test_transformers_agrees(demo):
    """`transformers` loads a directory of the demo and computes the same logits; tokens are bytes."""
    from warpmerge.demo import checkpoint

    directory = demo[1] / "models" / "base"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = checkpoint.load(directory, Config())
    sample = "def word(é):\n    return 1"
    ids = AutoTokenizer.from_pretrained(directory)(sample)["input_ids"]
    assert bytes(ids) == sample.encode()
    with torch.no_grad():
        tokens = torch.tensor([ids])
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(MergeError, match="was not made by the demo"):
        run(tmp_path, seconds=FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(MergeError, match="is a file"):
        run(tmp_path / "thesis.txt", seconds=FAST)


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MergeError, match="pip install torch"):
        run(tmp_path, seconds=FAST)


def test_importing_the_demo_does_not_import_torch():
    code = "import sys, warpmerge.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("merged", "problems", "ok"), [(1.9, [], True), (2, [], False), (1.9, ["x"], False)])
def test_verdict(tmp_path, merged, problems, ok):
    rows = [Row("base", (2.0, 2.0)), Row("tuned on a", (1.0, 4.0))]
    result = DemoResult(tmp_path, ("a", "b"), rows, [Row("ties", (merged, merged))], problems=problems)
    assert result.ok is ok
    assert result.best_single.model == "base"
    assert [line.endswith("best") for line in result.table.splitlines()].count(True) == 1


def test_held_out_text_is_not_trained_on():
    for domain in text.load():
        blocks = [domain.held_out[i : i + text.BLOCK] for i in range(0, len(domain.held_out), text.BLOCK)]
        assert len(blocks) == text.HELD_OUT
        assert not any(block in domain.train for block in blocks)


def test_batches_depend_on_the_seed_alone():
    def windows(seed):
        return torch.stack(list(batches([bytes(range(200)), bytes(100)], 17, Schedule(3, 1e-3, False, seed))))

    assert torch.equal(windows(1), windows(1))
    assert not torch.equal(windows(1), windows(2))
    assert windows(1).shape[-1] == 17


def test_every_byte_is_a_token():
    assert to_tokens(bytes(range(256))).tolist() == list(range(256))


def test_the_thread_count_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
