"""The tokenizer of the output: whose it is, which tokens it gains and loses, and its files."""

import json
import subprocess
import sys

import pytest
import warpmerge as wm
from tokenizers import AddedToken, Tokenizer
from vocabulary_helpers import KINDS, bpe, by_token, byte_level, config, ids, linear, model, values, words
from warpmerge.errors import CheckpointError, UsageError


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def merged(recipe, out, **options):
    return wm.merge(recipe, out, sync=False, overwrite=True, **options)


def in_order(out):
    return [token for token, _ in sorted(ids(out).items(), key=lambda pair: pair[1])]


def files(out):
    ours = {"README.md", "warpmerge.json", "mergekit_config.yml", "model.safetensors", "config.json"}
    return {path.name for path in out.iterdir()} - ours


def document(out, name):
    return json.loads((out / name).read_text())


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_keeps_the_ids_of_the_base(tmp_path, out, kind):
    base = model(tmp_path / "base", words(["[UNK]", "a", "b"], ["plain"], ["<s>"], kind), 100)
    one = model(tmp_path / "one", words(["[UNK]", "n2", "n1", "b"], ["more"], ["<t>"], kind), 200)
    two = model(tmp_path / "two", words(["[UNK]", "n3", "n1"], ["plain"], ["<u>", "<s>"], kind), 300)
    merged(linear(one, two, base_model=base, tokenizer_source="union"), out)
    assert in_order(out) == ["[UNK]", "a", "b", "plain", "<s>", "n2", "n1", "n3", "more", "<t>", "<u>"]
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    added = {token.content: token for token in made.get_added_tokens_decoder().values()}
    assert (added["n1"].special, added["n1"].normalized) == (False, True)
    assert (added["<t>"].special, added["<t>"].normalized) == (True, False)
    assert made.encode("n1<t>").tokens == ["n1", "<t>"]
    assert len(values(out)) == config(out)["vocab_size"] == 11


def test_flags_are_those_of_the_first_model(tmp_path, out):
    one, two = words("ab"), words("ab")
    one.add_tokens([AddedToken("<t>", special=False, normalized=True)])
    two.add_special_tokens([AddedToken("<t>", normalized=False)])
    paths = [model(tmp_path / name, made, 0) for name, made in (("base", words("ab")), ("one", one), ("two", two))]
    report = merged(linear(*paths, base_model=paths[0], tokenizer_source="union"), out)
    assert any("'<t>' with different flags" in notice for notice in report.notices)
    [entry] = document(out, "tokenizer.json")["added_tokens"]
    assert (entry["id"], entry["special"]) == (2, False)


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_the_rows_of_the_base_are_left_out(tmp_path, out, kind, source):
    base = model(tmp_path / "base", words(["[UNK]", "a", "b", "c"], [], ["<pad>"], kind), 100, count=3)
    one = model(tmp_path / "one", words(["[UNK]", "a", "b"], [], [], kind), 200)
    report = merged(linear(base, one, base_model=base, tokenizer_source=source), out)
    assert by_token(out) == {"[UNK]": 300, "a": 302, "b": 304}
    assert any("2 tokens beyond the 3 rows" in notice for notice in report.notices)


def test_merges_of_tokens_that_are_left_out(tmp_path, out):
    made = bpe(["a", "b", "ab", "abb"], [("a", "b"), ("ab", "b")])
    base = model(tmp_path / "base", made, 100, count=3)
    merged(linear(base, tokenizer_source="base"), out)
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode("abb").tokens == ["ab", "b"]


def test_a_token_beyond_the_rows_of_another_model_is_one_that_it_lacks(tmp_path, out):
    base, one = model(tmp_path / "base", words("ab"), 100), model(tmp_path / "one", words("abc"), 200)
    two = model(tmp_path / "two", words("abc"), 300, count=2)
    merged(linear(base, one, two, base_model=base, tokenizer_source="union"), out)
    assert by_token(out) == {"a": 600, "b": 603, "c": 606}


def test_a_named_model_keeps_tokens_beyond_its_rows(tmp_path, out):
    base, one = model(tmp_path / "base", words("abc"), 100), model(tmp_path / "one", words("abc"), 200, count=2)
    merged(linear(base, one, tokenizer_source=one), out)
    assert by_token(out) == {"a": 300, "b": 302, "c": 204}


def test_ids_that_no_token_has_keep_their_rows(tmp_path, out):
    gap = Tokenizer.from_str(json.dumps(document_of(words("abc")) | {}).replace('"b": 1', '"b": 3'))
    paths = [model(tmp_path / name, gap, first, count=4) for name, first in (("A", 100), ("B", 200))]
    merged(linear(*paths, tokenizer_source="base"), out)
    assert values(out) == [300, 302, 304, 306]


def document_of(tokenizer):
    return json.loads(tokenizer.to_str())


