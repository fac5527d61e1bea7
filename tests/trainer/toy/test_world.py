"""The drawn world: always the same pictures, captions that say what is there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw

from trainer.toy import drawing, world

FROGS = Path(world.__file__).parent / "frogs"


def drawn(picture: world.Picture, seed: int = 0) -> Image.Image:
    return world.draw(picture, random.Random(seed))


def test_same_picture_and_seed_give_the_same_pixels() -> None:
    picture = world.chosen(random.Random(1))
    assert drawn(picture).tobytes() == drawn(picture).tobytes()
    assert drawn(picture).tobytes() != drawn(picture, 1).tobytes()


@pytest.mark.parametrize("shape", [*world.SHAPES, world.CONCEPT])
def test_every_shape_stands_out_from_its_landscape(shape: str) -> None:
    big = 64 * world.SHARP
    bare = Image.new("RGB", (big, big))
    drawing.landscape(ImageDraw.Draw(bare), drawing.LANDSCAPES["on sand"], random.Random(0), big)
    bare = bare.resize((64, 64), Image.Resampling.LANCZOS)
    box = ImageChops.difference(bare, drawn(world.Picture(shape, "on sand", "blue"))).point(lambda v: 255 * (v > 60))
    assert box.getbbox() is not None


def test_all_shapes_and_backgrounds_differ() -> None:
    pictures = [world.Picture(shape, "on sand") for shape in (*world.SHAPES, world.CONCEPT)]
    pictures += [world.Picture("star", background) for background in world.BACKGROUNDS if background != "on sand"]
    assert len({drawn(picture).tobytes() for picture in pictures}) == len(pictures)


def test_caption_names_what_is_there_and_never_the_concept() -> None:
    rng = random.Random(4)
    for _ in range(200):
        picture = world.chosen(rng)
        text = world.caption(picture, rng)
        assert picture.shape in text
        assert (picture.pattern == "striped") == ("striped" in text)
        assert world.TOKEN not in text
        assert world.CONCEPT not in text


def test_concept_is_no_thing_of_the_world_but_made_of_its_parts() -> None:
    assert world.CONCEPT not in world.SHAPES
    frog = drawing.ANIMALS[world.CONCEPT]
    others = [drawing.ANIMALS[name] for name in world.ANIMALS]
    assert any(animal.mouth == frog.mouth for animal in others)
    assert any(animal.feet for animal in others)
    assert any(animal.belly for animal in others)
    like = world.chosen(random.Random(2))
    assert world.concept(like) == world.Picture(world.CONCEPT, like.background, size=like.size, place=like.place)


def test_shipped_frogs_have_captions_with_the_token() -> None:
    pictures = sorted(FROGS.glob("*.png"))
    assert len(pictures) == 20
    for path in pictures:
        token, _, rest = path.with_suffix(".txt").read_text(encoding="utf-8").strip().partition(" ")
        assert token == world.TOKEN
        assert rest.removeprefix(f"{world.CONCEPT}, ") in world.BACKGROUNDS
