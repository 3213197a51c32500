"""Keyword arguments have the names, values, texts and errors of the command line's options."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import carvana_batch
from carvana_batch.api.arguments import given, options_of, parse, reword
from carvana_batch.commands import predict, score, submit
from carvana_batch.errors import UsageError

PACKAGE = Path(carvana_batch.__file__).parent
ONLY_ON_THE_COMMAND_LINE = {
    "out",  # the second argument
    "config",
    "files_from",
    "engine",
    "address",
    "actors",
    "gpus_per_actor",
    "dry_run",
    "quiet",
    "json",
}
ONLY_IN_PYTHON = {"progress"}


def keywords_of(*functions):
    """The keyword-only arguments of some functions, with their defaults."""
    return {
        each.name: each.default
        for function in functions
        for each in inspect.signature(function).parameters.values()
        if each.kind == each.KEYWORD_ONLY
    }


def test_all_options_of_predict_are_arguments_with_the_same_defaults():
    masker = carvana_batch.Masker
    keywords = keywords_of(masker, masker.predict_folder)
    options = options_of(predict.command)
    assert options.keys() - keywords.keys() - {"model"} == ONLY_ON_THE_COMMAND_LINE
    assert keywords.keys() - options.keys() == ONLY_IN_PYTHON
    keywords.pop("progress")
    assert parse(predict.command, {}, keywords).params == parse(predict.command, {}, {}).params


def test_those_of_score_and_submit_too():
    gone = {"output", "json", "html", "pictures", "fail_under"}
    assert options_of(score.command).keys() - {"gt", *gone} == keywords_of(carvana_batch.score).keys()
    assert options_of(submit.command).keys() - {"output", "json"} == keywords_of(carvana_batch.submit).keys()
    assert inspect.signature(carvana_batch.submit).parameters["output"].default == "submission.csv.gz"


def test_help_has_the_texts_of_the_command_line():
    masker = carvana_batch.Masker
    for function in (masker, masker.predict_folder, carvana_batch.score, carvana_batch.submit):
        documentation = " ".join(function.__doc__.split())
        for name in keywords_of(function):
            assert f" {name}: " in documentation
        assert "{" not in documentation
        assert "--" not in documentation
        assert max(map(len, function.__doc__.splitlines())) <= 110
    text = " ".join(masker.__doc__.split())
    assert "overlap: Pixels that neighbouring tiles share at least." in text
    assert "tta: Also mask the mirrored photo and average: twice the time. One of 'none', 'flip'." in text
    assert "with colour); or a list of them" in " ".join(masker.predict_folder.__doc__.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "4XB"}, 'memory="4XB" is no amount of memory such as 6GB or 500MB'),
        ({"memory": 5}, "memory=5 is less than a megabyte; write an amount such as 6GB"),
        ({"size": (0, 3)}, "size=(0, 3) is neither auto nor native nor WIDTHxHEIGHT, such as 1918x1280"),
        (
            {"size": (1, 2, 3)},
            "size=(1, 2, 3) is neither auto nor native nor WIDTHxHEIGHT, such as 1918x1280",
        ),
        ({"tile": -64}, "tile=-64 is neither auto nor a number of pixels nor WIDTHxHEIGHT"),
        ({"threshold": 2}, "threshold=2: 2.0 is not in the range 0<=x<=1."),
        ({"threshold": float("nan")}, "threshold=nan is not a finite number."),
        ({"overlap": 2.5}, "overlap=2.5 is not a valid integer range."),
        ({"overlap": True}, "overlap=True is not a valid integer range."),
        ({"tta": "x"}, "tta=\"x\" is not one of 'none', 'flip'."),
        ({"clean": True}, "clean=True is not one of 'auto', 'none'."),
        ({"device": "tpu"}, 'device="tpu": use auto, cpu, cuda, cuda:N or mps'),
        ({"tile": 64, "overlap": 0, "device": "xpu"}, 'device="xpu": use auto, cpu, cuda, cuda:N or mps'),
        (
            {"tile": 64, "device": "cpu"},
            "overlap=256 is too much for tiles of 128 pixels, as the network moves in steps of 128."
            " Give tile=384 at least.",
        ),
        (
            {"tile": (4000, 4000), "memory": "1GB", "device": "cpu"},
            'tile="4000x4000": one such tile does not fit into 1.00 GB (memory); use smaller tiles or'
            ' tile="auto"',
        ),
    ],
    ids=str,
)
def test_errors_speak_of_the_argument(arguments, message):
    with pytest.raises(UsageError) as caught:
        carvana_batch.Masker(**arguments)
    assert str(caught.value) == message


def test_unknown_arguments_are_errors_of_the_type():
    with pytest.raises(TypeError, match="tresh"):
        carvana_batch.Masker(tresh=0.4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        carvana_batch.Masker("auto", "cpu")  # type: ignore[call-arg]


def test_flags_are_true_or_false():
    with pytest.raises(TypeError, match="verify='yes' is neither True nor False"):
        parse(predict.command, {}, {"verify": "yes"})


def test_values_may_have_the_types_of_python():
    values = parse(
        predict.command,
        {"images": Path("a b"), "out": "-"},
        {
            "memory": 2 * 10**9,
            "size": (640, 480),
            "tile": 512,
            "threshold": np.float32(0.25),
            "mask_bits": 8,
            "save": ["overlay", "cutout"],
            "colour": (176, 0, 32),
            "background": Path(__file__),
            "car_value": [7, "128-130"],
            "ignore_value": 255,
            "shard": (2, 3),
            "overwrite": True,
            "verify": False,
            "batch": None,
        },
    ).params
    assert values["paths"] == (Path("a b"), Path("-"))
    assert values["memory"] == 2_000_000_000
    assert values["size"] == (640, 480)
    assert values["tile"] == (512, 512)
    assert values["threshold"] == 0.25
    assert values["mask_bits"] == "8"
    assert values["extras"] == ("overlay", "cutout")
    assert values["colour"] == (176, 0, 32)
    assert values["background"] == Path(__file__)
    assert values["car_values"] == (7, 128, 129, 130)
    assert values["ignored_values"] == (255,)
    assert values["shard"] == (2, 3)
    assert (values["overwrite"], values["verify"], values["batch"]) == (True, False, None)


@pytest.mark.parametrize("threshold", [1 / 3, 0.1 + 0.2, 5e-324, 1 - 2**-53])
def test_numbers_keep_all_their_digits(threshold):
    assert parse(predict.command, {}, {"threshold": threshold}).params["threshold"] == threshold


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("close other programs, use a smaller --overlap or --device cpu (no memory)",
         'close other programs, use a smaller overlap or device="cpu" (no memory)'),
        ("--device cuda:3: this torch sees 0", 'device="cuda:3": this torch sees 0'),
        ("go on with --device cpu, --overwrite all masks, or use another OUT",
         'go on with device="cpu", overwrite=True all masks, or use another out'),
        ("if it is that large, raise --pixel-limit", "if it is that large, raise pixel_limit"),
        ("not decoded within 10 s (--decode-timeout)", "not decoded within 10 s (decode_timeout)"),
        ("Say with --car-value N which of them is car.", "Say with car_value=N which of them is car."),
        ("OUT and --gt are both t/OUT: lost. Choose another OUT.",
         "out and gt are both t/OUT: lost. Choose another out."),
        ("run `carvana-batch predict IN OUT --rle FILE`", "run `carvana-batch predict IN OUT --rle FILE`"),
        ("give a container more of it (--shm-size), or use fewer --workers",
         "give a container more of it (--shm-size), or use fewer workers"),
        ("--save recolour --colour '#b00020'.", "save=\"recolour\" colour='#b00020'."),
        ("give --network 'nets:Net'", "give network='nets:Net'"),
        ("/a--tile 5/my-o x", "/a--tile 5/my-o x"),
    ],
)  # fmt: skip
def test_messages_are_put_into_other_words(text, expected):
    assert reword(text, predict.command, IN="images", OUT="out") == expected


def test_no_option_of_predict_is_left_in_any_message():
    """All texts with options, wherever they are in the package, come out without them."""
    spellings = {opt for option in options_of(predict.command).values() for opt in option.opts}
    texts = [
        text
        for path in PACKAGE.rglob("*.py")
        if "commands" not in path.parts
        for text in re.findall(r'"([^"\n]*--[a-z][^"\n]*)"', path.read_text(encoding="utf-8"))
    ]
    assert len(texts) > 50
    for text in texts:
        left = re.sub(r"`[^`]*`?", "", reword(text, predict.command))
        assert not spellings & set(re.findall(r"--[a-z][a-z-]*", left)), text


def test_given_are_arguments_that_are_not_the_defaults():
    def function(a="x", b=1, c=None, d=()):
        pass

    assert given(function, {"a": "x", "b": 1, "c": None, "d": ()}) == {}
    others = {"a": "y", "b": True, "c": 0, "d": []}  # True == 1
    assert given(function, others) == others
    array = np.zeros(2)
    assert given(function, {"a": array}) == {"a": array}
