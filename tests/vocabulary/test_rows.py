"""Rows of embeddings and heads by token: the values that the rules of docs/recipes.md give, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
import warpmerge as wm
import yaml
from helpers import array, bf16, read_model, write_model, write_recipe
from kernel_helpers import assert_same_bits
from vocabulary_helpers import EMBED, HEAD, by_token, config, linear, model, rows, values, words
from warpmerge.errors import CheckpointError, UsageError
from warpmerge.models.row_views import RowsMean
from warpmerge.models.views import FileRegion
from warpmerge.plan import make_plan
from warpmerge.recipe import Recipe


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def merged(recipe, out, **options):
    wm.merge(recipe, out, sync=False, overwrite=True, **options)
    return by_token(out)


# --- rows that a model lacks ----------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """b is in A (102) and B (201), not in C."""
    a = model(tmp_path / "A", words("xab"), 100)
    b = model(tmp_path / "B", words("xba"), 200)
    c = model(tmp_path / "C", words("xa"), 300)
    return a, b, c


def test_a_row_that_several_have_is_their_mean(three, out):
    assert merged(linear(*three, tokenizer_source="union"), out) == {"x": 600, "a": 604, "b": 102 + 201 + 151.5}
    assert config(out)["vocab_size"] == 3


def test_a_row_that_the_base_has_is_the_bases(three, out):
    found = merged(linear(*three, base_model=three[0], tokenizer={"source": "union"}), out)
    assert found["b"] == 102 + 201 + 102


def test_weights_play_no_part_in_means(three, out):
    recipe = linear(*({"model": m, "parameters": {"weight": w}} for m, w in zip(three, (1, 0, 2), strict=True)))
    assert merged(recipe | {"tokenizer": {}}, out)["b"] == 102 + 2 * 151.5


def test_a_row_that_the_base_lacks_is_the_mean_of_the_others(tmp_path, out):
    a = model(tmp_path / "A", words("ab"), 100)
    b = model(tmp_path / "B", words("abcd"), 200)
    c = model(tmp_path / "C", words("acd"), 300)
    found = merged(linear(a, b, c, base_model=a, tokenizer_source="union"), out)
    assert found == {"a": 600, "b": 101 + 201 + 101, "c": 202 + 301 + 251.5, "d": 203 + 302 + 252.5}


def test_a_row_that_one_model_has_is_every_models(tmp_path, out):
    a, b = model(tmp_path / "A", words("ab"), 100), model(tmp_path / "B", words("abq"), 200)
    assert merged(linear(a, b, tokenizer_source="union"), out)["q"] == 2 * 202
    task = {"merge_method": "task_arithmetic", "base_model": a, "models": [{"model": b, "parameters": {"weight": 0.5}}]}
    assert merged(task | {"tokenizer_source": "union"}, out) == {"a": 150, "b": 151, "q": 202}
    slerp = {"merge_method": "slerp", "base_model": a, "models": [b], "parameters": {"t": 0.5}}
    assert merged(slerp | {"tokenizer_source": "union"}, out).keys() == {"a", "b", "q"}


def test_a_row_that_no_model_has_is_zero(tmp_path, out):
    a = model(tmp_path / "A", words("abc"), 100, count=2)  # as a model has it whose embedding was not resized
    b = model(tmp_path / "B", words("ab"), 200)
    report = wm.merge(linear(b, a, tokenizer_source=a), out, sync=False)
    assert values(out) == [300, 302, 0]
    assert [n for n in report.notices if "no model has a row for 1 of the tokens, such as 'c'" in n]


def test_the_rows_of_a_named_model_are_ordered_as_its_tokens(three, out):
    a, b, _ = three
    assert merged(linear(a, b, tokenizer_source=b), out) == {"x": 300, "b": 303, "a": 303}
    assert values(out) == [100 + 200, 102 + 201, 101 + 202]


def test_a_model_that_gives_its_tokenizer_only_needs_no_weights(tmp_path, three, out):
    a, b, _ = three
    only = tmp_path / "only"
    only.mkdir()
    (only / "tokenizer.json").write_text(words("bxa").to_str())
    assert merged(linear(a, b, tokenizer_source=str(only)), out) == {"b": 303, "x": 300, "a": 303}
    with pytest.raises(wm.MergeError, match="only"):
        wm.merge(linear(a, b, tokenizer_source=str(only)), only, sync=False, overwrite=True)


# --- what `tokens` says ---------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    a = model(tmp_path / "A", words(["a", "x", "b", "c", "<s>", "p"]), 100, head=500)
    b = model(tmp_path / "B", words(["a", "b", "x", "d", "<s>", "q", "r"]), 200, head=600)
    return a, b


def halves(a, b, **keys):
    return {"merge_method": "linear", "base_model": a, "models": [a, b], "parameters": {"weight": 0.5}} | keys


def test_sources_of_tokens_and_padding(pair, out):
    a, b = pair
    tokens = {
        "b": {"source": b, "force": True},
        "c": {"source": {"kind": "zero"}, "force": True},
        "d": {"source": {"kind": "model_token", "model": a, "token": "<s>"}},
        "new": {"source": {"kind": "model_token", "model": b, "token_id": 6}},
    }
    recipe = halves(a, b, tokenizer={"source": "union", "tokens": tokens, "pad_to_multiple_of": 8})
    found = merged(recipe, out)
    expected = {
        "a": 150,
        "x": 151.5,
        "b": 201,
        "c": 0,
        "<s>": 154,
        "p": 105,
        "d": 153.5,
        "q": 205,
        "r": 206,
        "new": 206,
    }
    assert found == expected
    assert values(out)[10:] == [153.2] * 6 and config(out)["vocab_size"] == 16
    assert values(out, HEAD)[:3] == [550, 551.5, 601] and len(values(out, HEAD)) == 16


def test_a_source_replaces_missing_rows_only_unless_forced(pair, out):
    a, b = pair
    found = merged(halves(a, b, tokenizer={"tokens": {"b": {"source": b}, "p": {"source": {"kind": "zero"}}}}), out)
    assert (found["b"], found["p"]) == ((102 + 201) / 2, 105 / 2)


def test_a_new_token_with_the_tokenizer_of_the_base(pair, out):
    a, b = pair
    tokens = {"new": {"source": {"kind": "model_token", "model": a, "token": "b"}}}
    found = merged(halves(a, b, tokenizer={"source": "base", "tokens": tokens}), out)
    assert list(found) == ["a", "x", "b", "c", "<s>", "p", "new"] and found["new"] == 102


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"d": {}}, "'d': the model 'A' lacks the token; name a 'source'"),
        ({"d": {"source": "A"}}, "'d': the source 'A' lacks the token 'd'"),
        ({"d": {"source": "Z"}}, "'d': the source 'Z' is no model of the tensor 'model.embed_tokens.weight'"),
        ({"d": {"source": {"kind": "model_token", "model": "B", "token": "zz"}}}, "'B' lacks the token 'zz'"),
        ({"d": {"source": {"kind": "model_token", "model": "B", "token_id": 7}}}, "'B' lacks row 7"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, pair, tokens, message):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "Z", words("ab"), 0)
    with pytest.raises(UsageError) as caught:
        wm.merge(halves("A", "B", tokenizer={"tokens": tokens}), "out")
    assert message in str(caught.value) and not (tmp_path / "out").exists()


# --- views ----------------------------------------------------------------------------------------------------------


def planned(recipe):
    return make_plan(Recipe.load(recipe))


def columns(plan, name=EMBED):
    row = list(plan.jobs.names).index(name)
    return [column.view(row) for column in plan.jobs.group(row).columns]


def test_equal_vocabularies_are_read_as_they_lie(tmp_path, out):
    a, b = (model(tmp_path / name, words("abc"), first, count=7) for name, first in (("A", 100), ("B", 200)))
    plan = planned(linear(a, b, tokenizer_source="base"))
    for view in columns(plan):  # the rows beyond the tokens are left out
        assert isinstance(view, FileRegion) and view.shape == (3, 3)
    plan.close()
    assert merged(linear(a, b, tokenizer_source="base"), out) == {"a": 300, "b": 302, "c": 304}


def test_a_plan_reads_no_weight(pair):
    plan = planned(halves(*pair, tokenizer={"pad_to_multiple_of": 8}))
    means = [view.parts[1].source for view in columns(plan)]
    assert all(isinstance(mean, RowsMean) and mean._bytes is None for mean in means)
    assert plan.jobs.shapes[list(plan.jobs.names).index(EMBED)] == (16, 3)
    plan.close()


def test_rows_of_other_types_and_means_are_promoted(tmp_path, out):
    """A mean that bfloat16 does not hold; the output keeps the dtype of the first model."""
    first = model(tmp_path / "A", words("xab"), 100, tensor=bf16)
    second = model(tmp_path / "B", words("xb"), 200.125)
    third = model(tmp_path / "C", words("xa"), 300, tensor=bf16)
    recipe = linear(first, second, third, tokenizer_source="union")
    assert merged(recipe | {"out_dtype": "float32"}, out)["b"] == 102 + 201.125 + (102 + 201.125) / 2
    wm.merge(recipe, out, sync=False, overwrite=True)
    assert read_model(out)[EMBED][0] == "BF16"


def test_means_are_taken_in_the_recipes_dtype(tmp_path, out):
    a, b, c = (
        model(tmp_path / n, words(t), f, tensor=bf16)
        for n, t, f in (("A", "xab", 200), ("B", "xba", 200), ("C", "xa", 0))
    )
    found = {}
    for dtype in ("bfloat16", "float32"):
        recipe = {
            "merge_method": "linear",
            "models": [{"model": m, "parameters": {"weight": w}} for m, w in ((a, 0), (b, 0), (c, 1))],
        }
        found[dtype] = merged(recipe | {"tokenizer_source": "union", "dtype": dtype}, out)["b"]
    assert found == {"bfloat16": 202, "float32": 201.5}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "della", "model_stock"])
def test_merges_are_those_of_models_that_have_all_rows(tmp_path, out, method, backend):
    """The same merge of checkpoints whose rows were put together beforehand has the same bits."""
    random = np.random.default_rng(0)
    own = {}
    tokenizers = {"base": words("abcde"), "one": words("abcqr"), "two": words("cbaqe")}
    if method == "slerp":
        tokenizers.pop("two")
    for name, tokenizer in tokenizers.items():
        model(tmp_path / name, tokenizer, 0)
        own[name] = random.standard_normal((5, 64)).astype(np.float32)
        write_model(tmp_path / name, {EMBED: own[name], "w": np.ones(3, np.float32)}, config={"vocab_size": 5})
    union = "abcdeqr"
    places = {name: tokenizer.get_vocab() for name, tokenizer in tokenizers.items()}
    for name in tokenizers:
        full = np.zeros((7, 64), np.float32)
        for row, token in enumerate(union):
            having = [n for n in tokenizers if token in places[n]]
            source = [name] if name in having else ["base"] if "base" in having else having
            full[row] = np.mean([own[n][places[n][token]] for n in source], 0, np.float64)
        write_model(tmp_path / "full" / name, {EMBED: full, "w": np.ones(3, np.float32)}, config={"vocab_size": 7})
    found = []
    for folder, keys in ((tmp_path, {"tokenizer_source": "union"}), (tmp_path / "full", {})):
        parameters = {"t": 0.3} if method == "slerp" else {} if method == "model_stock" else {"weight": 0.5}
        if method in ("ties", "della"):
            parameters["density"] = 0.5
        recipe = {"merge_method": method, "base_model": str(folder / "base"), "parameters": parameters}
        recipe["models"] = [str(folder / name) for name in tokenizers if name != "base"]
        wm.merge(recipe | keys, out, sync=False, overwrite=True, backend=backend)
        found.append(torch.from_numpy(array(read_model(out)[EMBED]).copy()))
    assert_same_bits(*found)


def test_slices_take_the_rows_of_their_own_models(tmp_path, out):
    a = model(tmp_path / "A", words("ab"), 100, head=500)
    b = model(tmp_path / "B", words("bac"), 200, head=600)
    slices = [{"sources": [{"model": m, "layer_range": [0, 1]}]} for m in (a, b)]
    recipe = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    wm.merge(recipe, out, sync=False)
    assert by_token(out) == {"a": 100, "b": 101, "c": 0}  # the first slice has no model with c
    assert by_token(out, HEAD) == {"a": 601, "b": 600, "c": 602}
    assert config(out)["num_hidden_layers"] == 2 and config(out)["vocab_size"] == 3


def test_the_base_of_a_slice_gives_missing_rows(tmp_path, out):
    a, b, c = (
        model(tmp_path / n, words(tokens), first)
        for n, tokens, first in (("A", "xq", 100), ("B", "xq", 200), ("C", "x", 300))
    )
    sources = [{"model": m, "layer_range": [0, 1], "parameters": {"weight": 1}} for m in (a, b, c)]
    recipe = {"merge_method": "linear", "parameters": {"normalize": False}, "tokenizer_source": "union"}
    for base, expected in (({}, 151), ({"base_model": b}, 201)):
        recipe["slices"] = [{"sources": sources} | base]
        assert merged(recipe, out)["q"] == 101 + 201 + expected


# --- tensors --------------------------------------------------------------------------------------------------------


def test_embedding_head_and_bias_change_and_nothing_else(tmp_path, out):
    for name, tokens, first in (("A", "ab", 100), ("B", "bac", 200)):
        n = len(tokens)
        tensors = {
            "transformer.wte.weight": rows(first, n),
            "transformer.wpe.weight": rows(first, 3),
            "transformer.h.0.output.weight": rows(first, 3),
            "lm_head.weight": rows(first, n),
            "lm_head.bias": np.arange(first, first + n, dtype=np.float32),
        }
        path = write_model(tmp_path / name, tensors, config={"vocab_size": n, "text_config": {"vocab_size": n}})
        (path / "tokenizer.json").write_text(words(tokens).to_str())
    wm.merge(linear(str(tmp_path / "A"), str(tmp_path / "B"), tokenizer_source="union"), out, sync=False)
    found = {name: array(stored) for name, stored in read_model(out).items()}
    assert found["lm_head.bias"].tolist() == [301, 301, 404]
    assert found["lm_head.weight"][:, 0].tolist() == found["transformer.wte.weight"][:, 0].tolist() == [301, 301, 404]
    for name in ("transformer.wpe.weight", "transformer.h.0.output.weight"):
        assert found[name][:, 0].tolist() == [300, 302, 304]
    assert config(out) == {"vocab_size": 3, "text_config": {"vocab_size": 3}, "torch_dtype": "float32"}


def test_a_head_of_another_length_than_the_embedding(tmp_path, out):
    """Each tensor has its own rows: a token without one there is one that the model lacks in this tensor."""
    for name, first in (("A", 100), ("B", 200)):
        tensors = {EMBED: rows(first, 3), HEAD: rows(first, 2 if name == "A" else 3)}
        path = write_model(tmp_path / name, tensors, config={"vocab_size": 3})
        (path / "tokenizer.json").write_text(words("abc").to_str())
    wm.merge(linear(str(tmp_path / "A"), str(tmp_path / "B"), tokenizer_source="union"), out, sync=False)
    assert values(out) == [300, 302, 304] and values(out, HEAD) == [300, 302, 404]


def test_a_base_of_a_slice_that_is_no_source(tmp_path, out):
    a, b = model(tmp_path / "A", words("ab"), 100), model(tmp_path / "B", words("ba"), 200)
    slices = [{"sources": [{"model": a, "layer_range": [0, 1]}], "base_model": b}]
    recipe = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "base"}
    assert merged(recipe, out) == {"a": 100, "b": 101}


def test_models_without_an_embedding(tmp_path):
    for name in "AB":
        path = write_model(tmp_path / name, {"w": np.ones(3, np.float32)})
        (path / "tokenizer.json").write_text(words("ab").to_str())
    with pytest.raises(CheckpointError, match="has no input embedding"):
        wm.merge(linear(str(tmp_path / "A"), str(tmp_path / "B"), tokenizer_source="union"), tmp_path / "out")


def test_auxiliary_tensors_are_not_rearranged(tmp_path, three):
    a, b, _ = three
    models = [{"model": m, "parameters": {"fisher": m}} for m in (a, b)]
    recipe = {"merge_method": "fisher", "models": models, "tokenizer_source": "union"}
    with pytest.raises(UsageError, match="auxiliary tensors"):
        wm.merge(recipe, tmp_path / "out")


def test_a_resume_needs_the_same_rows(pair):
    plans = [planned(halves(*pair, tokenizer_source=source)) for source in ("base", "base")]
    assert plans[0].fingerprint() == plans[1].fingerprint()
    path = Path(pair[1], "tokenizer.json")
    path.write_text(path.read_text().replace('"x":2', '"y":2'))
    assert planned(halves(*pair, tokenizer_source="base")).fingerprint() != plans[0].fingerprint()


def test_a_document_is_merged_by_its_tokens(tmp_path, out):
    """A document's result has its own vocabulary, which the next document sees before it is written."""
    a, b = model(tmp_path / "A", words("ab"), 100), model(tmp_path / "B", words("bac"), 200)
    c = model(tmp_path / "C", words("cdb"), 1000)
    first = linear(a, b, tokenizer_source="union", chat_template="chatml", name="both")
    tokens = {"new": {"source": {"kind": "model_token", "model": "both", "token": "c"}}}
    second = linear("both", c, tokenizer={"source": "union", "tokens": tokens})
    recipe = write_recipe(tmp_path / "r.yml", yaml.safe_dump_all([first, second], sort_keys=False))
    wm.merge(recipe, out, sync=False, dry_run=True)
    assert merged(recipe, out) == {"a": 602, "b": 301 + 1002, "c": 404 + 1000, "d": 2002, "new": 808}
    assert "im_start" in (out / "chat_template.jinja").read_text()
    only = [first, linear(a, b, tokenizer_source="both")]
    recipe = write_recipe(tmp_path / "r.yml", yaml.safe_dump_all(only, sort_keys=False))
    assert list(merged(recipe, out)) == ["a", "b", "c"]
