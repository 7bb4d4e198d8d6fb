"""Options that scripts pass to `mergekit-yaml`, as what they mean to `warpmerge merge`.

Each is taken. It becomes an option of warpmerge, or a sentence that says why it is not needed, or an error if the
result would be another one than was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from .errors import UsageError

ONE_READ = "tensors are read once, a piece at a time"
OFFERED = "warpmerge writes safetensors only"


class Meaning(NamedTuple):
    """What an option stands for. One of `option` (with `value`, None: the given one), `notice` and `error`."""

    option: str = ""
    value: Any = None
    notice: str = ""
    error: str = ""


FLAGS = {
    "--cuda": Meaning("device", "cuda"),
    "--multi-gpu": Meaning("device", "cuda:all"),
    "--gpu-rich": Meaning("device", "cuda:all"),
    "--low-cpu-memory": Meaning(notice=ONE_READ),
    "--read-to-gpu": Meaning(notice=ONE_READ),
    "--lazy-unpickle": Meaning(notice=ONE_READ),
    "--clone-tensors": Meaning(notice=ONE_READ),
    "--async-write": Meaning(notice="results are written while others are merged"),
    "--allow-crimes": Meaning(notice="models fit if their tensors have the same names and shapes"),
    "--trust-remote-code": Meaning(notice="no code of a checkpoint is ever run"),
    "--copy-tokenizer": Meaning(notice="the tokenizer is taken over"),
    "--write-model-card": Meaning(notice="a model card is written"),
    "--safe-serialization": Meaning(notice=OFFERED),
    "--no-copy-tokenizer": Meaning(notice="the tokenizer is taken over all the same; remove it from the output"),
    "--no-write-model-card": Meaning(notice="a model card is written all the same; remove it from the output"),
    "--no-safe-serialization": Meaning(error=f"{OFFERED}; remove the option"),
    "--unsafe-truncate-embeddings": Meaning(error="embeddings are not cut; give models of one vocabulary"),
}
VALUES = {
    "--out-shard-size": Meaning("shard_size"),
    "--random-seed": Meaning("seed"),
    "--num-threads": Meaning("threads"),
    "--write-threads": Meaning(notice="every thread writes"),
    "--transformers-cache": Meaning(notice="models on the hub come from HF_HOME or HF_HUB_CACHE; set one of these"),
    "--lora-merge-cache": Meaning(notice="adapters are not merged beforehand"),
    "--lora-merge-dtype": Meaning(notice="adapters are not merged beforehand"),
}
SHORT = {"--num-threads": "-j"}


class MergekitOption(click.Option):
    """An option in the second group of the help."""


class GroupedCommand(click.Command):
    """A command whose help lists its own options first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                records[isinstance(parameter, MergekitOption)].append(record)
        with formatter.section("Options"):
            formatter.write_dl(records[False])
        with formatter.section("Options of mergekit-yaml, which are taken as well"):
            formatter.write_dl(records[True])


def mergekit_options(command: Callable) -> Callable:
    """Adds the options to a command. It gets them as `mergekit`, a dictionary of those that were given."""

    def note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value not in (None, False, 0):
            context.ensure_object(dict)
            context.obj[parameter.opts[-1]] = value

    more: dict[str, Any] = {"expose_value": False, "callback": note, "cls": MergekitOption}
    said = "Not needed: there is nothing more to say."
    command = click.option("-v", "--verbose", count=True, help=said, **more)(command)
    for name, meaning in reversed(FLAGS.items()):
        command = click.option(name, is_flag=True, default=False, help=_help(meaning), **more)(command)
    for name, meaning in reversed(VALUES.items()):
        names = [SHORT[name], name] if name in SHORT else [name]
        command = click.option(*names, metavar="VALUE", help=_help(meaning), **more)(command)
    return command


def _help(meaning: Meaning) -> str:
    if meaning.option:
        value = "" if meaning.value is None else f" {meaning.value}"
        return f"Means --{meaning.option.replace('_', '-')}{value}."
    if meaning.error:
        return "Refused: another result is asked for than can be given."
    return "Not needed." if "all the same" not in meaning.notice else "Without effect."


def translated(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of warpmerge that the given ones stand for, and a sentence for each that is not needed.

    Raises UsageError for one whose result cannot be given.
    """
    options: dict[str, Any] = {}
    notices = []
    for name, value in given.items():
        meaning = FLAGS.get(name) or VALUES.get(name)
        if meaning is None:
            continue
        if meaning.error:
            raise UsageError(f"{name}: {meaning.error}.")
        if meaning.notice:
            notices.append(f"{name} is not needed: {meaning.notice}.")
        else:
            options[meaning.option] = _value(name, meaning, value)
    return options, notices


def _value(name: str, meaning: Meaning, value: Any) -> Any:
    if meaning.value is not None:
        return meaning.value
    if meaning.option == "shard_size":  # 5B are five billion bytes there, 500M half a billion
        unit = {"k": "kB", "m": "MB", "b": "GB"}
        return re.sub(r"(?<=[0-9])\s*([kmb])$", lambda found: unit[found[1].lower()], value, flags=re.IGNORECASE)
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{name} must be a whole number, got '{value}'.") from None