def test_new_tokens_where_ids_have_gaps_are_refused(tmp_path, out):
    gap = Tokenizer.from_str(json.dumps(document_of(words("abc"))).replace('"b": 1', '"b": 3'))
    paths = [model(tmp_path / "A", gap, 0, count=4), model(tmp_path / "B", words("abq"), 0)]
    with pytest.raises(CheckpointError, match=r"the tokenizer of model '.*A': its ids have gaps"):
        merged(linear(*paths, tokenizer_source="union"), out)


# --- what is read ---------------------------------------------------------------------------------------------------


def test_tokens_that_stand_beside_tokenizer_json(tmp_path, out):
    """As transformers finds them: in the config, in added_tokens.json, as special tokens."""
    files = {
        "tokenizer_config.json": json.dumps(
            {
                "added_tokens_decoder": {"1": {"content": "b"}, "2": {"content": "<x>", "special": True}},
                "pad_token": {"content": "<pad>", "lstrip": False},
                "eos_token": "a",
            }
        ),
        "added_tokens.json": '{"<z>": 4, "<y>": 3}',
        "special_tokens_map.json": '{"additional_special_tokens": ["<w>"]}',
    }
    base = model(tmp_path / "base", words("ab"), 100, count=2)
    one = model(tmp_path / "one", words("ab"), 200, count=7, files=files)
    merged(linear(base, one, base_model=base, tokenizer_source="union"), out)
    assert in_order(out) == ["a", "b", "<x>", "<y>", "<z>", "<w>", "<pad>"]
    assert values(out)[2:] == [404, 406, 408, 410, 412]


