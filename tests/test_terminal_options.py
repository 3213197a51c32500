"""Options from the environment and from a file, help, and advice on what is mistyped."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import write_photo

from carvana_batch.commands import COMMANDS, group
from carvana_batch.commands.command import options_of
from carvana_batch.commands.training_options import collect_values
from carvana_batch.errors import UsageError
from carvana_batch.training.settings import make_settings

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a photo."""
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "in" / "car.jpg")
    return tmp_path


def invoke(*arguments, **options):
    return CliRunner().invoke(group, list(map(str, arguments)), prog_name="carvana-batch", **options)


def predict(*arguments, **variables):
    """Run predict with ``CARVANA_BATCH_PREDICT_`` variables."""
    environment = {f"CARVANA_BATCH_PREDICT_{name}": value for name, value in variables.items()}
    return invoke("predict", "--precision", "fp32", "--workers", 0, *arguments, env=environment)


def run_file(out):
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_all_commands_have_short_help_and_the_command_help_prints_the_same(name):
    short = invoke(name, "-h")
    assert short.exit_code == 0
    assert short.output == invoke(name, "--help").output == invoke("help", name).output


def test_help_of_groups_and_what_has_none():
    assert invoke("help").output == invoke("--help").output
    assert invoke("help", "models", "list").output == invoke("models", "list", "-h").output
    assert "has no commands of its own" in invoke("help", "predict", "x").output
    assert invoke("-V").output == invoke("--version").output


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("predct",), "No such command 'predct'. Did you mean 'predict'?"),
        (("help", "predct"), "No such command 'predct'. Did you mean 'predict'?"),
        (("models", "lst"), "No such command 'lst'. Did you mean 'list'?"),
        (("predict", "--treshold", "1"), "No such option '--treshold'. Did you mean '--threshold'?"),
        (("xyz",), "No such command 'xyz'."),
    ],
)
def test_what_is_mistyped_is_told_the_nearest(arguments, advice):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert advice in result.output


def test_variables_have_the_names_of_the_options():
    """Two options of a command with the same variable would be set together."""
    for name in COMMANDS:
        invoke(name, "-h")
        options = options_of(group.get_command(click.Context(group), name))
        variables = [option.envvar for option in options]
        assert len(set(variables)) == len(variables)
        long = (max(option.opts, key=len) for option in options)
        assert variables == [f"carvana-batch-{name}-{one[2:]}".replace("-", "_").upper() for one in long]


def test_the_environment_sets_options_and_is_named(here):
    result = predict("in", "out", THRESHOLD="0.25", SAVE="overlay panel", MASK_BITS="8")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == (
        "From the environment: CARVANA_BATCH_PREDICT_THRESHOLD=0.25 CARVANA_BATCH_PREDICT_MASK_BITS=8"
        " CARVANA_BATCH_PREDICT_SAVE=overlay panel"
    )
    written = run_file(here / "out")
    assert (written["settings"]["threshold"], written["settings"]["mask-bits"]) == (0.25, 8)
    assert written["options"]["threshold"] == "0.25"
    assert (here / "out" / "_panel" / "car.jpg").exists()


def test_the_command_line_wins_over_the_file_and_that_over_the_environment(here):
    (here / "c.toml").write_text("threshold = 0.4\noverlap = 128\nsave = ['panel']\nquiet = true\n")
    variables = {"THRESHOLD": "0.1", "OVERLAP": "64", "TTA": "flip"}
    result = predict("in", "out", "--config", "c.toml", "--threshold", "0.3", **variables)
    assert (result.exit_code, result.output) == (0, "")
    written = run_file(here / "out")
    settings = written["settings"]
    assert [settings[name] for name in ("threshold", "overlap", "tta", "save")] == [
        0.3,
        128,
        "flip",
        ["panel"],
    ]
    assert written["options"] == {
        "config": "c.toml",
        "precision": "fp32",
        "workers": "0",
        "threshold": "0.3",
        "overlap": 128,
        "save": ["panel"],
        "quiet": True,
        "tta": "flip",
    }


def test_variables_that_the_file_or_the_command_line_replaces_are_not_named(here):
    (here / "c.toml").write_text("overlap = 128\n")
    result = predict(
        "in", "out", "--config", "c.toml", "--threshold", "0.3", THRESHOLD="1", OVERLAP="1", TTA="flip"
    )
    assert "From the environment: CARVANA_BATCH_PREDICT_TTA=flip\n" in result.stderr


def test_flags(here):
    assert "Dry run" in predict("in", "out", DRY_RUN="1").output
    assert "Dry run" not in predict("in", "out", DRY_RUN="0").output
    (here / "c.toml").write_text("dry-run = true\n")
    assert "Dry run" in predict("in", "again", "--config", "c.toml").output


@pytest.mark.parametrize("value", ["", "2", "x"])
def test_errors_name_the_variable(value):
    result = predict("in", "out", THRESHOLD=value)
    if value:
        assert result.exit_code == 2
        assert "'--threshold' (set by CARVANA_BATCH_PREDICT_THRESHOLD)" in result.stderr
    else:  # as if it were not set
        assert result.exit_code == 0


def test_options_that_do_not_go_together_name_the_variables_even_if_quiet():
    result = predict("in", "out", "--quiet", COLOUR="red")
    assert isinstance(result.exception, UsageError)
    assert result.stderr == "From the environment: CARVANA_BATCH_PREDICT_COLOUR=red\n"


