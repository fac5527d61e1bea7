from __future__ import annotations

import torch

from trainer.families import tokenizer


def test_captions_are_padded_with_id_0(tiny):
    family, models, config = tiny["sd2"]
    ids = torch.tensor(tokenizer.windows("a cat", None, pad=0))
    assert torch.equal(family.encode(models, ["a cat"], config).hidden, models.text_encoders[0](ids).last_hidden_state)


def test_prediction_has_the_latents_shape(tiny):
    family, models, config = tiny["sd2"]
    words = family.encode(models, ["a cat"], config)
    assert family.predict(models.unet, torch.randn(1, 4, 8, 16), torch.tensor([5]), words, None).shape == (1, 4, 8, 16)
