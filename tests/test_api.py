"""Masker in a notebook: what it takes, what it gives, and what it says of everything else."""

import io
import textwrap
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import carvana_batch
from carvana_batch.demo import draw_photo
from carvana_batch.errors import ImageError, ModelError, UsageError
from carvana_batch.network.checkpoints import load_model
from carvana_batch.orientation import turn

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
    Image.fromarray(draw_photo(0, 5, SMALL)[0]).save("car.jpg")
    names = {}
    exec(compile(docstring_example(), "example", "exec"), names)
    assert names["mask"].shape == (128, 192)
    assert names["mask"].dtype == np.bool_
    np.testing.assert_array_equal(names["car"].mask, names["mask"])
    assert isinstance(names["result"], carvana_batch.MaskedPhoto | carvana_batch.Failure)
    assert (names["report"].done, len(names["report"].failures)) == (3, 1)


def test_mask_folder_gives_one_result_per_file(masker, photos):
    folder = masker.mask_folder(photos)
    assert len(folder) == 4
    results = list(folder)
    assert len(results) == 4
    (failure,) = [result for result in results if isinstance(result, carvana_batch.Failure)]
    assert (failure.id, failure.stage) == ("a/torn", "decode")
    masked = [result for result in results if isinstance(result, carvana_batch.MaskedPhoto)]
    assert [result.key for result in masked] == ["a.b", "a/c", "b"]
    for result, seed in zip(masked, (3, 2, 1), strict=True):
        pixels = draw_photo(seed, 5, SMALL)[0]
        np.testing.assert_array_equal(result.pixels, pixels)
        np.testing.assert_array_equal(result.mask, masker.mask(pixels))
        assert 0 <= result.expected_dice <= 1
        assert result.path == photos / f"{result.key}.png"


def test_failures_name_keyword_arguments(masker, tmp_path):
    pixels = draw_photo(0, 5, SMALL)[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (failure,) = masker.mask_folder(tmp_path)
    assert 'damaged="accept" masks what can be decoded' in failure.reason
    accepting = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", damaged="accept")
    (result,) = accepting.mask_folder(tmp_path)
    assert result.notes == ("damaged",)
    np.testing.assert_array_equal(result.mask, accepting.mask(path))


def test_mask_folder_accepts_a_single_photo_and_a_limit(masker, photos):
    (result,) = masker.mask_folder(str(photos / "b.png"))
    assert result.path == photos / "b.png"
    assert [result.key for result in masker.mask_folder(photos, limit=2)] == ["a.b", "a/c"]


def test_an_abandoned_folder_does_not_affect_the_next_image(photos):
    masker = carvana_batch.Masker(device="cpu", precision="fp32", batch=2)
    pixels = draw_photo(0, 5, SMALL)[0]
    expected = masker.mask(pixels)
    for result in masker.mask_folder(photos):
        if isinstance(result, carvana_batch.MaskedPhoto):
            break
    np.testing.assert_array_equal(masker.mask(pixels), expected)


def test_the_mask_is_where_the_probability_is_above_the_threshold():
    masker = carvana_batch.Masker(device="cpu", precision="fp32", threshold=0.25, clean="none")
    result = masker.predict(draw_photo(1, 5, SMALL)[0])
    assert result.probability.dtype == np.float32
    np.testing.assert_array_equal(result.mask, result.probability > 0.25)


def test_masks_are_the_thresholded_logits():
    model = load_model("segunet-s")
    masker = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", size="native", clean="none")
    pixels = draw_photo(2, 5, SMALL)[0]
    images = torch.from_numpy((pixels / 255 - model.mean) / model.deviation).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = model.network(images)[0, 0].numpy()
    clear = np.abs(logits) > 0.001
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(masker.mask(pixels)[clear], logits[clear] > 0)


def test_whatever_holds_the_same_pixels_has_the_same_mask(masker, photos):
    path = photos / "b.png"
    with Image.open(path) as image:
        pixels = np.asarray(image)  # read-only
        expected = masker.mask(pixels.copy())
        assert 0.05 < expected.mean() < 0.95
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        copied = torch.from_numpy(pixels.copy())
        for same in (path, str(path), image, pixels, bgr[..., ::-1], copied, copied.permute(2, 0, 1)):
            np.testing.assert_array_equal(masker.mask(same), expected)


def test_grey_is_three_equal_channels(masker):
    grey = draw_photo(0, 5, SMALL)[0].mean(axis=2).astype(np.uint8)
    expected = masker.mask(np.dstack((grey, grey, grey)))
    for same in (grey, torch.from_numpy(grey), Image.fromarray(grey)):
        np.testing.assert_array_equal(masker.mask(same), expected)


def test_transparent_images_lie_on_white(masker, tmp_path):
    pixels, mask = draw_photo(0, 5, SMALL)[:2]
    image = Image.fromarray(np.dstack((pixels, mask.astype(np.uint8) * 255)))
    white = np.where(mask[..., None] > 0, pixels, np.uint8(255))
    np.testing.assert_array_equal(masker.predict(image).pixels, white)
    image.save(tmp_path / "car.png")
    np.testing.assert_array_equal(masker.predict(tmp_path / "car.png").pixels, white)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_turned_images_are_treated_like_turned_files(tmp_path, exif):
    masker = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", exif=exif)
    pixels = draw_photo(0, 5, SMALL)[0]
    upright = masker.mask(pixels)
    stored = np.rot90(pixels)  # turned by 90 degrees to the left, so to be turned to the right
    tags = Image.Exif()
    tags[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(stored).save(path, exif=tags)
    expected = np.rot90(upright) if exif == "ignore" else upright
    np.testing.assert_array_equal(turn(stored, 6), pixels)
    with Image.open(path) as image:
        for same in (path, image):
            np.testing.assert_array_equal(masker.mask(same), expected)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((4, 5, 4), np.uint8), r"wanted \(H, W, 3\) or \(H, W\); got an array of shape \(4, 5, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((4, 5, 3)), "as uint8; got float64; if they are from 0 to 1, multiply by 255"),
        (np.zeros((4, 5, 3), np.uint16), "got uint16$"),
        (np.zeros((4, 5), np.bool_), "got bool$"),
        (torch.zeros((3, 4, 5)), "as torch.uint8; got torch.float32; if they are from 0 to 1"),
        (torch.zeros((1, 3, 4, 5), dtype=torch.uint8), r"\(3, H, W\).* got a tensor of shape \(1, 3, 4, 5\)"),
        (torch.zeros((3, 4, 3), dtype=torch.uint8), r"\(3, 4, 3\) may be \(3, H, W\) or \(H, W, 3\)"),
        (None, "wanted a path, a Pillow image, a .* or such a torch tensor.* got NoneType"),
        ([[0, 1], [1, 0]], "got list"),
        (b"car.jpg", "got bytes"),
        (7, "got int"),
    ],
    ids=lambda value: getattr(value, "shape", value) if not isinstance(value, str) else "",
)
def test_everything_else_is_rejected_with_what_is_wanted(masker, image, problem):
    with pytest.raises(TypeError, match=problem):
        masker.predict(image)


