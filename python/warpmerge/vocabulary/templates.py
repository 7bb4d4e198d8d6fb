"""Chat templates: those with a name, those of models, and the one that the output gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..models.names import OLD_TEMPLATE, TEMPLATE, TOKENIZER_CONFIG
from ..models.sidecars import Content
from ..recipe.tokenizer import AUTO, ChatTemplate
from .model_tokenizer import content, document
from .tokenizer_json import json_bytes

# The published formats of these names, as templates for transformers.
NAMED = {
    "alpaca": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
        " + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only the first message may be of the system.') }}{% endif %}"
        "{% endfor %}"
    ),
}


def template_of(files: Mapping[str, Content]) -> str | None:
    """The chat template among a model's files; of several the default one. Raises CheckpointError."""
    if TEMPLATE in files:
        return _decoded(content(files[TEMPLATE]))
    for name in (OLD_TEMPLATE, TOKENIZER_CONFIG):
        found = document(files[name], name).get("chat_template") if name in files else None
        if isinstance(found, list):
            found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str):
            return found
    return None


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{TEMPLATE} is not UTF-8.") from None


def chosen(template: ChatTemplate, models: Iterable[Mapping[str, Content]]) -> str | None:
    """The text of the output's template; None: no model has one. Of equally frequent ones the first model's wins.
    `models`: the companions of each."""
    if template.name is None:
        return template.text
    if template.name != AUTO:
        return NAMED[template.name]
    found = Counter(text.strip() for files in models if (text := template_of(files)) is not None)
    return found.most_common(1)[0][0] if found else None


def with_template(files: Mapping[str, Content], text: str) -> dict[str, Content]:
    """A tokenizer's files with this template in place of their own."""
    made = {name: file for name, file in files.items() if name != OLD_TEMPLATE}
    made[TEMPLATE] = text.encode()
    if TOKENIZER_CONFIG in files:
        config: dict[str, Any] = document(files[TOKENIZER_CONFIG], TOKENIZER_CONFIG)
        if config.pop("chat_template", None) is not None:
            made[TOKENIZER_CONFIG] = json_bytes(config)
    return made