def test_variables_of_no_option_are_named():
    result = predict("in", "out", TRESHOLD="0.1")
    assert result.exit_code == 0
    name = "CARVANA_BATCH_PREDICT_TRESHOLD"
    advice = "Did you mean CARVANA_BATCH_PREDICT_THRESHOLD?"
    assert f"Warning: {name} is the variable of no option. {advice}\n" in result.stderr


def test_commands_in_groups_and_others():
    result = invoke("models", "list", env={"CARVANA_BATCH_MODELS_LIST_JSON": "1"})
    assert json.loads(result.stdout)["models"][0]["name"] == "segunet-s"
    invalid = invoke("score", "--gt", "in", env={"CARVANA_BATCH_SCORE_FAIL_UNDER": "x"})
    assert "(set by CARVANA_BATCH_SCORE_FAIL_UNDER)" in invalid.stderr


def test_no_variable_asks_for_help_or_the_version():
    """Names that others may use for something else."""
    variables = ("CARVANA_BATCH_VERSION", "CARVANA_BATCH_HELP", "CARVANA_BATCH_PREDICT_HELP")
    environment = dict.fromkeys(variables, "1")
    assert "Dry run" in invoke("predict", "in", "out", "--dry-run", env=environment).output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 0.5", "treshold is no setting; did you mean threshold?"),
        ("qqq = 1\ndry_rum = true", "qqq, dry-rum is no setting; did you mean dry-run?"),
        ("qqq = 1", "qqq is no setting; known are "),
        ("config = 'x'", "config is no setting"),
        ("threshold = 2", "threshold: 2.0 is not in the range"),
        ("threshold = 'x'", "threshold: 'x' is not a valid float"),
        ("threshold = true", "threshold: True is not a value for it."),
        ("overlap = 3.5", "overlap: '3.5' is not a valid integer"),
        ("save = 'panel'", "save: 'panel' is not a value for it."),
        ("save = ['none']", "save: 'none' is not one of"),
        ("dry-run = 'yes'", "dry-run: 'yes' is not true or false."),
        ("[threshold]\na = 1", "threshold: {'a': 1} is not a value for it."),
        ("threshold 1", "is not TOML: "),
    ],
)
def test_files_that_are_wrong_are_refused(here, text, message):
    (here / "c.toml").write_text(text)
    result = predict("in", "out", "--config", "c.toml")
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert "c.toml" in str(result.exception)
    assert not (here / "out").exists()


def test_a_file_that_is_missing_or_no_text_is_refused(here):
    (here / "c.toml").write_bytes(b"\xff\xfe")
    for name, message in (("none.toml", "cannot be read: No such file"), ("c.toml", "is not TOML")):
        assert message in str(predict("in", "out", "--config", name).exception)


def test_train_takes_limits_of_the_environment_unless_a_preset_is_chosen(here, monkeypatch):
    """As those of a file: a preset on the command line replaces them."""
    monkeypatch.setenv("CARVANA_BATCH_TRAIN_SHIFT", "0.25")
    monkeypatch.setenv("CARVANA_BATCH_TRAIN_EPOCHS", "0.5")
    (here / "limit.toml").write_text("shift = 0.03125\n")
    (here / "preset.toml").write_text("augment = 'photos'\n")

    def shift_and_epochs(*arguments, config=None):
        train = group.get_command(click.Context(group), "train")
        context = train.make_context("train", ["data", "run", *arguments], parent=click.Context(group))
        others = {"config", "resume", "dry_run", "quiet", "compiled", "device", "workers", "tensorboard"}
        names = {item.name for item in options_of(train)} - others
        values = {name: context.params[name] for name in names}
        settings = make_settings(collect_values(context, values, config))
        return settings.augmentation.shift, settings.epochs

    assert shift_and_epochs() == (0.25, 0.5)
    assert shift_and_epochs("--shift", "0.125", "--epochs", "2") == (0.125, 2)
    assert shift_and_epochs("--augment", "photos") == (0.0625, 0.5)
    assert shift_and_epochs(config=Path("limit.toml")) == (0.03125, 0.5)
    assert shift_and_epochs(config=Path("preset.toml")) == (0.0625, 0.5)


def test_settings_that_lie_beside_a_name_by_chance_change_nothing(here):
    (here / "auto").mkdir()
    (here / "auto" / "model.toml").write_text("threshold = 0.9\n")
    assert predict("in", "out").exit_code == 0
    assert run_file(here / "out")["settings"]["threshold"] == 0.5


def test_channels_may_be_a_list_in_a_file_as_in_that_of_a_model(here):
    (here / "c.toml").write_text("mean = [0.5, 0.4, 0.3]\n")
    result = predict("in", "out", "--config", "c.toml", "--dry-run")
    assert result.exit_code == 0, result.output
    (here / "c.toml").write_text("mean = [0.5, true, 0.3]\n")
    assert "is not three numbers" in str(predict("in", "out", "--config", "c.toml").exception)


def test_a_shadow_needs_a_background(here):
    assert "Give that as well" in str(predict("in", "out", "--shadow").exception)
    assert predict("in", "out", "--background", "white", "--shadow").exit_code == 0
    assert run_file(here / "out")["settings"]["shadow"] is True
    assert predict("in", "plain", "--background", "white").exit_code == 0
    shaded, plain = (here / out / "_background" / "car.jpg" for out in ("out", "plain"))
    assert shaded.read_bytes() != plain.read_bytes()
    assert "shadow: True before, None now" in str(predict("in", "out", "--background", "white").exception)
