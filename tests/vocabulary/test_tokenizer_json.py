"""tokenizer.json files, read and changed: ids are those that the library `tokenizers` finds in the same file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocabulary_helpers import KINDS, words
from warpmerge.errors import CheckpointError
from warpmerge.vocabulary.tokenizer_json import JsonReader

FLAGS = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
texts = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FF), min_size=1, max_size=4)


def by_library(raw):
    return Tokenizer.from_buffer(raw).get_vocab(with_added_tokens=True)


def read(raw):
    return JsonReader().read(raw, "model 'a'")


@given(
    kind=st.sampled_from(list(KINDS)),
    tokens=st.lists(texts, min_size=3, max_size=9, unique=True),
    added=st.lists(texts, max_size=4, unique=True),
    new=st.lists(texts, max_size=4, unique=True),
    lost=st.integers(0, 4),
    pretty=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_ids_are_those_of_the_library(kind, tokens, added, new, lost, pretty):
    raw = words(["[UNK]", *tokens], added, ["<s>"], kind).to_str(pretty=pretty).encode()
    found = read(raw)
    assert found.ids == by_library(raw) and found.dense
    assert found.ids == by_library(found.text())
    gone = {token for token, number in found.ids.items() if number >= len(found.ids) - lost} - {"[UNK]"}
    changed = found.changed(gone, {token: FLAGS for token in new if token not in found.ids.keys() - gone})
    assert changed.ids == by_library(changed.text()) == read(changed.text()).ids
    assert all(changed.added[token] == FLAGS for token in new if token not in found.ids.keys() - gone)


def test_equal_vocabularies_are_read_once():
    reader = JsonReader()
    one, two, other = (words(t, a).to_str().encode() for t, a in (("abc", ["x"]), ("abc", ["y", "x"]), ("abd", [])))
    found = [reader.read(raw, "model 'a'") for raw in (one, two, other)]
    assert found[0].vocabulary is found[1].vocabulary is not found[2].vocabulary
    assert [found[0].shared(f) for f in found] == [3, 3, 0]


def document(**changes):
    return json.loads(words("abc", ["x"]).to_str()) | changes


@pytest.mark.parametrize(
    "spell", [lambda d: json.dumps(d, indent=8) + " \n\t\n", lambda d: json.dumps(d, separators=(",", ":"))]
)
def test_any_spelling(spell):
    raw = spell(document()).encode()
    assert read(raw).ids == by_library(raw) == by_library(read(raw).text())


def test_any_order_of_keys():
    found = document(normalizer={"type": "Replace", "pattern": {"String": '"model": {'}, "content": "vocab"})
    model = found.pop("model")
    raw = json.dumps({"model": {"vocab": model["vocab"], "type": "BPE", "merges": []}, **found}).encode()
    assert read(raw).ids == by_library(raw) == by_library(read(raw).text())
    raw = json.dumps({**found, "model": {"type": "BPE", "merges": [], "vocab": model["vocab"]}}).encode()
    assert read(raw).ids == by_library(raw) == by_library(read(raw).text())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["added_tokens"][0].update(id=9),
        lambda d: d["added_tokens"].insert(0, d["added_tokens"][0] | {"content": "y", "id": 4}),
        lambda d: d["model"]["vocab"].update(c=7),
    ],
)
def test_ids_that_do_not_follow_each_other(change):
    """The library decides which ids tokens have then."""
    found = document()
    change(found)
    raw = json.dumps(found).encode()
    made = read(raw)
    assert not made.dense
    assert {token: number for token, number in made.ids.items() if isinstance(token, str)} == by_library(raw)
    assert sorted(made.ids.values()) == list(range(len(made.ids)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'{"model": 3}',
        b'{"model": {"vocab": {"a": "b"}}}',
        b'{"model": {"vocab": {"a": true}}}',
        b'{"model": {"vocab": [1, 2]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1, "b": 0, "c": 2}, "merges": []}}',
        b'{"added_tokens": [{"content": "x"}], "model": {"vocab": {"a": 0}}}',
        b'{"added_tokens": 3, "model": {"vocab": {"a": 0}}}',
        b'{"model": ' * 20_000,
        b'{"model": {"vocab": {"a": ' + b"[" * 200_000,
        b'{"model": {"vocab": {"a": ' + b"1" * 20_000 + b"}}}",
    ],
)
def test_what_is_no_tokenizer(raw):
    with pytest.raises(CheckpointError, match=r"the tokenizer of model 'a' cannot be read: ."):
        read(raw)
