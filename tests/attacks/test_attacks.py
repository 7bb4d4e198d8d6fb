"""Every attack, carried out: the result is right, or the user sees an error that names the hostile file."""

import config_attacks
import header_attacks
import index_attacks
import journal_attacks
import manifest_attacks
import pytest
import recipe_attacks
from attack import ATTACKS
from attack_world import CHECKS, build, prepare
from helpers import read_safetensors
from safetensors import SafetensorError, deserialize
from warpmerge.errors import LONGEST, CheckpointError, UsageError

CORPUS = (config_attacks, header_attacks, index_attacks, journal_attacks, manifest_attacks, recipe_attacks)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.timeout(20)
def test_attack(tmp_path, name):
    attack = ATTACKS[name]
    prepare(tmp_path, attack.target)
    attack.make(tmp_path)
    if attack.refused is None:
        CHECKS[attack.target](tmp_path)
        return
    with pytest.raises((CheckpointError, UsageError)) as caught:
        CHECKS[attack.target](tmp_path)
    message = str(caught.value)
    for text in attack.refused:
        assert text in message
    assert attack.file in message
    assert len(message) < LONGEST + 100


@pytest.mark.parametrize("target", CHECKS)
def test_without_an_attack_all_is_well(tmp_path, target):
    """Every check passes on the world that attackers find, so none of them fails for another reason."""
    if target == "recipe":
        (tmp_path / "recipe.yml").write_text(recipe_attacks.good(tmp_path))
    prepare(tmp_path, target) if target != "header" else build(tmp_path)
    CHECKS[target](tmp_path)


def as_the_library_reads(path):
    try:
        found = deserialize(path.read_bytes())
    except SafetensorError:
        return None
    return {name: (f["dtype"], tuple(f["shape"]), bytes(f["data"])) for name, f in found}


def test_the_safetensors_library_agrees_about_headers(tmp_path):
    """It reads what warpmerge reads. What else it reads is listed with reasons."""
    stricter = set()
    (tmp_path / "model").mkdir()
    for attack in ATTACKS.values():
        if attack.target != "header":
            continue
        attack.make(tmp_path)
        found = as_the_library_reads(tmp_path / attack.file)
        if attack.refused is None:
            assert found == read_safetensors(tmp_path / attack.file)
        elif found is not None:
            stricter.add(attack.name)
    assert stricter == set(header_attacks.STRICTER)
