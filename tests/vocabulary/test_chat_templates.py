"""Chat templates: which one the output gets, where it is written, and what the named ones say."""

import json

import jinja2
import pytest
import warpmerge as wm
from helpers import read_model
from vocabulary_helpers import linear, model, words
from warpmerge.errors import UsageError
from warpmerge.recipe import Recipe
from warpmerge.vocabulary.templates import NAMED

OWN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
LISTED = [{"name": "tool", "template": "t"}, {"name": "default", "template": "wins"}]


@pytest.fixture
def models(tmp_path):
    """Two models with one template, in two places; one with another; one with none."""
    places = [
        {"chat_template.jinja": "wins\n", "tokenizer_config.json": '{"chat_template": "not this", "x": 1}'},
        {"tokenizer_config.json": json.dumps({"chat_template": LISTED})},
        {"chat_template.json": '{"chat_template": "loses"}'},
        {},
    ]
    return [model(tmp_path / f"m{n}", words("ab"), n, files=files) for n, files in enumerate(places)]


def template(tmp_path, *models, **keys):
    out = tmp_path / "out"
    wm.merge(linear(*models, **keys), out, sync=False, overwrite=True)
    path = out / "chat_template.jinja"
    return path.read_text() if path.exists() else None


def test_auto_takes_the_most_frequent(tmp_path, models):
    a, b, c, none = models
    assert template(tmp_path, c, none, a, b, chat_template="auto") == "wins"
    assert not (tmp_path / "out" / "chat_template.json").exists()
    assert template(tmp_path, c, a, chat_template="auto") == "loses"
    assert template(tmp_path, a, c, chat_template="auto") == "wins"
    assert template(tmp_path, none, chat_template="auto") is None
    assert template(tmp_path, none, a, chat_template="auto") == "wins"


def test_without_the_key_the_template_is_copied(tmp_path, models):
    assert template(tmp_path, models[0]) == "wins\n"
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"chat_template": "not this", "x": 1}


@pytest.mark.parametrize("keys", [{}, {"tokenizer_source": "union"}, {"tokenizer_source": "base"}])
def test_a_template_replaces_all_others(tmp_path, models, keys):
    for source in models:
        assert template(tmp_path, source, chat_template=OWN, **keys) == OWN
        config = tmp_path / "out" / "tokenizer_config.json"
        assert not config.exists() or "chat_template" not in json.loads(config.read_text())
        assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_template_of_a_file(tmp_path, models):
    (tmp_path / "own.jinja").write_text("{{ x }}")
    assert template(tmp_path, models[0], chat_template=str(tmp_path / "own.jinja")) == "{{ x }}"


def test_weights_are_those_without_a_template(tmp_path, models):
    template(tmp_path, *models, chat_template="llama3")
    found = read_model(tmp_path / "out")
    template(tmp_path, *models)
    assert read_model(tmp_path / "out") == found


@pytest.mark.parametrize("value", ["chatm", "{{ x }}", "a text of many words without any braces", "missing.jinja", 3])
def test_values_that_are_no_template(tmp_path, value):
    with pytest.raises(UsageError) as caught:
        Recipe.load(linear("a", chat_template=value))
    assert "chat_template: " in str(caught.value)
    assert value != "chatm" or "did you mean 'chatml'" in str(caught.value)


@pytest.mark.parametrize("text", ["{% for x in messages %}{{ x }}", "{{ messages[0 }} and so on"])
def test_texts_that_jinja_cannot_read(text):
    with pytest.raises(UsageError, match="not a Jinja template"):
        Recipe.load(linear("a", chat_template=text))


def test_blocks_that_transformers_adds_are_known():
    text = "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    assert Recipe.load(linear("a", chat_template=text)).chat_template.text == text


def test_a_file_that_is_no_template_is_not_read(tmp_path):
    (tmp_path / "secret.txt").write_text("{{ secret }} secret secret")
    with pytest.raises(UsageError, match="is no template"):
        Recipe.load(linear("a", chat_template=str(tmp_path / "secret.txt")))


def rendered(name, chat=CHAT, prompt=True):
    def raise_exception(message):
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    made = environment.from_string(NAMED[name])
    return made.render(messages=chat, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")


def test_the_formats_of_named_templates():
    assert rendered("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered("llama3") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nThree?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert rendered("mistral") == "<s>[INST] Be brief.\n\nOne? [/INST] Two.</s>[INST] Three? [/INST]"
    assert rendered("alpaca") == (
        "<s>Be brief.\n\n### Instruction:\nOne?\n\n### Response:\nTwo.</s>\n\n"
        "### Instruction:\nThree?\n\n### Response:\n"
    )
    assert rendered("exaone") == (
        "[|system|]Be brief.[|endofturn|]\n[|user|]One?\n[|assistant|]Two.[|endofturn|]\n[|user|]Three?\n[|assistant|]"
    )
    assert rendered("exaone", CHAT[1:2]) == "[|system|][|endofturn|]\n[|user|]One?\n[|assistant|]"
    assert rendered("mistral", CHAT[1:3]) == "<s>[INST] One? [/INST] Two.</s>"
    with pytest.raises(ValueError, match="system"):
        rendered("mistral", [*CHAT, CHAT[0]])
