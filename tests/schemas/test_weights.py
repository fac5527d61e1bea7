from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ConfigError
from schemas.files.weights import (
    checkpoint_family,
    family_of,
    lora_facts,
    read_header,
    read_scalar,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8}


def header_of(shapes, dtype="F32", metadata=None):
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, end


def make(path, shapes, data=None, dtype="F32", metadata=None):
    """A safetensors file without any library; zeros unless `data` is given."""
    head, size = header_of(shapes, dtype, metadata)
    with path.open("wb") as stream:
        stream.write(head + (data or b""))
        stream.truncate(len(head) + size)
    return path


def code(call, path):
    with pytest.raises(ConfigError) as caught:
        call(path)
    return caught.value.problems[0].code


@pytest.fixture
def file(tmp_path):
    return tmp_path / "m.safetensors"


def test_header_gives_names_shapes_places_and_metadata(file):
    header = read_header(make(file, {"a": (2, 3), "b": ()}, metadata={"x": "1"}))
    assert header.metadata == {"x": "1"}
    assert header.tensors["a"].shape == (2, 3)
    assert (header.tensors["b"].end, header.size) == (header.tensors["a"].end + 4, file.stat().st_size)


def test_it_reads_what_the_library_writes(file):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, 3).bfloat16(), "b": torch.tensor(7)}, file, metadata={"k": "v"})
    header = read_header(file)
    assert (header.tensors["a"].dtype, header.tensors["a"].shape, header.metadata["k"]) == ("BF16", (2, 3), "v")
    assert read_scalar(header, "b") == 7


@pytest.mark.parametrize(
    ("dtype", "raw", "value"),
    [
        ("F16", struct.pack("<e", 1.5), 1.5),
        ("BF16", struct.pack("<f", 1.5)[2:], 1.5),
        ("F32", struct.pack("<f", -8), -8),
        ("F64", struct.pack("<d", 0.1), 0.1),
        ("I64", struct.pack("<q", 16), 16),
    ],
)
def test_scalars_of_every_type(file, dtype, raw, value):
    assert read_scalar(read_header(make(file, {"alpha": ()}, raw, dtype)), "alpha") == value


def test_a_tensor_of_many_numbers_is_no_scalar(file):
    header = read_header(make(file, {"alpha": (2,)}))
    assert code(lambda _: read_scalar(header, "alpha"), file) == "bad-tensor"


def test_missing_file_and_folder_are_no_file(tmp_path):
    assert code(read_header, tmp_path / "none.safetensors") == "no-file"
    assert code(read_header, tmp_path) == "not-a-regular-file"


@pytest.mark.parametrize("cut", [1, 10, 3000])
def test_a_cut_file_says_what_is_missing(file, cut):
    whole = make(file, {"a": (1000,)}).read_bytes()
    file.write_bytes(whole[:-cut])
    with pytest.raises(ConfigError, match=f"{len(whole)} bytes expected, {len(whole) - cut} found"):
        read_header(file)


def test_a_file_cut_inside_its_header_is_truncated(file):
    file.write_bytes(make(file, {"a": (1000,)}).read_bytes()[:30])
    assert code(read_header, file) == "truncated-file"


def test_an_empty_file_is_truncated(file):
    file.write_bytes(b"")
    assert code(read_header, file) == "truncated-file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>" + b" " * 99, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        (b"PK\x03\x04" + b"x" * 99, "PyTorch"),
        (struct.pack("<Q", 1 << 40) + b"{}", "not a safetensors"),
        (struct.pack("<Q", 3) + b"{]}", "damaged"),
        (struct.pack("<Q", 9) + b'{"a": []}', "damaged"),
    ],
)
def test_other_files_are_told_apart(file, content, said):
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_header(file)
    assert caught.value.problems[0].code == "not-safetensors"


@pytest.mark.parametrize("offsets", [[0, 12], [4, 12], [-4, 4], [8, 0], [0, 8.0]])
def test_wrong_offsets_are_refused(file, offsets):
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 12)
    assert code(read_header, file) == "not-safetensors"


