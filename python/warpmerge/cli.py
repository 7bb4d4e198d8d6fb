"""The command line. Exit status: 0 done, 2 wrong usage or recipe, 1 anything else, 130 interrupted (143 by
SIGTERM, 129 by SIGHUP)."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import MergeError, UsageError, printable
from .mergekit_options import GroupedCommand, mergekit_options, translated
from .units import show_seconds, show_size

INTERRUPTED = 130
THREADS = click.IntRange(1, 1024)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="warpmerge")
def cli() -> None:
    """Merges neural-network checkpoints: one read, one write, the same bits everywhere."""


def _merge_options(command: Callable) -> Callable:
    """Options that `merge` and `plan` share."""
    for option in reversed(
        [
            click.option(
                "--device", default="auto", show_default=True, help="auto, cpu, cuda[:N], cuda:N,M, cuda:all."
            ),
            click.option("--backend", default="auto", show_default=True, help="auto, cuda, triton, cpu or torch."),
            click.option(
                "--memory", metavar="SIZE", help="Bound on the memory that a merge on the CPU allocates, such as 4GB."
            ),
            click.option("--device-memory", metavar="SIZE", help="Bound on each GPU's memory; default: free memory."),
            click.option("--threads", type=THREADS, help="Worker threads; default: all cores."),
            click.option("--shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest output file."),
            click.option("--strict", is_flag=True, help="What the recipe says without effect is an error."),
            click.option("--seed", type=int, default=0, show_default=True, help="For methods that draw at random."),
        ]
    ):
        command = option(command)
    return command


@cli.command(cls=GroupedCommand)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@mergekit_options
@_merge_options
@click.option("--resume", is_flag=True, help="Keep the shards that an interrupted run of the same merge finished.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--no-sync", is_flag=True, help="Return before the data is on the disk, as cp does.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def merge(
    context: click.Context, recipe: Path, out_dir: Path, quiet: bool, as_json: bool, no_sync: bool, **options: Any
) -> None:
    """Merge the models that RECIPE (YAML) names into the model directory OUT_DIR."""
    from .api import merge as run

    meant, notices = translated(context.obj or {})
    options |= meant
    for notice in () if quiet or as_json else notices:
        _complain(f"note: {notice}")
    recipe = _loaded(recipe, options["strict"], quiet or as_json)
    with _Progress(quiet or as_json) as progress:
        report = run(recipe, out_dir, sync=not no_sync, progress=progress, **options)
    if as_json:
        _say(json.dumps(report.as_dict()))
    elif not quiet:
        rate = show_size((report.bytes_read + report.bytes_written) / max(report.seconds, 1e-9))
        if report.dry_run:
            _say(
                f"would merge {report.tensors} tensors with {report.method}: read {show_size(report.bytes_read)}, "
                f"write {show_size(report.bytes_written)} in {report.shards} shard{'s' * (report.shards != 1)}"
            )
        else:
            again = f" ({report.resumed_shards} shards were finished before)" if report.resumed_shards else ""
            _say(
                f"{report.method}: {report.tensors} tensors, {show_size(report.bytes_written)} written to {report.out} "
                f"in {show_seconds(report.seconds)}, {rate}/s read and written{again}"
            )


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@_merge_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(recipe: Path, as_json: bool, **options: Any) -> None:
    """Show the bytes that a merge would read, write and allocate, and its passes. Writes nothing."""
    from .api import describe

    rows = describe(_loaded(recipe, options["strict"], as_json), **options)
    if as_json:
        _say(json.dumps(rows))
        return
    models, _ = rows.pop("models"), rows.pop("notices")
    for name, value in rows.items():
        shown = show_size(value) if name.startswith(("bytes", "memory")) else value
        _say(f"{name.replace('_', ' '):<16} {shown}")
    _say("")
    _say_table(
        ["model", "role", "tensors", "size", "path"],
        [[m["model"], m["role"], f"{m['tensors']}", show_size(m["bytes"]), m["path"]] for m in models],
        right={2, 3},
    )


def _loaded(recipe: Path, strict: bool, silent: bool) -> Any:
    """The recipe. What it says without effect is said, unless it is an error."""
    from .api import load

    loaded = load(recipe, strict=strict)
    for notice in () if silent else loaded.notices:
        _complain(f"warning: {notice}")
    return loaded


@cli.command()
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--sample", metavar="SHARE", help="Compare the digests of a random share of the bytes only, such as 5%.")
@click.option("--recompute", metavar="N", help="Merge N random tensors (or all) again and compare bits; needs torch.")
@click.option(
    "--model", "moved", multiple=True, metavar="OLD=NEW", help="With --recompute: where a model, or a folder, is now."
)
@click.option("--seed", type=int, help="Of the random choice; default: another one each time.")
@click.option("--threads", type=THREADS, help="Worker threads; default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(out_dir: Path, moved: Sequence[str], as_json: bool, **options: Any) -> None:
    """Compare a finished merge with its manifest, and on request with what the reference merges."""
    from .verification import text
    from .verification import verify as run

    report = run(out_dir, models=_pairs(moved, "--model"), **options)
    if as_json:
        _say(json.dumps(report.as_dict()))
    for problem in report.problems:
        _complain(problem)
    if report.problems:
        raise MergeError(text.refuted(report))
    if not as_json:
        _say(*text.verified(report))


def _pairs(options: Sequence[str], name: str) -> dict[str, str]:
    """OLD=NEW, several times."""
    for option in options:
        if not all(option.partition("=")):
            raise UsageError(f"{name}: {option!r} is not of the form OLD=NEW.")
    return {old: new for old, _, new in (option.partition("=") for option in options)}


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(0), default=20, show_default=True, help="Rows that are printed.")
@click.option("--threads", type=THREADS, help="Worker threads; default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with all tensors.")
def diff(a: Path, b: Path, top: int, threads: int | None, as_json: bool) -> int:
    """Compare the tensors of two models, or of two .safetensors files: which differ, and by how much.

    Exit status: 0 they are equal, 1 they differ, 2 trouble.
    """
    from .verification import diff as run
    from .verification import text

    try:
        with _Progress(as_json, "comparing") as progress:
            report = run(a, b, threads=threads, progress=progress)
    except (MergeError, MemoryError, OSError) as error:
        raise _Trouble(_text(error)) from error
    if as_json:
        _say(json.dumps(report.as_dict()))
    else:
        head, rows = text.diff_rows(report, top)
        if rows:
            _say_table(head, rows, text.RIGHT)
            _say("")
        _say(*text.diff_others(report, top))
    return 0 if report.equal else 1


class _Trouble(MergeError):
    """An error of a command whose exit status of 1 says something else, as that of diff(1) does."""

    exit_status = 2


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the merge methods, or describe one."""
    from .methods import find, list_methods, load_plugins
    from .methods.document import PARAMETERS, facts, parameter_rows, preset_rows

    if name is None:
        rows = [[m.name, m.summary + ("" if m.built_in else f" (from {m.module})")] for m in list_methods()]
        _say_table(["method", "what it does"], rows)
        for plugin, reason in load_plugins().items():
            _complain(f"the plug-in {plugin} could not be loaded: {reason}.")
        return
    method = find(name)
    _say(f"{method.name}: {method.summary}", "")
    if method.formula:
        _say(*(f"    {line}" for line in method.formula.splitlines()), "")
    for title, text in facts(method):
        _say(f"{title:<10}  {text}")
    for source, differences in method.differences.items():
        _say("", f"differences from {source}", *(f"  - {text}" for text in differences))
    _say("")
    _say_table(PARAMETERS, parameter_rows(method))
    if len(method.presets) > 1:
        _say("")
        _say_table(["semantics", "sets"], preset_rows(method))


