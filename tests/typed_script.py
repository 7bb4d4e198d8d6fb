"""A user's script, checked as strictly as mypy can: what is public has types that a stranger's code can rely on."""

import warpmerge as wm


def names() -> list[str]:
    return [method.name for method in wm.list_methods() if method.built_in]


def reasons() -> dict[str, str | None]:
    return {backend.name: backend.reason for backend in wm.list_backends()}


def merged(recipe: str, out: str) -> int:
    try:
        report: wm.MergeReport = wm.merge(recipe, out, dry_run=True)
    except wm.UsageError as error:
        print(error)
        return error.exit_status
    except (ValueError, OSError):
        return 1
    return report.bytes_written


def changed(out: str, base: str) -> list[tuple[str, float | None]]:
    check: wm.VerifyReport = wm.verify(out, sample="5%", recompute=3, models={"a": base}, seed=1)
    report: wm.DiffReport = wm.diff(out, base)
    return [] if check.problems or report.equal else [(found.name, found.relative) for found in report.differing]


@wm.method("halved", base=wm.Base.REFERENCE)
def halved(tensor: wm.TensorInfo, parameters: dict[str, float]) -> wm.requests.WeightedSum:
    """Half of the sum of the task vectors."""
    return wm.requests.WeightedSum((0.5,) * tensor.models, on_deltas=True)
