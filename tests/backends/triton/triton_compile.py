"""Compiles the Triton kernels for GPUs that need not be there and prints what the machine code is like, as JSON lines.

A program of its own, because triton compiles nothing once TRITON_INTERPRET is set: see test_triton_compile.py.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_formulas import example
from warpmerge.backends.primitives import Term
from warpmerge.triton_kernels import (
    elect_and_sum,
    formula,
    gram,
    ranks,
    reduce,
    reduce_columns,
    reduce_rows,
    reduce_tensor,
    select,
)

F32, F16, BF16, F64 = 0, 1, 2, 3
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ADDRESS = 1 << 40


def launch(inputs, base, out, *, fp64=False, aligned=True, at_calls=True, outputs=1, policy=0):
    return SimpleNamespace(
        segments=1, chunks=1, models=len(inputs), outputs=outputs, inputs=inputs, base=base, out=out, fp64=fp64,
        policy=policy, aligned=aligned, at_calls=at_calls,
        segment_rows=ADDRESS, chunk_map=ADDRESS, numbers=ADDRESS, rules=ADDRESS, words=ADDRESS,
    )  # fmt: skip


def launches():
    """(name, function that launches, arrays that a vectorised path loads, arrays that it stores)."""
    for name, code in (("bf16", BF16), ("fp32", F32), ("fp16", F16)):
        table = launch((code,) * 3, code, code)
        yield f"elect_and_sum {name}", lambda t=table: elect_and_sum.launch(t, True, ADDRESS), 4, 1
        if code == F16:
            continue
        yield f"elect_and_sum, no election, {name}", lambda t=table: elect_and_sum.launch(t, False, ADDRESS), 4, 1
        yield f"sums {name}", lambda t=table: reduce_tensor.sums(t, ADDRESS, ADDRESS), 2, 0
        yield f"sweep {name}", lambda t=table: select.sweep(t, ADDRESS, ADDRESS, ADDRESS), 2, 0
        pair = launch((code,) * 2, -1, code)
        yield f"gram {name}", lambda t=pair: gram.launch(t, ADDRESS, ADDRESS), 2, 0
    table = launch((BF16,) * 3, BF16, BF16)
    yield "kept sums", lambda t=table: reduce_tensor.kept_sums(t, ADDRESS, 0), 2, 0
    yield "sample", lambda t=table: select.sample(t, ADDRESS), 0, 0
    yield "ties", lambda t=table: select.ties(t, ADDRESS, ADDRESS), 0, 0
    yield "position", lambda t=table: select.position(t, ADDRESS), 0, 0
    table = launch((BF16,) * 8, BF16, BF16)
    yield (
        "elect_and_sum of 8",
        lambda t=table: elect_and_sum.launch(t, True, ADDRESS),
        0,
        0,
    )  # 8-byte loads: fewer registers
    table = launch((F32,) * 8, F32, F32)
    yield "elect_and_sum of 8, fp32", lambda t=table: elect_and_sum.launch(t, True, ADDRESS), 9, 1
    table = launch((BF16,) * 5, -1, BF16)
    yield "gram of 5", lambda t=table: gram.launch(t, ADDRESS, ADDRESS), 0, 0
    table = launch((F64, BF16, F32), F16, BF16, fp64=True, policy=2)
    yield "wide elect_and_sum", lambda t=table: elect_and_sum.launch(t, True, ADDRESS), 0, 0
    table = launch((F64,) * 2, F64, F64, fp64=True)
    yield "wide kept sums", lambda t=table: reduce_tensor.kept_sums(t, ADDRESS, ADDRESS), 2, 0
    yield "wide gram", lambda t=table: gram.launch(t, ADDRESS, ADDRESS), 3, 0
    yield "wide sweep", lambda t=table: select.sweep(t, ADDRESS, ADDRESS, ADDRESS), 2, 0
    table = launch((BF16,) * 3, BF16, BF16, aligned=False)
    yield "misaligned elect_and_sum", lambda t=table: elect_and_sum.launch(t, True, ADDRESS), 0, 0
    yield "shrink", lambda: select.shrink_interval(ADDRESS, ADDRESS, 1, False, False), 0, 0
    yield "locate", lambda: select.locate(ADDRESS, ADDRESS, ADDRESS, 1, 3), 0, 0
    yield "reduce", lambda: reduce.launch(ADDRESS, ADDRESS, 1, 7, ADDRESS), 0, 0
    plain, plain64 = launch((F32,) * 2, -1, F32, outputs=0), launch((F64,), -1, F64, fp64=True, outputs=0)
    for largest, kind in ((False, "sums"), (True, "largest")):
        yield f"rows, {kind}", lambda w=largest: reduce_rows.values(plain, w, ADDRESS), 0, 0
        yield f"wide rows, {kind}", lambda w=largest: reduce_rows.values(plain64, w, ADDRESS), 0, 0
        yield f"row totals, {kind}", lambda w=largest: reduce_rows.totals(ADDRESS, ADDRESS, 1, 1, 2, w, ADDRESS), 0, 0
    for name, table in (("", plain), ("wide ", plain64)):
        yield f"{name}products per row", lambda t=table: reduce_rows.products(t, ADDRESS, 1, 3, ADDRESS), 0, 0
        for term in Term:
            kind = "products per column" if term == Term.PRODUCT else f"column folds, {term.name.lower()}"
            yield f"{name}{kind}", lambda t=table, k=term: reduce_columns.terms(t, ADDRESS, 1, 3, k, ADDRESS), 0, 0
    for largest in (False, True):
        yield (
            f"column totals, {largest}",
            lambda w=largest: reduce_columns.totals(ADDRESS, ADDRESS, 1, 1, w, ADDRESS),
            0,
            0,
        )
    places = example("places", 2)
    for name, longest in (("side by side", 128), ("of 4096", 4096), ("of long rows", 5000)):
        table = launch((BF16,) * 2, BF16, BF16)
        yield f"ranks {name}", lambda t=table, n=longest: ranks.launch(t, places, 0, n), 0, 0
    table = launch((F64,) * 2, F64, F64, fp64=True)
    yield "wide ranks", lambda t=table: ranks.launch(t, places, 0, 5000), 0, 0
    for name, table, code, combine, agree, loads, stores in formulas():
        yield name, lambda a=(table, code, combine, agree): formula.launch(*a, ADDRESS), loads, stores


def formulas():
    """(name, launch, code, combine, agree, loads, stores): see `launches`."""
    examples = ("median", 3), ("middle", 5), ("middle", 8), ("softmax", 3), ("places", 2), ("drawn", 3)
    for name, inputs in (("weighted_sum", 3), ("weighted_sum", 8), *examples):
        for kind, dtype in (("bf16", BF16), ("fp32", F32)):
            table = launch((dtype,) * inputs, dtype, dtype)
            yield f"formula {name} of {inputs}, {kind}", table, example(name, inputs), True, 0, inputs + 1, 1
    table = launch((BF16,) * 3, BF16, BF16, outputs=3)
    yield "formula sweep of 3, bf16", table, example("sweep", 3), True, 0, 4, 3
    for kind, dtype in (("bf16", BF16), ("fp32", F32)):
        table = launch((dtype,) * 3, -1, dtype)
        yield f"formula, agreeing, {kind}", table, example("weighted_sum", 3), True, 3, 3, 1
    table = launch((BF16,) * 3, BF16, F32, outputs=3)
    yield "formula, measured", table, example("ratios", 3), False, 0, 4, 3
    table = launch((BF16,) * 3, BF16, BF16, aligned=False)
    yield "formula, misaligned", table, example("median", 3), True, 0, 0, 0
    table = launch((BF16,) * 3, BF16, F32, at_calls=False)
    yield "formula, drawn from within a call", table, example("drawn", 3), False, 0, 4, 1
    table = launch((F64, BF16, F32), F16, BF16, fp64=True, policy=2)
    for name in ("weighted_sum", "median", "softmax", "places", "drawn"):
        yield f"wide formula {name}", table, example(name, 3, fp64=True), True, 0, 0, 0
    table = launch((BF16,) * 16, BF16, BF16)
    yield "formula middle of 16", table, example("middle", 16), True, 0, 0, 0


def recorded(function):
    """What a host function launches: (kernel, its arguments by name, options)."""
    found = []

    def record(self, *arguments, grid, warmup, **named):
        names = [p.name for p in self.params]
        bound = {**dict(zip(names, arguments, strict=False)), **{k: v for k, v in named.items() if k in names}}
        found.append((self, bound, {k: v for k, v in named.items() if k not in names}))

    original, triton.JITFunction.run = triton.JITFunction.run, record
    try:
        function()
    finally:
        triton.JITFunction.run = original
    return found


def compiled(kernel, bound, options, capability):
    signature, constants, attributes = {}, {}, {}
    for p in kernel.params:
        if p.is_constexpr:
            signature[p.name], constants[p.name] = "constexpr", bound[p.name]
        else:
            assert p.do_not_specialize, f"{p.name} would make the kernel compile anew"
            signature[p.name] = p.annotation_type
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"(REG|LOCAL|STACK|SHARED):(\d+)", text)}


def main():
    capabilities, wanted = [int(c) for c in sys.argv[1].split(",")], sys.argv[2:]
    for name, function, loads, stores in launches():
        if wanted and name not in wanted:
            continue
        for kernel, bound, options in recorded(function):
            for capability in capabilities:
                print(json.dumps(described(kernel, bound, options, capability, name, loads, stores)), flush=True)


def described(kernel, bound, options, capability, name, loads, stores):
    binary = compiled(kernel, bound, options, capability)
    ptx = binary.asm["ptx"]

    def count(pattern):
        return len(re.findall(pattern, ptx))

    return {
        "name": f"{name}, sm_{capability}",
        "arrays": [loads, stores],
        "vectors": [count(r"ld\.global\S*\.(v4\.b32|v2\.b64)"), count(r"st\.global\S*\.(v4\.b32|v2\.b64)")],
        "fused": count(r"\bfma\.r[nzpm]"),
        "approximate": count(r"\.approx|div\.full|\.ftz"),
        "divisions": count(r"div\.rn"),
        "extremes": count(r"\b(min|max)\.\S*f(32|64)"),
        **resources(binary.asm["cubin"]),
    }


if __name__ == "__main__":
    main()