def test_a_model_without_a_tokenizer_has_that_of_the_base(tmp_path, out):
    base = model(tmp_path / "base", words("ab"), 100)
    bare = model(tmp_path / "bare", None, 200, count=2)
    report = merged(linear(base, bare, tokenizer_source="union"), out)
    assert by_token(out) == {"a": 300, "b": 302}
    assert any(f"model '{bare}' has no tokenizer" in notice for notice in report.notices)
    for recipe in (linear(bare, base, tokenizer_source="union"), linear(base, bare, tokenizer_source=bare)):
        with pytest.raises(CheckpointError, match="bare has no tokenizer, which the recipe asks for"):
            merged(recipe, out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "the tokenizer of model 'A' cannot be read"),
        ("tokenizer.json", b'{"model": {"vocab": {"\xff": 0}}}', "the tokenizer of model 'A' cannot be read"),
        ("tokenizer.json", b'{"version": "1.0"}', "the tokenizer of model 'A' cannot be read"),
        ("tokenizer.json", b'{"model":' + b"[" * 100_000, "the tokenizer of model 'A' cannot be read"),
        ("tokenizer_config.json", b"[]", "A/tokenizer_config.json: not a JSON object"),
        ("added_tokens.json", b"{,}", "A/added_tokens.json: not valid JSON"),
    ],
)
def test_tokenizers_that_are_damaged(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "A", words("ab"), 0, files={name: content})
    model(tmp_path / "B", words("ab"), 0)
    with pytest.raises(CheckpointError) as caught:
        wm.merge(linear("B", "A", tokenizer_source="union"), "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_tokenizer_json_is_converted(tmp_path, out):
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s"]
    files = {"vocab.txt": "\n".join(letters) + "\n", "tokenizer_config.json": '{"tokenizer_class": "BertTokenizer"}'}
    paths = [
        model(tmp_path / name, None, first, count=7, files=files, config={"model_type": "bert"})
        for name, first in (("A", 100), ("B", 200))
    ]
    merged(linear(*paths, tokenizer_source="union"), out)
    assert list(by_token(out)) == letters and values(out)[5] == 310


def test_code_of_a_tokenizer_is_not_run(tmp_path, out):
    files = {
        "vocab.txt": "a\nb\n",
        "tokenizer_config.json": '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
        "own.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n",
    }
    paths = [model(tmp_path / name, None, 0, count=2, files=files) for name in ("A", "B")]
    with pytest.raises(CheckpointError, match=r"the tokenizer of model '.*A' cannot be read"):
        merged(linear(*paths, tokenizer_source="union"), out)
    assert not (tmp_path / "ran").exists()


def test_a_missing_library_is_named(tmp_path, monkeypatch, out):
    gap = Tokenizer.from_str(json.dumps(document_of(words("abc"))).replace('"b": 1', '"b": 3'))
    gaps = [model(tmp_path / name, gap, 0, count=4) for name in ("A", "B")]
    slow = [model(tmp_path / name, None, 0, count=2, files={"vocab.txt": "a\nb\n"}) for name in ("C", "D")]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for paths in (gaps, slow):
        with pytest.raises(UsageError, match=r"pip install warpmerge\[tokenizer\]"):
            merged(linear(*paths, tokenizer_source="union"), out)
        merged(linear(*paths), out)


def test_recipes_without_a_tokenizer_import_no_library(tmp_path):
    paths = [model(tmp_path / name, words("ab"), 0) for name in ("A", "B")]
    code = (
        "import sys, warpmerge as wm\n"
        f"wm.merge({linear(*paths, chat_template='chatml')!r}, {str(tmp_path / 'out')!r}, sync=False)\n"
        "sys.exit(bool({'tokenizers', 'transformers', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files ----------------------------------------------------------------------------------------------------------

SIDE = {
    "tokenizer_config.json": '{"tokenizer_class": "A",  "chat_template": "from the config"}',
    "special_tokens_map.json": "{}",
    "generation_config.json": '{"temperature": 0.5, "eos_token_id": [1]}',
    "modeling_own.py": "x = 1\n",
}


def test_a_tokenizer_that_stays_as_it_is_is_copied(tmp_path, out):
    base = model(tmp_path / "base", words("ab"), 0, files=SIDE | {"vocab.txt": "stale", "merges.txt": "stale"})
    one = model(tmp_path / "one", words("ab"), 0, files={"special_tokens_map.json": '{ "a" : 1 }', "x.model": "own"})
    merged(linear(base, one, tokenizer_source=one), out)
    assert files(out) == {
        "tokenizer.json",
        "special_tokens_map.json",
        "x.model",
        "generation_config.json",
        "modeling_own.py",
    }
    for name in ("tokenizer.json", "special_tokens_map.json", "x.model"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert document(out, "warpmerge.json")["files"].count("x.model") == 1


def test_the_files_of_a_union(tmp_path, out):
    tokenizer_config = {
        "added_tokens_decoder": {"2": {"content": "<s>", "special": True}},
        "bos_token": "<s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    side = {
        "tokenizer_config.json": json.dumps(tokenizer_config),
        "added_tokens.json": '{"<s>": 2}',
        "vocab.json": '{"a": 0, "b": 1}',
    }
    base = model(tmp_path / "base", words("ab", special=["<s>"]), 0, files=side)
    one = model(tmp_path / "one", words("abc", special=["<s>", "<t>"]), 0)
    merged(linear(base, one, tokenizer_source="union"), out)
    assert files(out) == {"tokenizer.json", *side}
    assert document(out, "added_tokens.json") == {"<s>": 2, "c": 3, "<t>": 4}
    made = document(out, "tokenizer_config.json")
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    assert made["added_tokens_decoder"]["3"] == {"content": "c", **plain, "normalized": True, "special": False}
    assert made["added_tokens_decoder"]["4"] == {"content": "<t>", **plain, "normalized": False, "special": True}
    assert made["added_tokens_decoder"]["2"] == tokenizer_config["added_tokens_decoder"]["2"]
    assert (out / "vocab.json").exists()


def test_files_name_no_token_that_is_left_out(tmp_path, out):
    side = {
        "tokenizer_config.json": json.dumps(
            {
                "added_tokens_decoder": {"2": {"content": "<s>"}, "3": {"content": "<pad>"}},
                "pad_token": "<pad>",
                "bos_token": {"content": "<s>"},
                "additional_special_tokens": ["<pad>", "<s>"],
            }
        ),
        "added_tokens.json": '{"<s>": 2, "<pad>": 3}',
        "vocab.json": "{}",
    }
    base = model(tmp_path / "base", words("ab", special=["<s>", "<pad>"]), 0, count=3, files=side)
    merged(linear(base, tokenizer_source="base"), out)
    assert files(out) == {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}
    assert not any("<pad>" in (out / name).read_text() for name in files(out))
    assert document(out, "tokenizer_config.json")["bos_token"] == {"content": "<s>"}


def test_ids_of_special_tokens_are_those_of_the_output(tmp_path, out):
    special = {"bos_token_id": 2, "eos_token_id": [1, 2], "pad_token_id": 0, "unk_token_id": None}
    base = model(tmp_path / "base", words(["<pad>", "a", "<s>"]), 0, config=special, files=SIDE)
    one = model(tmp_path / "one", words(["<s>", "a"]), 0)
    merged(linear(base, one, tokenizer_source=one), out)
    found = config(out)
    assert {key: found[key] for key in special} == {
        "bos_token_id": 0,
        "eos_token_id": [1, 0],
        "pad_token_id": None,
        "unk_token_id": None,
    }
    assert document(out, "generation_config.json") == {"temperature": 0.5, "eos_token_id": [1]}
    merged(linear(base, one, tokenizer_source="union"), out)
    assert config(out)["bos_token_id"] == 2
    assert (out / "generation_config.json").read_text() == SIDE["generation_config.json"]


def test_ids_of_special_tokens_that_are_left_out(tmp_path, out):
    base = model(
        tmp_path / "base", words("ab", special=["<pad>"]), 0, count=2, config={"pad_token_id": 2, "eos_token_id": 1}
    )
    merged(linear(base, tokenizer_source="base"), out)
    assert (config(out)["pad_token_id"], config(out)["eos_token_id"]) == (None, 1)


def test_byte_level_tokens_of_another_model_match_as_whole_texts(tmp_path, out):
    base, one = model(tmp_path / "base", byte_level(), 0), model(tmp_path / "one", byte_level(["zebra"]), 0)
    merged(linear(base, one, tokenizer_source="union"), out)
    assert "zebra" in Tokenizer.from_file(str(out / "tokenizer.json")).encode("the zebra").tokens
