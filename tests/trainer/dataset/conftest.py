import json
from pathlib import Path

import pytest
from PIL import Image

from schemas import from_flat


def write_picture(path, size=(64, 48), colour=(200, 30, 60), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path, **save)
    return path


@pytest.fixture
def picture():
    return write_picture


@pytest.fixture
def one_subset(tmp_path):
    """Writes pictures and captions into a folder; gives a config of one dataset with that one subset."""

    def make(folder, files, subset=(), dataset=(), **flat):
        for name, text in files.items():
            if Path(name).suffix in (".png", ".jpg", ".webp"):
                write_picture(folder / name)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(text.encode())
        document = {"datasets": [{**dict(dataset), "subsets": [{"image_dir": str(folder), **dict(subset)}]}]}
        path = tmp_path / "data.json"
        path.write_text(json.dumps(document))
        return from_flat({"resolution": "64", "dataset_config": str(path), **flat})[0]

    return make
