"""The keys `tokenizer_source` and `tokenizer`: what they mean, and every way to get them wrong."""

import pytest
from warpmerge.errors import UsageError
from warpmerge.models.reference import ModelRef
from warpmerge.recipe import Recipe
from warpmerge.recipe.tokenizer import Tokenizer, TokenRow

LINEAR = {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1}}


def read(**keys):
    return Recipe.load(LINEAR | keys).tokenizer


@pytest.mark.parametrize("keys", [{}, {"tokenizer": None}, {"tokenizer_source": None, "tokenizer": None}])
def test_without_a_value_there_is_none(keys):
    assert read(**keys) is None


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ({"tokenizer": {}}, "union"),
        ({"tokenizer": {"source": None}}, "union"),
        ({"tokenizer": {"source": "base"}}, "base"),
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "org/name@v1"}, ModelRef("org/name", "v1")),
        ({"tokenizer": {"source": {"model": {"path": "org/name"}}}}, ModelRef("org/name")),
    ],
)
def test_sources(keys, source):
    assert read(**keys) == Tokenizer(source, {})


def test_tokens():
    tokens = {
        "one": {"source": "a"},
        "all": {"source": "a", "force": True},
        "zero": {"source": {"kind": "zero"}, "force": False},
        "text": {"source": {"kind": "model_token", "model": "b", "token": "x"}},
        "row": {"source": {"kind": "model_token", "model": {"path": "b"}, "token_id": 7}},
        "open": {},
    }
    found = read(tokenizer={"tokens": tokens, "pad_to_multiple_of": "64"})
    a, b = ModelRef("a"), ModelRef("b")
    assert found.multiple == 64 and found.models == (a, b)
    assert found.tokens == {
        "one": TokenRow(a),
        "all": TokenRow(a, force=True),
        "zero": TokenRow(),
        "text": TokenRow(b, "x"),
        "row": TokenRow(b, 7),
        "open": TokenRow(needs_source=True),
    }


WRONG = {
    "both keys": ({"tokenizer": {}, "tokenizer_source": "base"}, "give one of 'tokenizer_source' and 'tokenizer'"),
    "a source that is no model": ({"tokenizer_source": 3}, "tokenizer_source: a model must be"),
    "text": ({"tokenizer": "union"}, "tokenizer: must be a mapping with the keys source"),
    "a misspelt key": ({"tokenizer": {"sourc": "base"}}, "tokenizer: unknown key 'sourc'; did you mean 'source'?"),
    "a list of tokens": ({"tokenizer": {"tokens": ["x"]}}, "tokens: must be a mapping"),
    "no multiple": ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of: must be a whole number"),
    "a fraction": ({"tokenizer": {"pad_to_multiple_of": 2.5}}, "got 2.5"),
    "a truth": ({"tokenizer": {"pad_to_multiple_of": True}}, "got True"),
    "a huge multiple": ({"tokenizer": {"pad_to_multiple_of": 10**9}}, "1048576"),
}
WRONG_TOKENS = {
    "text": ("a", "tokens: 'x': must be a mapping"),
    "a misspelt key": ({"forced": True}, "unknown key 'forced'; did you mean 'force'"),
    "force as text": ({"source": "a", "force": "yes"}, "force: must be true or false, got 'yes'"),
    "force without a source": ({"force": True}, "'force' needs a 'source'"),
    "an unknown kind": ({"source": {"kind": "mean"}}, "kind: must be zero or model_token or none, got 'mean'"),
    "zero with more": ({"source": {"kind": "zero", "model": "a"}}, "unknown key 'model'"),
    "neither token nor number": ({"source": {"kind": "model_token", "model": "a"}}, "one of 'token' and 'token_id'"),
    "both": ({"source": {"kind": "model_token", "model": "a", "token": "b", "token_id": 1}}, "one of 'token'"),
    "a token that is no text": ({"source": {"kind": "model_token", "model": "a", "token": 1}}, "token: must be text"),
    "a row below 0": ({"source": {"kind": "model_token", "model": "a", "token_id": -1}}, "the number of a row, got -1"),
    "no model": ({"source": {"kind": "model_token", "token_id": 1}}, "model: a model must be"),
}


@pytest.mark.parametrize("keys, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong(keys, message):
    with pytest.raises(UsageError) as caught:
        read(**keys)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry, message", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_what_is_wrong_with_a_token(entry, message):
    with pytest.raises(UsageError) as caught:
        read(tokenizer={"tokens": {"x": entry}})
    assert "tokenizer: tokens: 'x'" in str(caught.value) and message in str(caught.value)


def test_all_faults_at_once():
    wrong = {"tokens": {"x": {"force": 1}, "y": 2}, "pad_to_multiple_of": -1, "sorce": "base"}
    with pytest.raises(UsageError) as caught:
        Recipe.load(LINEAR | {"tokenizer": wrong, "chat_template": "x", "dtype": "bf61"})
    lines = str(caught.value).split("\n")
    assert len(lines) == 6
    for word in ("'x': force", "'y'", "pad_to_multiple_of: ", "sorce", "chat_template: ", "bf61"):
        assert sum(word in line for line in lines) == 1
