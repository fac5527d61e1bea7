"""Merged, resized, extracted and converted LoRA files act as they must: golden values are the adapters themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from launcher.about.inspect import describe
from schemas.files.weights import lora_facts, read_header
from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from tests.tiny import stir, tiny_checkpoint
from tests.trainer.adapters.test_every_kind import KINDS, close, options, output
from trainer.adapters import attach, merge_weights
from trainer.families import single_file
from trainer.output import lora_tools
from trainer.output.checkpoints import Base, extract, merge_into
from trainer.output.lora_file import load_weights, save_weights
from trainer.output.lora_source import LoraSource
from trainer.output.lora_tools import merge, resize, to_diffusers, to_kohya
from trainer.output.lora_work import main

SLOW = pytest.mark.slow


def first_quick(*kinds):
    """The first of many is enough for every day."""
    return [kinds[0], *(pytest.param(kind, marks=SLOW) for kind in kinds[1:])]


HEADER = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4", "ss_learning_rate": "0.1"}


@pytest.fixture
def trained(tiny, tmp_path):
    """trained(kind, seed) -> the file of an adapter of that kind on the tiny SD1.5 model."""

    def make(kind, seed=0, name=None, **more):
        models, targets = tiny("sd15")
        torch.manual_seed(seed)
        adapter = attach(models, targets, NetworkOptions(**options(kind, **more)))
        stir(adapter, 0.05 + 0.02 * seed)
        file = tmp_path / (name or f"{kind.replace(' ', '-')}-{seed}.safetensors")
        save_weights(file, adapter.state_dict(), HEADER)
        return file

    return make


@pytest.fixture
def says(tiny):
    """says((file, strength), ...) -> what the tiny model with these LoRAs merged into it says."""

    def said(*files):
        models, targets = tiny("sd15")
        for file, strength in files:
            merge_weights(models, targets, load_weights(file, targets, "sd15"), strength)
        return output(models)

    return said


@pytest.mark.parametrize("kind", first_quick("lycoris tucker", "locon", "lora by blocks", "lycoris scalar"))
def test_an_exact_merge_says_what_both_say(trained, says, tmp_path, kind):
    one, two, out = trained(kind), trained("lora", 1), tmp_path / "both.safetensors"
    made = merge([(LoraSource(one), 0.7), (LoraSource(two), -0.4)], out, rank=None, dtype=None)
    close(says((out, 1.0)), says((one, 0.7), (two, -0.4)))
    assert made.dtype == "float"
    assert max(map(int, made.ranks)) > 4


@pytest.mark.parametrize("kind", first_quick("loha conv", "lokr conv", "lokr whole", "full"))
def test_a_merge_to_a_rank_high_enough_says_what_both_say(trained, says, tmp_path, kind):
    one, two, out = trained(kind), trained("locon", 1), tmp_path / "both.safetensors"
    merge([(LoraSource(one), 0.7), (LoraSource(two), 0.4)], out, rank=400, dtype=None)
    torch.testing.assert_close(says((out, 1.0)), says((one, 0.7), (two, 0.4)), atol=2e-3, rtol=2e-3)
    assert lora_facts(out).algo in ("lora", "full")


@SLOW
def test_sums_of_differences_stay_differences(trained, says, tmp_path):
    one, two, out = trained("full and norms"), trained("full and norms", 1), tmp_path / "both.safetensors"
    merge([(LoraSource(one), 0.5), (LoraSource(two), 0.5)], out, rank=None, dtype=None)
    close(says((out, 1.0)), says((one, 0.5), (two, 0.5)))


@pytest.mark.parametrize(
    ("kind", "word"),
    [("dora", "DoRA"), *(pytest.param(*pair, marks=SLOW) for pair in (
        ("oft", "OFT"), ("glora", "GLoRA"), ("ia3", "IA"), ("loha", "LoHa")))],
)  # fmt: skip
def test_kinds_without_a_sum_are_refused_by_name(trained, tmp_path, kind, word):
    with pytest.raises(ConfigError, match=word):
        merge([(LoraSource(trained(kind)), 1.0)], tmp_path / "out.safetensors", rank=None, dtype=None)
    assert not (tmp_path / "out.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


QUICK = ("dora on input", "full and norms")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_merged_into_a_checkpoint_it_is_the_adapter(tiny, trained, says, tmp_path, kind):
    file, model = trained(kind), tiny_checkpoint(tmp_path)
    out = tmp_path / "merged.safetensors"
    made = merge_into(Base(model), [(LoraSource(file), 0.7)], out)
    close(output(loaded(out, tiny)), says((file, 0.7)))
    before, after = read_header(model), read_header(out)
    assert {name: (one.dtype, one.shape) for name, one in before.tensors.items()} == {
        name: (one.dtype, one.shape) for name, one in after.tensors.items()
    }
    assert "merged_from" in str(after.metadata)
    assert made.notes == []


def loaded(file, tiny):
    """The checkpoint as the trainer reads it."""
    models, _ = tiny("sd15")
    checkpoint = single_file.open_checkpoint(file)
    for part in single_file.parts(checkpoint, "sd15", with_vae=False):
        module = single_file.load(checkpoint, part, dtype=torch.float32)
        if part.name == "unet":
            models.unet = module
        else:
            models.text_encoders = (module,)
    return models


@SLOW
def test_sdxl_with_its_fused_projections(tiny, tmp_path):
    models, targets = tiny("sdxl")
    torch.manual_seed(0)
    adapter = attach(models, targets, NetworkOptions(**options("lora")))
    stir(adapter, 0.05)
    file, model = tmp_path / "xl.safetensors", tiny_checkpoint(tmp_path, "sdxl")
    save_weights(file, adapter.state_dict(), {"ss_base_model_version": "sdxl_base_v1-0"})
    out, back = tmp_path / "merged.safetensors", tmp_path / "back.safetensors"
    merge_into(Base(model), [(LoraSource(file), 1.0)], out)
    extract(Base(out), Base(model), back, rank=4, conv_rank=None, dtype="F32")
    want, found = load_file(file), load_file(back)
    keys = {name.partition(".")[0] for name in found}
    assert keys == {name.partition(".")[0] for name in want}
    for key in keys:
        torch.testing.assert_close(product(found, key), product(want, key), atol=1e-5, rtol=1e-3)


def product(weights, key):
    up, down = weights[f"{key}.lora_up.weight"], weights[f"{key}.lora_down.weight"]
    return (up.flatten(1) @ down.flatten(1)) * float(weights[f"{key}.alpha"]) / down.shape[0]


def test_extracting_a_merged_lora_gives_it_back(trained, tmp_path):
    file, model, out, back = (trained("locon"), tiny_checkpoint(tmp_path), tmp_path / "m.safetensors",
                              tmp_path / "back.safetensors")  # fmt: skip
    merge_into(Base(model), [(LoraSource(file), 1.0)], out)
    made = extract(Base(out), Base(model), back, rank=4, conv_rank=2, dtype="F32")
    want, found = load_file(file), load_file(back)
    assert {name.partition(".")[0] for name in found} == {name.partition(".")[0] for name in want}
    for key in {name.partition(".")[0] for name in want}:
        torch.testing.assert_close(product(found, key), product(want, key), atol=1e-5, rtol=1e-3)
    assert made.notes == []
    assert made.kept_share["whole"] > 0.9999


def test_what_a_lora_cannot_hold_is_told(trained, tmp_path):
    file, model = trained("full and norms"), tiny_checkpoint(tmp_path)
    out = tmp_path / "m.safetensors"
    merge_into(Base(model), [(LoraSource(file), 1.0)], out)
    made = extract(Base(out), Base(model), tmp_path / "back.safetensors", rank=2, conv_rank=0, dtype=None)
    assert "not in it" in made.notes[0]
    assert made.kept_share["whole"] < 0.99


@SLOW
def test_checkpoints_that_are_alike_have_no_difference(tmp_path):
    model = tiny_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="same weights"):
        extract(Base(model), Base(model), tmp_path / "o.safetensors", rank=4, conv_rank=None, dtype=None)


@pytest.mark.parametrize("keep", first_quick(0.9, 0.5, 0.999))
def test_resizing_keeps_the_stated_share_and_no_rank_more(trained, tmp_path, keep):
    file, out = trained("locon", network_dim=12), tmp_path / "small.safetensors"
    made = resize(LoraSource(file), out, rank=None, keep=keep, dtype=None)
    want, found = load_file(file), load_file(out)
    for key in {name.partition(".")[0] for name in found}:
        whole, kept = product(want, key), product(found, key)
        values = torch.linalg.svdvals(whole.double())
        rank = found[f"{key}.lora_down.weight"].shape[0]
        assert kept.norm() / whole.norm() >= keep - 1e-5
        assert rank == 1 or values[: rank - 1].norm() / values.norm() < keep
        best = values[rank:].norm()
        assert (whole - kept).norm() <= best + 1e-4 * whole.norm()
        ratio = float(found[f"{key}.alpha"]) / rank
        assert ratio == pytest.approx(float(want[f"{key}.alpha"]) / want[f"{key}.lora_down.weight"].shape[0])
    assert made.kept_share["lowest"] >= keep - 1e-6


@pytest.mark.parametrize(
    "kind", first_quick("dora", "lycoris tucker", "loha conv", "lokr conv", "lokr whole", "full and norms")
)
def test_resizing_to_a_rank_high_enough_changes_nothing(trained, says, tmp_path, kind):
    file, out = trained(kind), tmp_path / "same.safetensors"
    made = resize(LoraSource(file), out, rank=400, keep=None, dtype=None)
    torch.testing.assert_close(says((out, 0.8)), says((file, 0.8)), atol=2e-3, rtol=2e-3)
    assert made.kept_share["whole"] > 0.9999


def test_header_is_kept_and_extended(trained, tmp_path):
    one, two = trained("lora"), trained("lora", 1)
    out, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    merge([(LoraSource(one), 1.0), (LoraSource(two), 0.5)], out, rank=None, dtype="F16")
    resize(LoraSource(out), small, rank=3, keep=None, dtype=None)
    header = read_header(small).metadata
    assert header["ss_learning_rate"] == "0.1"
    assert header["ss_network_dim"] == "3"
    work = json.loads(header["kohyakit_work"])
    assert [entry["did"] for entry in work] == ["merge", "resize"]
    assert [entry["file"] for entry in work[0]["of"]] == [one.name, two.name]
    assert work[0]["weights"] == [1.0, 0.5]
    facts = describe(str(small))
    assert facts["hashes"]["model_hash_matches"]
    assert facts["health"]["ok"]
    assert facts["dim"] == 3
    assert set(facts["dtypes"]) == {"F16", "F32"}  # alpha is exact


@pytest.mark.parametrize("form", first_quick("diffusers", "peft"))
def test_to_other_names_and_back(trained, says, tmp_path, form):
    file, there, back = trained("locon"), tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    to_diffusers(LoraSource(file), there, dtype=None, peft=form == "peft")
    parts = [there] if form == "diffusers" else sorted(there.iterdir())
    for number, part in enumerate(parts):
        back = tmp_path / f"back-{number}.safetensors"
        to_kohya(LoraSource(part), back, dtype=None)
    if form == "diffusers":
        close(says((back, 1.0)), says((file, 1.0)))
    else:
        found = {name.partition(".")[0] for one in tmp_path.glob("back-*") for name in load_file(one)}
        assert found == {name.partition(".")[0] for name in load_file(file)}


@pytest.mark.parametrize("kind", first_quick("dora", "locon"))
def test_peft_itself_reads_the_folder(tiny, trained, says, tmp_path, kind):
    from peft import PeftModel

    file, there = trained(kind, network_train_unet_only=True), tmp_path / "there"
    to_diffusers(LoraSource(file), there, dtype=None, peft=True)
    models, _ = tiny("sd15")
    models.unet = PeftModel.from_pretrained(models.unet, there / "unet")
    torch.testing.assert_close(output(models), says((file, 1.0)), atol=2e-3, rtol=2e-3)


@SLOW
@pytest.mark.parametrize(("kind", "word"), [("loha", "LoHa"), ("dora on input", "wd_on_output"), ("oft", "OFT")])
def test_forms_that_do_not_exist_are_refused_by_name(trained, tmp_path, kind, word):
    with pytest.raises(ConfigError, match=word):
        to_diffusers(LoraSource(trained(kind)), tmp_path / "o.safetensors", dtype=None, peft=False)


def test_too_large_for_half_precision(trained, tmp_path):
    file = trained("lora")
    weights = {name: tensor * (1e4 if "lora_" in name else 1) for name, tensor in load_file(file).items()}
    save_weights(file, weights, HEADER)
    with pytest.raises(ConfigError, match="too large for fp16"):
        merge([(LoraSource(file), 1e4)], tmp_path / "o.safetensors", rank=None, dtype="F16")
    assert not (tmp_path / "o.safetensors").exists()


def test_one_module_at_a_time_is_in_memory(trained, tmp_path, monkeypatch):
    """No tensor of a module that is done is alive when the next is read."""
    import gc

    file, calls, alive = trained("lora", network_dim=16, network_train_unet_only=True), [], []
    own = LoraSource.own

    def counted(self, key):
        calls.append(key)
        if len(calls) in (2, 60):  # looking at all objects takes long
            alive.append(sum(type(one) is torch.Tensor and one.numel() > 64 for one in gc.get_objects()))
        return own(self, key)

    monkeypatch.setattr(LoraSource, "own", counted)
    resize(LoraSource(file), tmp_path / "o.safetensors", rank=2, keep=None, dtype=None)
    assert alive[1] <= alive[0] + 4


def test_the_tool_says_it_in_json(trained, tmp_path, capsys):
    file, out = trained("lora"), tmp_path / "o.safetensors"
    wish = {"do": "resize", "files": [str(file)], "output": str(out), "json": True, "rank": 2, "keep": None}
    assert main([json.dumps(wish)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert said["dtype"] == "float"
    assert said["ranks"] == {"2": said["modules"]}
    assert main([json.dumps({**wish, "files": [str(trained("oft"))]})]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["code"] == "no-low-rank"


def test_family_of_tiny_files_is_found(trained):
    assert LoraSource(trained("lora")).family == "sd15"
    assert lora_tools.as_lora("oft_unet_x") == "lora_unet_x"