def test_files_and_images_that_cannot_be_used(masker, tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.jpg does not exist"):
        masker.mask(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        masker.mask(tmp_path)
    with pytest.raises(ImageError, match="the image has 16 bits a pixel; give the path"):
        masker.mask(Image.fromarray(np.zeros((4, 5), np.uint16)))
    with pytest.raises(ImageError, match="the image has pixels of the kind F"):
        masker.mask(Image.fromarray(np.zeros((4, 5), np.float32)))
    small = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", pixel_limit=19)
    with pytest.raises(ImageError, match=r"more than the limit of 19; .* raise pixel_limit$"):
        small.mask(Image.new("RGB", (4, 5)))
    with pytest.raises(UsageError, match="nowhere"):
        masker.mask_folder(tmp_path / "nowhere")


def test_a_masked_photo_shows_itself(masker):
    pixels = draw_photo(0, 5, SMALL)[0]
    result = masker.predict(pixels)
    overlay = np.asarray(result.overlay())
    changed = (overlay != pixels).any(axis=2)
    assert not changed[~result.mask].any()
    assert changed[result.mask].mean() > 0.99
    cutout = np.asarray(result.cutout())
    np.testing.assert_array_equal(cutout[..., :3], pixels)
    np.testing.assert_array_equal(cutout[..., 3] == 255, result.mask)
    assert set(np.unique(cutout[..., 3])) == {0, 255}
    with Image.open(io.BytesIO(result._repr_jpeg_())) as shown:
        assert (shown.format, shown.size) == ("JPEG", SMALL)
    assert repr(result).startswith("<MaskedPhoto 'image', 192x128, ")
    assert f"expected Dice {result.expected_dice:.4f}, doubt {result.doubt:.4f}" in repr(result)


def test_a_large_photo_is_shown_reduced(masker):
    result = masker.predict(draw_photo(0, 5, (1280, 854))[0])
    with Image.open(io.BytesIO(result._repr_jpeg_())) as shown:
        assert shown.size == (640, 427)
    assert result.overlay().size == (1280, 854)


def test_noise_is_doubtful_and_a_studio_photo_is_not(masker):
    noise = np.random.default_rng(0).integers(0, 256, (256, 384, 3), np.uint8)
    assert masker.predict(noise).is_doubtful
    single = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32").predict(noise)
    assert single.doubt is None
    assert not single.is_doubtful


def test_what_happens_on_the_way_is_a_warning(masker, monkeypatch):
    monkeypatch.setattr(masker._predictor, "warnings", ["tiles are smaller; see --tile"])
    monkeypatch.setattr(masker, "_warned", 0)
    with pytest.warns(carvana_batch.CarvanaBatchWarning, match="tiles are smaller; see tile$"):
        masker.mask(draw_photo(0, 5, SMALL)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masker.mask(draw_photo(0, 5, SMALL)[0])  # once is enough


def test_progress_in_a_pipe(masker, photos, capfd):
    list(masker.mask_folder(photos, progress=True))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == masker.description + "\n"
    list(masker.mask_folder(photos))
    assert capfd.readouterr().err == ""


def test_the_public_names():
    assert dir(carvana_batch) == [
        "CarvanaBatchError",
        "CarvanaBatchWarning",
        "Failure",
        "MaskedPhoto",
        "Masker",
        "RunReport",
        "Scores",
        "__version__",
        "score",
        "submit",
    ]
    for name in dir(carvana_batch):
        assert getattr(carvana_batch, name) is not None
    with pytest.raises(AttributeError, match="masker"):
        _ = carvana_batch.masker


def test_completion_offers_these_attributes(masker):
    def public(value):
        return [name for name in dir(value) if not name.startswith("_")]

    assert public(masker) == ["description", "mask", "mask_folder", "predict", "predict_folder"]
    assert public(masker.predict(np.zeros((64, 64), np.uint8))) == [
        "cutout",
        "doubt",
        "expected_dice",
        "is_doubtful",
        "key",
        "mask",
        "notes",
        "overlay",
        "path",
        "pixels",
        "probability",
    ]
    assert repr(masker).startswith("<Masker 'auto', ")


def test_a_model_that_is_not_there():
    with pytest.raises(ModelError, match="no-such-model"):
        carvana_batch.Masker("no-such-model")
    with pytest.raises(ModelError, match="carvana-batch train --model segunet` and give model the folder"):
        carvana_batch.Masker("segunet")
