"""A YAML file gives defaults, flags win, and mistakes in either are named."""

import importlib
import re

import pytest
import yaml
from diffusers import UNet2DConditionModel

from pqdiff import AutoencoderPQ
from pqdiff.training.arguments import TrainerParser, check_keys, construct, structured
from pqdiff.training.run_options import write_config


def parse(*argv, config=None, folder=None):
    parser = TrainerParser("A trainer.")
    parser.add_argument("--stages", type=structured, help="YAML")
    parser.add_argument("--prompts", nargs="+", default=[], help="texts")
    parser.add_argument("--fast", action="store_true", help="switch")
    if config is not None:
        path = folder / "config.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        argv = ("--config", path, *argv)
    return parser.parse([*map(str, argv), "--output_dir", "run"])


def refusal(folder, config) -> str:
    with pytest.raises(ValueError, match="config") as error:
        parse(config=config, folder=folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("place", ["photos", "photos/run", "link/run", "photos/../photos/run"])
def test_a_run_does_not_write_where_data_are_read(tmp_path, place):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    parser = TrainerParser("A trainer.")
    parser.add_argument("--dataset")
    with pytest.raises(ValueError, match="would be trained on; choose a folder beside it"):
        parser.parse(["--dataset", str(tmp_path / "photos"), "--output_dir", str(tmp_path / place)])
    assert not list((tmp_path / "photos").iterdir())
    assert parser.parse(["--dataset", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "photos-run")])


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    args = parse("--batch_size", 3, config={"batch_size": 2, "seed": 7}, folder=tmp_path)
    assert (args.batch_size, args.seed, args.weight_decay) == (3, 7, 0.01)


def test_values_of_the_file_become_what_the_flag_would_be(tmp_path):
    config = "adam_betas: [0.5, 0.9]\nweight_decay: 1e-3\nfast: true\nprompts: [a b, 3]\nstages: [{steps: 2}]\n"
    args = parse(config=config, folder=tmp_path)
    assert (args.adam_betas, args.weight_decay, args.fast) == ([0.5, 0.9], 1e-3, True)
    assert (args.prompts, args.stages) == (["a b", "3"], [{"steps": 2}])


def test_one_text_where_several_go_is_one_text(tmp_path):
    assert parse(config={"prompts": "a red circle"}, folder=tmp_path).prompts == ["a red circle"]


def test_stages_on_the_command_line_are_yaml():
    assert parse("--stages", "[{steps: 2, trainable: all}]").stages == [{"steps": 2, "trainable": "all"}]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"batchsize": 2}, "unknown key batchsize: did you mean 'batch_size'?"),
        ({"zzz": 2}, "unknown key zzz: choose one of "),
        ({"batch_size": 2.5}, "batch_size cannot be 2.5"),
        ({"batch_size": 0}, "must be at least 1, got 0"),
        ({"seed": "seven"}, "seed cannot be 'seven'"),
        ({"resume": "yes"}, "resume must be true or false"),
        ({"adam_betas": [0.9]}, "adam_betas must be a list of 2"),
        ({"adam_betas": 0.9}, "adam_betas must be a list of 2"),
        ({"lr_schedule": "steps"}, "'steps') must be one of constant, linear, cosine"),
        (["seed"], "must be a mapping"),
        ("seed: [", "while parsing"),
    ],
    ids=str,
)
def test_mistakes_in_the_file_are_named(tmp_path, config, named):
    assert named in refusal(tmp_path, config)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--config .*nowhere\.yaml: .*No such file"):
        parse("--config", tmp_path / "nowhere.yaml")


def test_an_output_folder_is_needed():
    with pytest.raises(ValueError, match="--output_dir is missing"):
        TrainerParser("A trainer.").parse([])


@pytest.mark.parametrize("flag", ["batch_size", "checkpointing_steps", "log_steps", "gradient_accumulation_steps"])
def test_counts_must_be_positive(flag, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{flag}", 0)
    assert f"--{flag}: must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("value", [10**12, -1])
@pytest.mark.parametrize("trainer", ["adapt_sd", "train_kl", "train_ldm", "train_pqgan", "cache_latents"])
def test_integers_without_end_are_refused_by_every_trainer_for_every_flag(trainer, value, capsys):
    """Kind: a small input with a large cost."""
    module, tried = importlib.import_module(f"training.{trainer}"), 0
    with pytest.raises(SystemExit):
        module.parse(["--help"])
    flags = re.findall(r"--(\w+)", capsys.readouterr().out)
    needed = ["--dataset", "scenes", "--autoencoder", "x", "--resolution", "64", "--output", "x"]
    needed = needed if trainer == "cache_latents" else ["--output_dir", "x"]
    needed += ["--variant", "quick"] if trainer == "adapt_sd" else []
    for flag in dict.fromkeys(flags):
        try:
            known = module.parse([*needed, f"--{flag}", "3"])
        except (SystemExit, ValueError):
            continue
        if type(getattr(known, flag, None)) is int and not (flag == "seed" and value > 0):
            tried += 1
            with pytest.raises((ValueError, SystemExit)) as error:
                module.parse([*needed, f"--{flag}", str(value)])
            message = str(error.value) if error.type is ValueError else capsys.readouterr().err
            assert f"--{flag}" in message
    assert tried > 5


def test_the_written_file_gives_the_same_arguments_again(tmp_path):
    first = parse("--prompts", "a", "b c", "--fast", "--stages", "[{learning_rate: 1e-4}]", "--resume", "--seed", 3)
    write_config(vars(first), tmp_path / "config.yaml")
    second = parse("--config", tmp_path / "config.yaml")
    left_out = {"config", "resume", "adam_betas"}
    assert {k: v for k, v in vars(first).items() if k not in left_out} == {
        k: v for k, v in vars(second).items() if k not in left_out
    }
    assert tuple(second.adam_betas) == tuple(first.adam_betas)
    assert not second.resume


def test_every_flag_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "steps between checkpoints (default: 500)" in " ".join(text.split())


def test_unknown_constructor_arguments_get_a_suggestion():
    with pytest.raises(ValueError, match="--model unet: unknown key sample_sice: did you mean 'sample_size'"):
        construct(UNet2DConditionModel, "--model unet", {"sample_sice": 8})


def test_constructor_arguments_of_the_wrong_kind_are_named():
    with pytest.raises(ValueError, match="--model unet"):
        construct(UNet2DConditionModel, "--model unet", {"block_out_channels": 8})


def test_given_constructor_arguments_win_over_known_ones():
    assert construct(_Pair, "--model", {"b": 3}, a=1, b=2).values == (1, 3)


@pytest.mark.parametrize("given", [[1], "unet", None])
def test_only_mappings_have_keys(given):
    with pytest.raises(ValueError, match="--model must be a mapping with keys out of unet"):
        check_keys("--model", given, ["unet"])


class _Pair:
    def __init__(self, a, b):
        self.values = (a, b)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (UNet2DConditionModel, {"layers_per_block": 10**9}),
        (UNet2DConditionModel, {"transformer_layers_per_block": [1, 10**9, 1, 1]}),
        (
            AutoencoderPQ,
            {"transform_type": "sum", "transform_config": {"parts": [{"config": {"layers_per_block": 10**9}}]}},
        ),
    ],
)
def test_models_without_end_are_refused_before_they_are_built(kind, given):
    with pytest.raises(ValueError, match=r"--model: \w*layers_per_block \(.*1000000000.*\) may be at most 128"):
        construct(kind, "--model", given)