@cli.command()
def info() -> None:
    """Show version, backends, instruction sets and devices."""
    import platform

    from . import _core, backends
    from .threads import thread_count

    _say(
        f"warpmerge {__version__}, Python {platform.python_version()}, native module built by GCC/Clang "
        f"{_core.compiler()}",
        f"instruction sets: {', '.join(_core.isas())} (best first); threads: {thread_count()}",
        "",
    )
    rows = [[b.name, "yes" if b.available else "no", b.reason or b.summary] for b in backends.BACKENDS]
    _say_table(["backend", "available", ""], rows)
    gpus = backends.gpus()
    if gpus:
        _say("", *gpus)
    try:
        _say("", f"merges use: {backends.choose().name}")
    except MergeError as error:
        _say("", f"merges use: {error}")


@cli.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def demo(directory: Path | None) -> None:
    """Train small models, merge them, and compare their losses (about a minute; needs torch)."""
    from .demo import run

    if not run(directory, echo=lambda text: _say(*text.split("\n"))).ok:
        raise MergeError("no merged model is better than every single model; please report this.")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int] | frozenset[int] = frozenset()) -> str:
    """A table as text. Each column is as wide as its widest cell; columns in `right` are right-aligned. What is not
    printable is escaped, so each row is one line."""
    lines = [[printable(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


class _Progress:
    """A progress bar with bytes per second and time left, on a terminal only."""

    def __init__(self, hidden: bool, what: str = "merging") -> None:
        self._hidden, self._what = hidden or not sys.stderr.isatty(), what
        self._bar: Any = None

    def __enter__(self) -> Callable[[int, int], None] | None:
        return None if self._hidden else self._show

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=self._what, leave=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # paths and tensor names need not be in the terminal's encoding
    try:
        status = cli.main(arguments, prog_name="warpmerge", standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        _complain(*shown.getvalue().rstrip("\n").split("\n"))
        return 2
    except (click.exceptions.Abort, KeyboardInterrupt) as error:  # click wraps Ctrl-C in an Abort
        _complain(str(error.__cause__ or error) or "interrupted.")
        return INTERRUPTED
    except (MergeError, MemoryError, OSError) as error:
        text = f"error: {_text(error)}"  # of a MergeError one line for each fault, in which names are escaped already
        _complain(*(text.split("\n") if isinstance(error, MergeError) else [text]))
        return error.exit_status if isinstance(error, MergeError) else 1
    return status if isinstance(status, int) else 0


def _text(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; pass --memory or fewer --threads."
    if isinstance(error, OSError) and not isinstance(error, MergeError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return str(error)


def _say(*lines: str, err: bool = False) -> None:
    """Prints lines. All that is printed takes this way: names and paths could hold commands to the terminal."""
    click.echo("\n".join(map(printable, lines)), err=err)


def _say_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int] | frozenset[int] = frozenset()
) -> None:
    _say(*table(head, rows, right).split("\n"))


def _complain(*lines: str) -> None:
    _say(*lines, err=True)
