"""Masks from every source, as the trainer reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from launcher.commands.dataset import dataset
from schemas import from_flat
from schemas.problems import ConfigError
from trainer.dataset.files import scan
from trainer.input import pixels
from trainer.masking.sources import ellipses, from_alpha, from_folder, source_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set" / "training_images" / "3_ohwx"
    place.mkdir(parents=True)
    clear = Image.new("RGBA", (80, 64), (200, 10, 10, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 40, 64))
    clear.save(place / "clear.png")
    Image.new("RGB", (64, 64), "blue").save(place / "solid.png")
    return tmp_path / "set"


def test_masks_of_a_folder_are_what_the_trainer_takes(folder: Path) -> None:
    words = ["mask", str(folder), "--from", "alpha", "--show", "--resolution", "64", "--json"]
    made = json.loads(CliRunner().invoke(dataset, words).stdout)
    assert (made["ok"], made["images"], made["written"]) == (True, 2, 2)
    assert [Path(one["file"]).name for one in made["whole"]] == ["solid.png"]
    config = from_flat({"dataset_config": made["dataset_config"], "masked_loss": True, "min_bucket_reso": 64})[0]
    seen = scan(config)
    assert [problem for problem in seen.problems if problem.severity == "error"] == []
    masks = {sample.path.name: pixels.read_mask(sample.mask) for sample in seen.samples if sample.mask}
    assert masks["clear.png"][:, :40].max() == 0
    assert masks["clear.png"][:, 40:].min() == 255
    assert masks["solid.png"].min() == 255
    page = Path(made["page"]).read_text(encoding="utf-8")
    assert page.count("class='mask'") == 2
    again = json.loads(CliRunner().invoke(dataset, words).stdout)
    assert (again["written"], again["kept"]) == (0, 2)


def test_masks_from_a_folder_are_scaled_to_their_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Image.new("L", (40, 32), 255).save(tmp_path / "mine" / "CLEAR.png")
    Image.new("L", (40, 90)).save(tmp_path / "mine" / "solid.png")
    make = from_folder(tmp_path / "mine")
    images = folder / "training_images" / "3_ohwx"
    assert make(images / "clear.png").shape == (64, 80)
    with pytest.raises(ValueError, match="another shape"):
        make(images / "solid.png")
    (tmp_path / "mine" / "solid.png").unlink()
    with pytest.raises(ValueError, match="has no mask in mine"):
        from_folder(tmp_path / "mine")(images / "solid.png")


def test_an_image_without_transparency_says_so(folder: Path) -> None:
    with pytest.raises(ValueError, match="no transparent part"):
        from_alpha(folder / "training_images" / "3_ohwx" / "solid.png")


def test_an_ellipse_covers_the_face_and_leaves_the_corners() -> None:
    mask = ellipses((200, 200), [(80.0, 80.0, 40.0, 40.0)], 1.4)
    assert mask.shape == (200, 200)
    assert mask[80:120, 85:115].min() > 200
    assert mask[:30].max() == 0
    assert np.flatnonzero(mask[100] > 127).size == pytest.approx(56, abs=3)
    assert np.flatnonzero(mask[:, 100] > 127).size == pytest.approx(84, abs=3)


@pytest.mark.parametrize(("kind", "code"), [("folder", "no-folder"), ("rembg", "missing-package")])
def test_what_a_source_needs_is_named_at_once(kind: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ConfigError) as caught:
        source_of(kind, folder=None, grow=1.4)
    assert caught.value.problems[0].code == code


def test_a_face_is_asked_of_the_detector_and_its_box_scaled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Detector:
        def __init__(self, file: str) -> None:
            assert file.endswith("haarcascade_frontalface_default.xml")

        def detectMultiScale3(self, image: np.ndarray, *rest: object, **options: object) -> tuple[object, ...]:
            assert min(image.shape) == 480
            faces = np.array([[100, 100, 80, 80], [300, 300, 60, 60]])
            return faces, np.array([0, 0]), np.array([5.0, 1.0])

    class Module:
        CascadeClassifier = Detector

        class data:
            haarcascades = "/nowhere/"

    monkeypatch.setitem(sys.modules, "cv2", Module)
    Image.new("RGB", (960, 960)).save(tmp_path / "a.png")
    mask = source_of("face", folder=None, grow=1.4)(tmp_path / "a.png")
    assert mask[280, 280] == 255
    assert mask[660, 660] == 0  # the second is less than half as sure
