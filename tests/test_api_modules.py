"""A module of torch of one's own as the model of a Masker."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import carvana_batch
from carvana_batch.demo import draw_photo
from carvana_batch.errors import ModelError

SMALL = (192, 128)
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
WEIGHTS, BIAS = (1.0, -2.0, 0.5), 0.125


class Linear(nn.Module):
    """A logit that is a weighted sum of the channels of its pixel."""

    def __init__(self, as_probability: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 1)
        self.convolution.weight.data = torch.tensor(WEIGHTS).reshape(1, 3, 1, 1)
        self.convolution.bias.data.fill_(BIAS)
        self.as_probability = as_probability

    def forward(self, images):
        logits = self.convolution(images)
        return torch.sigmoid(logits) if self.as_probability else logits


def expected_logits(pixels):
    normalised = (pixels.astype(np.float64) / 255 - MEAN) / DEVIATION
    return normalised @ np.array(WEIGHTS) + BIAS


def make_masker(module, **arguments):
    return carvana_batch.Masker(
        module, mean=MEAN, deviation=DEVIATION, device="cpu", precision="fp32", clean="none", **arguments
    )


@pytest.mark.parametrize("output", ["logits", "probability"])
def test_the_mask_is_that_of_the_module(output):
    pixels = draw_photo(3, 5, SMALL)[0]
    logits = expected_logits(pixels)
    assert 0.05 < (logits > 0).mean() < 0.95
    result = make_masker(Linear(output == "probability"), output=output).predict(pixels)
    np.testing.assert_allclose(result.probability, 1 / (1 + np.exp(-logits)), atol=1e-5)
    clear = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(result.mask[clear], logits[clear] > 0)
    assert result.doubt is None


def test_a_folder_is_masked_and_goes_on_with_the_same_module_only(tmp_path):
    pixels = draw_photo(3, 5, SMALL)[0]
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    masker = make_masker(Linear())
    assert repr(masker).startswith("<Masker 'Linear', ")
    assert masker.predict_folder(tmp_path / "in", tmp_path / "out", limit=1, progress=False).done == 1
    again = make_masker(Linear()).predict_folder(tmp_path / "in", tmp_path / "out", progress=False)
    assert (again.already_done, again.done) == (1, 1)
    with Image.open(tmp_path / "out" / "b.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), masker.mask(pixels))
    other = Linear()
    other.convolution.bias.data.fill_(0.25)
    with pytest.raises(carvana_batch.CarvanaBatchError, match=r"model: .*overwrite=True"):
        make_masker(other).predict_folder(tmp_path / "in", tmp_path / "out", progress=False)


def test_what_is_not_said_of_a_module_is_asked_for():
    with pytest.raises(ModelError, match=r"(?s)mean.*deviation") as caught:
        carvana_batch.Masker(Linear())
    assert "--" not in str(caught.value)


def test_odd_values_name_the_argument():
    with pytest.raises(carvana_batch.CarvanaBatchError, match=r"mean=\(104, 117, 124\).* divide it by 255"):
        carvana_batch.Masker(Linear(), mean=(104, 117, 124))
    with pytest.raises(carvana_batch.CarvanaBatchError, match=r"deviation=\(1, 1\).* three numbers"):
        carvana_batch.Masker(Linear(), mean=(0, 0, 0), deviation=(1, 1))
    with pytest.raises(carvana_batch.CarvanaBatchError, match='give model="FILE" as well'):
        carvana_batch.Masker(mean=MEAN)


def test_settings_of_other_models_that_are_here_by_chance_do_not_count(tmp_path, monkeypatch):
    pixels = draw_photo(3, 5, SMALL)[0]
    expected = make_masker(Linear()).mask(pixels)
    bundled = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32").mask(pixels)
    (tmp_path / "model.toml").write_text("threshold = 0.99\n")
    (tmp_path / "auto.toml").write_text("threshold = 0.99\n")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(make_masker(Linear()).mask(pixels), expected)
    again = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32").mask(pixels)
    np.testing.assert_array_equal(again, bundled)
