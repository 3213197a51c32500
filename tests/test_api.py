import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

import carvana_batch
from carvana_batch.demo import draw_photo
from carvana_batch.errors import ModelError, UsageError
from carvana_batch.network.checkpoints import load_model
from carvana_batch.values import Failure, Prediction

SMALL = (192, 128)


@pytest.fixture(scope="module")
def masker():
    return carvana_batch.Masker(device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path):
    """A folder with three drawn photos and one broken file."""
    for name, seed in (("b.png", 1), ("a/c.png", 2), ("a.b.png", 3)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_photo(seed, 5, SMALL)[0]).save(path)
    (tmp_path / "photos" / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return tmp_path / "photos"


def docstring_example() -> str:
    lines = carvana_batch.Masker.__doc__.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "Example::")
    end = next(index for index, line in enumerate(lines) if line.strip() == "Args:")
    return textwrap.dedent("\n".join(lines[start + 1 : end]))


def test_the_docstring_example_runs(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    names = {"pixels": draw_photo(0, 5, SMALL)[0]}
    exec(compile(docstring_example(), "example", "exec"), names)
    assert names["mask"].shape == (128, 192)
    assert names["mask"].dtype == np.bool_
    assert isinstance(names["result"], Prediction | Failure)


def test_mask_folder_gives_one_result_per_file(masker, photos):
    results = list(masker.mask_folder(photos))
    assert len(results) == 4
    failures = [result for result in results if isinstance(result, Failure)]
    assert [(failure.id, failure.stage) for failure in failures] == [("a/torn", "decode")]
    predictions = [result for result in results if isinstance(result, Prediction)]
    keys = [prediction.photo.ref.key for prediction in predictions]
    assert sorted(keys) == ["a.b", "a/c", "b"]
    assert keys == sorted(keys)
    for prediction, seed in zip(
        sorted(predictions, key=lambda prediction: prediction.photo.ref.key), (3, 2, 1), strict=True
    ):
        pixels = draw_photo(seed, 5, SMALL)[0]
        np.testing.assert_array_equal(prediction.photo.pixels, pixels)
        np.testing.assert_array_equal(prediction.mask.to_bool(), masker.mask(pixels))
        assert 0 <= prediction.expected_dice <= 1
        assert prediction.probability is None


def test_mask_folder_accepts_a_single_photo(masker, photos):
    (result,) = masker.mask_folder(str(photos / "b.png"))
    assert result.photo.ref.path == photos / "b.png"


def test_an_abandoned_folder_does_not_affect_the_next_image(photos):
    masker = carvana_batch.Masker(device="cpu", precision="fp32", batch=2)
    pixels = draw_photo(0, 5, SMALL)[0]
    expected = masker.mask(pixels)
    for result in masker.mask_folder(photos):
        if isinstance(result, Prediction):
            break
    np.testing.assert_array_equal(masker.mask(pixels), expected)


def test_results_contain_the_probability_on_request(photos):
    masker = carvana_batch.Masker(
        device="cpu", precision="fp32", extras=("prob",), threshold=0.25, clean=False
    )
    (result,) = masker.mask_folder(photos / "b.png")
    np.testing.assert_array_equal(result.mask.to_bool(), result.probability > 0.25)


def test_masks_are_the_thresholded_logits():
    model = load_model("segunet-s")
    masker = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", size="native", clean=False)
    pixels = draw_photo(2, 5, SMALL)[0]
    images = torch.from_numpy((pixels / 255 - model.mean) / model.deviation).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = model.network(images)[0, 0].numpy()
    clear = np.abs(logits) > 0.001
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(masker.mask(pixels)[clear], logits[clear] > 0)


def test_images_from_pillow_and_opencv(masker, photos):
    with Image.open(photos / "b.png") as image:
        pixels = np.asarray(image)  # read-only
    expected = masker.mask(pixels.copy())
    np.testing.assert_array_equal(masker.mask(pixels), expected)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    np.testing.assert_array_equal(masker.mask(bgr[..., ::-1]), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((4, 5, 3), np.uint16),
        np.zeros((0, 5, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.shape} {pixels.dtype}",
)
def test_images_of_another_shape_or_dtype_are_rejected(masker, pixels):
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        masker.mask(pixels)


def test_unusable_arguments_are_rejected(masker, tmp_path):
    with pytest.raises(ModelError, match="no-such-model"):
        carvana_batch.Masker("no-such-model")
    with pytest.raises(UsageError, match="--device tpu"):
        carvana_batch.Masker(device="tpu")
    with pytest.raises(TypeError, match="tresh"):
        carvana_batch.Masker(tresh=0.4)
    with pytest.raises(UsageError):
        list(masker.mask_folder(tmp_path / "nowhere"))


def test_the_public_names():
    assert carvana_batch.__all__ == ["Masker", "__version__"]
    with pytest.raises(AttributeError, match="masker"):
        _ = carvana_batch.masker
