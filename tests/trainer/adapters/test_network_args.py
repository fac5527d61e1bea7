from __future__ import annotations

import argparse
import math
import shlex
from collections import Counter
from dataclasses import fields

import pytest

from schemas import TrainConfig
from schemas.config import from_flat
from schemas.derive import add_flags
from schemas.network_args import network_values
from schemas.options import NetworkOptions
from schemas.problems import errors
from schemas.rules.network import idle_network_args
from trainer.adapters.adapter import find_modules
from trainer.adapters.lora import planned_shapes
from trainer.adapters.network_args import arguments, lora_args

CUT = "up_lr_weight=" + ",".join(["1"] * 14)  # the reference crashes on a long list on one side; here it is cut


def options_of(words):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    config, _ = from_flat(vars(parser.parse_args(shlex.split(words))))
    return NetworkOptions(**{field.name: getattr(config, field.name) for field in fields(NetworkOptions)})


def described(kind, shape):
    return f"{kind} dim={shape.rank} alpha={shape.alpha:g}"


def test_networks_are_those_of_the_reference(full, golden):
    for case in golden("network")["cases"]:
        if "refused" in case:
            continue
        (models, targets), options = full[case["model"]], options_of(case["args"])
        args = lora_args(options, case["model"])
        shapes = planned_shapes(targets, options, args)
        made = [target for target in targets if target.key in shapes]
        blocks = {}
        for target in made:
            if target.part == "unet":
                blocks.setdefault(str(target.block), Counter())[described(target.kind, shapes[target.key])] += 1
        assert blocks == case["unet_blocks"], case["args"]
        texts = Counter(f"lora_{target.part}" for target in made if target.part != "unet")
        assert texts == case["per_text_encoder"]
        size = {key: base.weight for key, base in find_modules(models, made).items()}
        elements = sum(shapes[key].rank * (math.prod(w.shape[1:]) + w.shape[0]) for key, w in size.items())
        assert elements == case["trainable_elements"], case["args"]
        wanted = case["block_lr_weight"]
        assert args.lr_weight == (None if wanted is None else pytest.approx(wanted))
        dropouts = [options.network_dropout, args.rank_dropout or None, args.module_dropout or None]
        assert dropouts == case["dropouts"]


def test_what_the_reference_refuses_is_refused(golden):
    for case in golden("network")["cases"]:
        if "refused" in case and CUT not in case["args"]:
            assert errors(network_values(options_of(case["args"]), case["model"])[1]), case["args"]


def test_long_list_is_cut():
    args = lora_args(NetworkOptions(network_args=(CUT,)), "sd15")
    assert args.lr_weight == (1.0,) * 25


def test_unknown_names_do_nothing_and_words_that_are_no_pair_are_refused():
    """Trap T22: the reference passes unknown names on and ignores them; the rules warn."""
    assert arguments(NetworkOptions(network_args=("convdim=8", "conv_dim=4")))["conv_dim"] == 4
    _, problems = network_values(NetworkOptions(network_args=("convdim=8", "alfa", "conv_dim=4")))
    assert [problem.code for problem in problems] == ["not-name-value"]


def test_values_are_typed_and_what_is_empty_is_not_given():
    options = NetworkOptions(network_args=("conv_dim = 4", "conv_alpha=", "rank_dropout=None"))
    assert arguments(options) == {"conv_dim": 4}


@pytest.mark.parametrize("word", ["conv_dim=x", "conv_dim=-1", "conv_alpha=nan", "rank_dropout=1", "block_dims=1,x"])
def test_bad_values_are_refused(word):
    (problem,) = network_values(NetworkOptions(network_args=(word,)), "sd15")[1]
    assert problem.severity == "error"
    assert problem.must.startswith(word.partition("=")[0])


@pytest.mark.parametrize("word", ["dropout=0.5", "block_alphas=" + ",".join("1" * 25), "block_lr_zero_threshold=1"])
def test_what_does_nothing_is_said(word):
    assert [note.got for note in idle_network_args(TrainConfig(network_args=(word,)), "sd15")] == [word]


def test_alpha_zero_is_the_rank(full):
    options = NetworkOptions(network_dim=8, network_alpha=0.0, network_args=("conv_dim=4", "conv_alpha=0"))
    shapes = planned_shapes(full["sd15"][1], options, lora_args(options, "sd15"))
    assert {(shape.rank, shape.alpha) for shape in shapes.values()} == {(8, 8.0), (4, 4.0)}


def test_a_rank_of_0_for_3x3_layers_leaves_the_others_of_the_resnets(full):
    _, targets = full["sd15"]
    options = options_of("--network_dim 4 --network_args conv_dim=0")
    shapes = planned_shapes(targets, options, lora_args(options, "sd15"))
    kinds = Counter((target.place, target.kind) for target in targets if target.key in shapes)
    assert (kinds["resnet", "conv3x3"], kinds["resnet", "linear"], kinds["resnet", "conv1x1"]) == (0, 22, 14)
