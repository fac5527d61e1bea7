"""What is varied: `--vary KEY=a,b,c` as choices, `--vary KEY=a..b` as a range, checked against the option table."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.config import BadValue, Option, read_value, table
from schemas.problems import ConfigError, error, nearest

RANGE = re.compile(r"(?P<low>[^.]\S*?)\.\.(?P<high>\S+)")
LOGARITHMIC = 20.0  # a range of real numbers that spans more than this factor is searched by powers
MOST = 1000  # combinations that are all tried
OURS = ("output_dir", "output_name", "resume", "trust", "overwrite")  # of each run of a sweep, set by it
# What the measure itself depends on: with these varied, the losses of two runs say nothing about each other.
MEASURE = ("validation_split", "validation_seed", "validate_every_n_epochs", "validate_every_n_steps",
           "max_validation_steps", "min_timestep", "max_timestep", "train_data_dir", "dataset_config")  # fmt: skip
WEIGHTED = ("loss_type", "huber_c", "huber_schedule", "min_snr_gamma", "debiased_estimation_loss", "v_pred_like_loss",
            "scale_v_pred_loss_like_noise_pred", "v_parameterization", "resolution", "masked_loss",
            "pretrained_model_name_or_path")  # fmt: skip


@dataclass(frozen=True)
class Vary:
    """One option and what it may be: `choices` as texts, or from `low` to `high`."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def is_range(self) -> bool:
        return not self.choices

    @property
    def logarithmic(self) -> bool:
        return self.is_range and self.low > 0 and self.high / self.low > LOGARITHMIC

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are looked at before anything starts."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def text(self, value: float) -> str:
        """A value of a range as a --set word has it."""
        return str(int(value)) if self.whole else f"{value:.6g}"

    def as_json(self) -> list[str] | str:
        return list(self.choices) if self.choices else f"{self.text(self.low)}..{self.text(self.high)}"


def read_space(words: Iterable[str]) -> list[Vary]:
    """The options to vary, in the order given; ConfigError with every fault of theirs."""
    found: dict[str, Vary] = {}
    problems = []
    for word in words:
        try:
            vary = _vary(word)
            if vary.name in found:
                raise error("bad-value", "is varied twice", key=f"--vary {vary.name}", fix="name each option once")
            found[vary.name] = vary
        except ConfigError as fault:
            problems += fault.problems
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _vary(word: str) -> Vary:
    name, equals, text = (part.strip() for part in word.partition("="))
    key = f"--vary {name}"
    if not equals or not text:
        raise error("bad-value", "needs values", key=f"--vary {word}", fix="--vary network_dim=8,16,32")
    option = table().get(name)
    if option is None:
        guess = nearest(name, table())
        raise error(
            "unknown-key",
            "is no option",
            key=key,
            fix=f"--vary {guess}={text}" if guess else "docs/options.md lists them",
        )
    if name in OURS or option.secret:
        raise error("bad-value", "is set by the sweep itself", key=key, fix="--set it once for all runs, if at all")
    if name in MEASURE:
        said = "is what the runs are measured by, so it cannot differ between them"
        raise error("bad-value", said, key=key, fix=f"--set {name}=VALUE for all of them")
    match = RANGE.fullmatch(text)
    if match is not None and option.kind in (int, float):
        return _range(option, key, match["low"], match["high"])
    choices = [part.strip() for part in text.split(",")]
    for left, right in itertools.pairwise(choices):
        if option.kind in (int, float) and re.fullmatch(r"0\d+(?:[eE]\S+)?", right):
            said = "separates values by commas, so a number has a point"
            raise error("bad-value", said, key=key, got=f"{left},{right}", fix=f"write {left}.{right}")
    texts = {str(_read(option, key, choice)): choice for choice in choices}
    if len(texts) != len(choices):
        fix = f"--vary {name}={','.join(texts.values())}"
        raise error("bad-value", "names a value twice", key=key, got=text, fix=fix)
    if len(choices) < 2:
        raise error("bad-value", "needs two values or more", key=key, got=text, fix=f"--set {word} for one value")
    return Vary(name, tuple(choices))


def _range(option: Option, key: str, low: str, high: str) -> Vary:
    ends = [end for end in (_read(option, key, text) for text in (low, high)) if isinstance(end, (int, float))]
    if len(ends) < 2 or not all(math.isfinite(end) for end in ends) or not ends[0] < ends[1]:
        said = "must go from a number up to a larger one"
        raise error("bad-value", said, key=key, got=f"{low}..{high}", fix=f"--vary {option.name}=LOW..HIGH")
    return Vary(option.name, (), float(ends[0]), float(ends[1]), option.kind is int)


def _read(option: Option, key: str, text: str) -> object:
    try:
        value = read_value(option, text)[0]
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value
    except BadValue as fault:
        raise error("bad-value", str(fault), key=key, got=text, fix=f"kohyakit explain {option.name}") from None


def combinations(space: Sequence[Vary]) -> list[dict[str, str]] | None:
    """Every combination, the last option varied fastest; None where there is a range, or they are too many."""
    if any(vary.is_range for vary in space) or math.prod(len(vary.choices) for vary in space) > MOST:
        return None
    return [
        dict(zip((vary.name for vary in space), values, strict=True))
        for values in itertools.product(*(vary.choices for vary in space))
    ]


def remarks(space: Sequence[Vary]) -> list[str]:
    """Varied options that change the scale of the measured loss itself."""
    return [
        f"{vary.name} changes how the loss is counted, or what it is of: runs that differ in it are hard to compare"
        for vary in space
        if vary.name in WEIGHTED
    ]


def as_json(space: Sequence[Vary]) -> Mapping[str, list[str] | str]:
    """What the storage keeps, to know its own sweep again."""
    return {vary.name: vary.as_json() for vary in space}
