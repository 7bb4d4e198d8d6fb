"""Every example runs as it stands, beside the models that it names, and computes what its comments say."""

from pathlib import Path

import numpy as np
import oracles
import oracles_dense
import oracles_elementwise
import oracles_gram
import oracles_rows
import pytest
import torch
import yaml
from helpers import array, looks_complete, read_model, run_cli, write_model
from kernel_helpers import assert_same_bits
from oracles import assert_accurate

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yml"))
LAYERS, WIDTH = 5, 16
SEED = 1


def tensors(seed):
    """A tiny Llama: the base for seed 0, else a fine-tune of it."""
    shapes = {"model.embed_tokens.weight": (24, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (24, WIDTH)}
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * WIDTH, WIDTH)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (WIDTH,)
    base, tuned = np.random.default_rng(0), np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        values = base.standard_normal(shape) * 0.05
        made[name] = (values + (seed > 0) * tuned.standard_normal(shape) * 0.02).astype(np.float32)
    return made


MODELS = {name: tensors(seed) for seed, name in enumerate(("base", "math", "code", "chat"))}
# What a trainer would leave beside a model: squares of gradients, and products of the inputs of linear layers.
FISHER = {
    model: {name: (t * np.roll(t, 1)) ** 2 + np.float32(1e-12) for name, t in made.items()}
    for model, made in MODELS.items()
}
GRAM = {
    model: {name: t.T @ t + np.eye(t.shape[1], dtype="f4") * 1e-3 for name, t in made.items() if "proj" in name}
    for model, made in MODELS.items()
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name, made in MODELS.items():
        write_model(tmp_path / name, made, shards=2)
        write_model(tmp_path / f"{name}_fisher", FISHER[name], config=None)
        write_model(tmp_path / f"{name}_gram", GRAM[name], config=None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def layer(name):
    """Place on the layer axis, from 0 to 1; 0 outside of any layer."""
    parts = name.split(".")
    return int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else 0.0


def gradient(name, values):
    return float(np.interp(layer(name) * (len(values) - 1), range(len(values)), values))


def linear(name, base, math, code, chat):
    return oracles.linear([math, code, chat], weight=[0.5, 0.3, 0.2])


def task_arithmetic(name, base, math, code, chat):
    return oracles.task_arithmetic([math, code, chat], base, weight=[1.0, 0.8, -0.5], lambda_=0.7)


def ties(name, base, math, code, chat):
    whole = "embed_tokens" in name or "norm" in name
    density = [0.5, 0.3, 1.0 if whole else 0.2]
    return oracles.ties([math, code, chat], base, weight=[1.0, 0.7, 0.5], density=density)


def dare_ties(name, base, math, code, chat):
    density = [0.6, gradient(name, [0.9, 0.4])]
    options = {"weight": [0.5, 0.3], "density": density, "rescale": "inverse_density"}
    return oracles.dare_ties([math, code], base, seed=SEED, name=name, **options)


def slerp(name, base, math, code, chat):
    t = 0.5
    if "self_attn" in name:
        t = gradient(name, [0, 0.5, 0.3, 0.7, 1])
    elif "mlp" in name:
        t = gradient(name, [1, 0.5, 0.7, 0.3, 0])
    return oracles.slerp([math, chat], t=t)


def convert(name, base, math, code, chat):
    return oracles.passthrough([chat], scale=1.0)


def nuslerp(name, base, math, code, chat):
    return oracles_gram.nuslerp([math, chat], base, weight=[0.7, gradient(name, [0.3, 0.6])])


def multislerp(name, base, math, code, chat):
    return oracles_gram.multislerp([math, code, chat], base, weight=[0.5, 0.3, 0.2])


def karcher(name, base, math, code, chat):
    return oracles_gram.karcher([math, code, chat], max_iter=100, tol=1e-9)


def model_stock(name, base, math, code, chat):
    return oracles_gram.model_stock([math, code, chat], base)


def expo(name, base, math, code, chat):
    return oracles_gram.expo([chat], base, alpha=0.3)


def ema(name, base, math, code, chat):
    return oracles_gram.ema([math, code, chat], decay=0.6)


def geometric_median(name, base, math, code, chat):
    return oracles_gram.geometric_median([math, code, chat], weight=[1, 1, 0.5])


def median(name, base, math, code, chat):
    return oracles_elementwise.median([math, code, chat])


def trimmed_mean(name, base, math, code, chat):
    return oracles_elementwise.trimmed_mean([math, code, chat, base], beta=0.25)


def nearswap(name, base, math, code, chat):
    return oracles_elementwise.nearswap([chat], base, t=0.01)


def magmax(name, base, math, code, chat):
    return oracles_elementwise.magmax([math, code, chat], base)


def ram(name, base, math, code, chat):
    return oracles_elementwise.ram([math, code, chat], base, epsilon=0.01)


def ramplus_tl(name, base, math, code, chat):
    return oracles_elementwise.ramplus_tl([math, code, chat], base, epsilon=0.01)


def consensus_ta(name, base, math, code, chat):
    options = {"k": 2, "mask_lambda": [0.4, 0.6, 0.4], "lambda_": 0.7}
    return oracles_elementwise.consensus_ta([math, code, chat], base, **options)


def emr(name, base, math, code, chat):
    return oracles_elementwise.emr([math, code, chat], base, task=2)


def breadcrumbs(name, base, math, code, chat):
    options = {"weight": [1.0, 0.7, 0.5], "density": 0.6, "gamma": [0.02, 0.1, 0.02], "lambda_": 0.8}
    return oracles_elementwise.breadcrumbs([math, code, chat], base, **options)


def breadcrumbs_ties(name, base, math, code, chat):
    options = {"weight": 1, "density": gradient(name, [0.8, 0.4]), "gamma": 0.05, "normalize": True}
    return oracles_elementwise.breadcrumbs_ties([math, code, chat], base, **options)


def sce(name, base, math, code, chat):
    return oracles_elementwise.sce([math, code, chat], base, select_topk=0.5)


def della(name, base, math, code, chat):
    density = [0.5, gradient(name, [0.7, 0.4])]
    options = {"weight": [0.6, 0.4], "density": density, "epsilon": [0.3, 0.2], "lambda_": 1.1}
    return oracles_rows.della([math, code], base, seed=SEED, name=name, **options)


def della_linear(name, base, math, code, chat):
    options = {"weight": [0.7, 0.5], "density": 0.6, "epsilon": 0.2, "rescale": "inverse_probability"}
    return oracles_rows.della_linear([math, chat], base, seed=SEED, name=name, **options)


def arcee_fusion(name, base, math, code, chat):
    return oracles_rows.arcee_fusion([chat], base)


def pcb(name, base, math, code, chat):
    return oracles_rows.pcb([math, code, chat], base, ratio=0.2, lambda_=1.2)


def widen(name, base, math, code, chat):
    return oracles_rows.widen([math, code], base, name=name)


def dense(base, delta):
    """What is right to rounding as a matrix, element by element to the rounding of the largest ones."""
    value = oracles.exact(base) + delta.reshape(-1)
    return oracles.Expected(value, np.full_like(value, np.abs(delta).max()))


def tsv(name, base, math, code, chat):
    return dense(base, oracles_dense.tsv([math, code, chat], base, lambda_=0.9))


def iso_c(name, base, math, code, chat):
    return dense(base, oracles_dense.iso_c([math, code, chat], base, lambda_=0.5, cutoff=1e-4))


def iso_cts(name, base, math, code, chat):
    return dense(base, oracles_dense.iso_cts([math, code, chat], base, common=0.6))


def knots(name, base, math, code, chat):
    return dense(base, oracles_dense.knots([math, code], base, weight=[1.0, 0.7], density=0.3))


def wudi(name, base, math, code, chat):
    return dense(base, oracles_dense.wudi([math, code, chat], base))


def fisher(name, base, math, code, chat):
    known = [torch.from_numpy(FISHER[m][name]) for m in ("math", "code")]
    mean = oracles_dense.fisher([math, code], fisher=known, weight=[1.0, 0.5], normalize=True)
    return dense(base * 0, mean)


def regmean(name, base, math, code, chat):
    grams = [torch.from_numpy(GRAM[m][name]) if name in GRAM[m] else None for m in ("math", "code")]
    return dense(base * 0, oracles_dense.regmean([math, code], gram=grams, alpha=0.9))


EXPECTED = {
    f.__name__: f
    for f in (
        linear,
        task_arithmetic,
        ties,
        dare_ties,
        slerp,
        convert,
        nuslerp,
        multislerp,
        karcher,
        model_stock,
        expo,
        ema,
        geometric_median,
        median,
        trimmed_mean,
        nearswap,
        magmax,
        ram,
        ramplus_tl,
        consensus_ta,
        emr,
        breadcrumbs,
        breadcrumbs_ties,
        sce,
        della,
        della_linear,
        arcee_fusion,
        pcb,
        widen,
        tsv,
        iso_c,
        iso_cts,
        knots,
        wudi,
        fisher,
        regmean,
    )
}
SPHERICAL = {"slerp", "nuslerp", "multislerp", "karcher"}
DTYPES = {"ties": torch.bfloat16, "convert": torch.float16}


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, workplace):
    done = run_cli("merge", path, "merged", "--seed", SEED, "--no-sync")
    assert (done.status, done.stderr) == (0, "")
    assert looks_complete(workplace / "merged")
    merged = read_model(workplace / "merged")
    assert merged.keys() == MODELS["base"].keys()
    dtype = DTYPES.get(path.stem, torch.float32)
    for name, raw in merged.items():
        operands = [torch.from_numpy(MODELS[m][name]) for m in ("base", "math", "code", "chat")]
        got = torch.from_numpy(array(raw).copy()).to(dtype)
        assert tuple(got.shape) == operands[0].shape
        share = oracles.SPHERICAL if path.stem in SPHERICAL else None
        assert_accurate(got, EXPECTED[path.stem](name, *operands), share=share)
        if path.stem == "convert":
            assert_same_bits(got, operands[3].half())
    assert run_cli("verify", "merged").status == 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_explains_itself(path, workplace):
    """A comment says what it does, with the command to run it; `plan` agrees that it can run."""
    text = path.read_text()
    assert text.startswith("# ") and f"warpmerge merge {path.name} " in text
    assert all(len(line) <= 120 for line in text.splitlines())
    models = {m["model"] for m in yaml.safe_load(text)["models"]}
    assert models <= set(MODELS)
    done = run_cli("plan", path)
    assert done.status == 0 and all(m in done.stdout for m in models)