def test_trailing_bytes_are_refused(file):
    file.write_bytes(make(file, {"a": (2,)}).read_bytes() + b"x")
    assert code(read_header, file) == "not-safetensors"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_problem(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
        problems = []
    except ConfigError as fault:
        problems = fault.problems
    assert all(problem.fix for problem in problems)


UNET = "model.diffusion_model.input_blocks.0.0.weight"
LABEL = "model.diffusion_model.label_emb.0.0.weight"
CONTEXT = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({UNET: (1,), "cond_stage_model.transformer.text_model.x": (1,)}, "sd15"),
        ({UNET: (1,), "cond_stage_model.model.x": (1,)}, "sd2"),
        ({UNET: (1,), "conditioner.embedders.1.model.x": (1,), "conditioner.embedders.0.x": (1,)}, "sdxl"),
        ({UNET: (1,), "conditioner.embedders.0.model.x": (1,)}, "sdxl-refiner"),
        ({UNET: (1,), LABEL: (1280, 2816)}, "sdxl"),
        ({UNET: (1,), LABEL: (1536, 2560)}, "sdxl-refiner"),
        ({UNET: (1,), CONTEXT: (1280, 768)}, "sd15"),
        ({UNET: (1,), CONTEXT: (1280, 1024)}, "sd2"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "sd3"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "flux"),
        ({"lora_unet_x.lora_down.weight": (4, 4)}, "lora"),
        ({"first_stage_model.x": (1,)}, "unknown"),
    ],
)
def test_families_of_checkpoints(file, shapes, family):
    assert checkpoint_family(make(file, shapes)) == family
    assert family_of(shapes) == family


def test_pickled_files_are_unknown(tmp_path):
    (tmp_path / "m.ckpt").write_bytes(b"PK")
    assert checkpoint_family(tmp_path / "m.ckpt") == "unknown"


def test_a_missing_checkpoint_is_no_file(tmp_path):
    assert code(checkpoint_family, tmp_path / "m.ckpt") == "no-file"


def golden_shapes(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "family", "modules", "conv"),
    [
        ("keys_sd15_lora_dim16", "sd15", 264, None),
        ("keys_sd15_locon_dim16_conv8", "sd15", 350, 8),
        ("keys_sdxl_lora_dim16", "sdxl", 986, None),
        ("keys_sdxl_locon_dim16_conv8", "sdxl", 1052, 8),
    ],
)
def test_facts_of_kohyas_files(file, name, family, modules, conv):
    facts = lora_facts(make(file, golden_shapes(name)))
    assert (facts.family, facts.style, facts.algo) == (family, "kohya", "lora")
    assert (facts.dim, facts.conv_dim, facts.modules) == (16, conv, modules)
    assert facts.text_encoder
    assert facts.unet


def test_alpha_is_the_most_frequent_one_of_the_rank(file):
    shapes = {f"lora_unet_{n}.alpha": () for n in "abc"} | {f"lora_unet_{n}.lora_down.weight": (8, 4) for n in "abc"}
    facts = lora_facts(make(file, shapes, struct.pack("<3f", 4, 4, 1)))
    assert (facts.dim, facts.alpha, facts.text_encoder) == (8, 4.0, False)


BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("shapes", "style", "family"),
    [
        ({f"unet.{BLOCK}.lora_A.weight": (4, 768)}, "diffusers", "sd15"),
        ({f"unet.{BLOCK}.lora.down.weight": (4, 2048)}, "diffusers", "sdxl"),
        ({f"base_model.model.{BLOCK}.lora_A.weight": (4, 1024)}, "peft", "sd2"),
        ({f"{BLOCK}.lora_A.weight": (4, 2048)}, "peft", "sdxl"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, "diffusers", "flux"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, "diffusers", "sd3"),
        ({"lora_unet_x.hada_w1_b": (4, 8)}, "lycoris", "unknown"),
        ({"lora_te1_text_model_x.lokr_w2_b": (4, 8)}, "lycoris", "sdxl"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)}, "kohya", "sd15"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 32, 1, 1)}, "kohya", "sd15"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 32)}, "kohya", "sd2"),
        ({"strange.lora_down.weight": (4, 32)}, "unknown", "unknown"),
    ],
)
def test_styles_and_families_of_loras(file, shapes, style, family):
    facts = lora_facts(make(file, shapes))
    assert (facts.style, facts.family, facts.dim) == (style, family, 4)


def test_metadata_decides_where_names_do_not(file):
    shapes = {"lora_unet_x.lora_down.weight": (4, 8)}
    assert lora_facts(make(file, shapes, metadata={"ss_base_model_version": "sdxl_base_v1-0"})).family == "sdxl"


def test_a_base_model_is_no_lora(file):
    assert code(lora_facts, make(file, {UNET: (1,)})) == "not-lora"


def test_reading_a_header_never_reads_tensors(file):
    """A sparse file of 64 GB is judged at once."""
    make(file, {"lora_unet_x.lora_down.weight": (1 << 17, 1 << 17)})
    assert lora_facts(file).dim == 1 << 17
