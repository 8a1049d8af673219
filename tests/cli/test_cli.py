"""The `pqdiff` command as people run it: what it prints and writes, and that mistakes end in one line and exit code 2."""

import contextlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pqdiff import AutoencoderPQ
from pqdiff.cli import main
from pqdiff.data.codes import load_codes
from pqdiff.data.images import load_image, normalize, to_image, to_pixels, to_tensor
from pqdiff.models.closed_form import fit_closed_form
from pqdiff.models.fingerprint import fingerprint

F8 = "f8-d128-s64-k512"
UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # Python shows no user these


def photo(seed, height=128, width=128):
    """Smooth random colors with a little noise: uint8 `(3, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size=(height, width), mode="bicubic")
    image += 0.05 * torch.randn(1, 3, height, width, generator=generator)
    return image[0].clamp(0, 1).mul(255).round().to(torch.uint8)


def save(path, seed, *size):
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(photo(seed, *size)).save(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than they bring on tiny models and busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def f8(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("models") / "tiny-f8"
    fit_closed_form(map(photo, range(8)), F8, sample_size=2048, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def f16(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("models") / "tiny-f16"
    fit_closed_form(map(photo, range(8)), "f16-d128-s64-k128", sample_size=2048, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, one_thread):
    """What `pqdiff fit --json` printed and wrote for eight photos."""
    folder = tmp_path_factory.mktemp("fitted")
    for seed in range(8):
        save(folder / "photos" / f"{seed}.png", seed)
    out = io.StringIO()
    arguments = ["fit", folder / "photos", "-o", folder / "model", "-p", F8, "--resolution", "128", "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", ["pqdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return SimpleNamespace(folder=folder, model=folder / "model", code=ended.value.code, out=out.getvalue())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def pqdiff(monkeypatch, capfd):
    """Run the command; warnings that Python would show a user count as lines on stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pqdiff", *map(str, arguments)])
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capfd.readouterr()
        shown = [f"{warning.message}\n" for warning in caught if not issubclass(warning.category, UNSEEN)]
        return SimpleNamespace(code=ended.value.code, out=out, err="".join(shown) + err)

    return run


def assert_done(result):
    assert (result.code or 0, result.err) == (0, "")


def assert_refused(result, name, output=None):
    """Exit code 2, one line on stderr with the name, nothing on stdout, nothing written."""
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("pqdiff: ")
    assert str(name) in result.err
    assert output is None or files_in(output) == []


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# Bad inputs of each kind.


def cut(path, source, kept):
    path.write_bytes(source.read_bytes()[:kept])


def bad_photo(kind, folder):
    path = folder / "bad.jpg"
    if kind == "corrupt":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "truncated":
        cut(path, save(folder / "aside" / "whole.jpg", 0), -500)
    elif kind == "cut tiff":
        cut(path, save(folder / "aside" / "whole.tif", 0), 60)
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        path.write_text("This is not a photo.\nReally.\n")
    elif kind == "folder":
        path.mkdir()
    return path  # "missing": never made


BAD_PHOTOS = ("corrupt", "truncated", "cut tiff", "empty", "foreign", "folder", "missing")


def bad_model(kind, folder, whole):
    path = folder / "bad-model"
    weights = path / "diffusion_pytorch_model.safetensors"
    if kind == "missing":
        return path
    if kind == "photo":
        return save(folder / "bad-model.png", 0)
    if kind == "empty folder":
        path.mkdir()
        return path
    shutil.copytree(whole, path)
    config = json.loads((path / "config.json").read_text())
    if kind == "another class":
        (path / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}))
    elif kind == "no class":
        (path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    elif kind == "list":
        (path / "config.json").write_text("[]")
    elif kind == "cut config":
        cut(path / "config.json", whole / "config.json", 100)
    elif kind == "wrong config":
        (path / "config.json").write_text(json.dumps({**config, "latent_channels": 100}))
    elif kind == "another size":
        quantizer = {"num_subspaces": 64, "codebook_size": 256}
        (path / "config.json").write_text(json.dumps({**config, "quantizer_config": quantizer}))
    elif kind == "no config":
        (path / "config.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "cut weights":
        cut(weights, whole / weights.name, -1000)
    elif kind == "corrupt weights":
        weights.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "a tensor missing":
        tensors = load_file(weights)
        del tensors["patch_transform.analysis.bias"]  # which a convolution can also do without
        save_file(tensors, weights)
    elif kind == "foreign weights":
        save_file({"another": torch.zeros(3)}, weights)
    return path


BAD_MODELS = (
    *("missing", "photo", "empty folder", "another class", "no class", "list", "cut config", "wrong config"),
    *("another size", "no config", "no weights", "cut weights", "corrupt weights", "foreign weights"),
    "a tensor missing",
)


def encoded(pqdiff, folder, model, *photos):
    """Files of codes of photos."""
    assert_done(pqdiff("encode", *photos, "-o", folder, "-m", model))
    return sorted(folder.glob("*.pq.safetensors"))


def bad_codes(kind, folder, whole):
    path = folder / "bad.pq.safetensors"
    if kind == "corrupt":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "truncated":
        cut(path, whole, -10)
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        save_file({"codes": torch.zeros(4, dtype=torch.uint8)}, path)
    elif kind == "photo":
        save(folder / "bad.png", 0).rename(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in CHANGES:
        with safe_open(whole, framework="pt") as file:
            header, packed = json.loads(file.metadata()["pqdiff"]), file.get_tensor("codes")
        save_file({"codes": packed}, path, metadata={"pqdiff": json.dumps({**header, **CHANGES[kind]})})
    return path  # "missing": never made


CHANGES = {
    "text as height": {"height": "16"},
    "fraction as height": {"height": 16.0},
    "no model": {"model": None},
    "other extent": {"height": 64},
}
BAD_CODES = (
    *("corrupt", "truncated", "empty", "foreign", "photo", "folder", "missing", "text as height"),
    *("fraction as height", "no model", "other extent"),
)


# The installed script.


def test_the_installed_script_runs_and_keeps_stderr_clean(tmp_path, f8):
    save(tmp_path / "a.png", 1, 16, 24)
    script = Path(sys.executable).with_name("pqdiff")
    command = [script] if script.exists() else [sys.executable, "-c", "from pqdiff.cli import main; main()"]
    command += ["reconstruct", "a.png", "-o", "out", "-m", str(f8), "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["files"] == [str(Path("out", "a.panel.png"))]
    assert files_in(tmp_path / "out") == ["a.panel.png"]


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["reconstruct"], ["encode", "a.png"], ["decode"], ["info"], ["evaluate"], ["fit", "x"]]
)
def test_wrong_usage_exits_with_2(pqdiff, arguments):
    result = pqdiff(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_help_names_every_command(pqdiff):
    result = pqdiff("--help")
    assert_done(result)
    for command in ("reconstruct", "encode", "decode", "info", "evaluate", "fit"):
        assert command in result.out


# reconstruct


def test_reconstruct_reports_what_it_wrote(tmp_path, pqdiff, f8, f16):
    original = save(tmp_path / "a.png", 1, 40, 56)
    output = tmp_path / "new" / "out"
    result = pqdiff("reconstruct", original, "-o", output, "-m", f8, "-m", f16, "--save-images", "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert sorted(report["files"]) == sorted(str(path) for path in output.iterdir())
    assert files_in(output) == ["a.panel.png", "a.tiny-f16.png", "a.tiny-f8.png"]
    for row, name, rate in zip(report["results"], ("tiny-f8", "tiny-f16"), (9.0, 1.75), strict=True):
        assert (row["photo"], row["model"], row["bits_per_pixel"]) == (str(original), name, rate)
        error = (pixels_of(output / f"a.{name}.png") - pixels_of(original)) / 255
        assert row["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-3)
        assert 0 < row["ssim"] < 1
        assert row["seconds"] >= 0
    assert report["results"][0]["psnr"] > report["results"][1]["psnr"] > 15
    with Image.open(output / "a.panel.png") as panel:
        assert panel.width > 3 * 150


def test_reconstruct_prints_a_table(tmp_path, pqdiff, f8):
    result = pqdiff("reconstruct", save(tmp_path / "a.png", 1, 16, 24), "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    for text in ("a.png", "tiny-f8", "PSNR", "SSIM", "Written:", "a.panel.png"):
        assert text in result.out
    assert files_in(tmp_path / "out") == ["a.panel.png"]


def test_tables_show_names_with_brackets_as_they_are(tmp_path, pqdiff, f8):
    result = pqdiff("reconstruct", save(tmp_path / "a[b].png", 1, 16, 16), "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    assert "a[b].png" in result.out.split("Written:")[0]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 29), (1, 20), (11, 11)])
def test_reconstruct_takes_photos_of_any_size(tmp_path, pqdiff, f8, size):
    original = save(tmp_path / "a.png", 1, *size)
    result = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--save-images", "--json")
    assert_done(result)
    row = json.loads(result.out)["results"][0]
    assert (row["ssim"] is None) == (min(size) < 11)
    assert pixels_of(tmp_path / "out" / "a.tiny-f8.png").shape == (*size, 3)
    table = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8)
    assert_done(table)
    assert ("-" in table.out.split("tiny-f8")[1].split()) == (min(size) < 11)


def test_reconstruct_takes_gray_and_transparent_photos(tmp_path, pqdiff, f8):
    colors = photo(1, 16, 24).permute(1, 2, 0).numpy()
    pairs = {
        "gray": (Image.fromarray(colors[..., 0]), colors[..., :1].repeat(3, axis=2)),
        "clear": (Image.fromarray(np.dstack([colors, np.zeros_like(colors[..., 0])])), np.full_like(colors, 255)),
    }
    for name, (image, same_in_rgb) in pairs.items():
        image.save(tmp_path / f"{name}.png")
        Image.fromarray(same_in_rgb).save(tmp_path / f"{name}-rgb.png")
    assert_done(pqdiff("reconstruct", *tmp_path.glob("*.png"), "-o", tmp_path / "out", "-m", f8, "--save-images"))
    for name in pairs:
        ours, expected = (pixels_of(tmp_path / "out" / f"{stem}.tiny-f8.png") for stem in (name, f"{name}-rgb"))
        assert np.array_equal(ours, expected)


def test_reconstruct_is_the_model_itself_also_in_tiles(tmp_path, pqdiff, f8):
    original = save(tmp_path / "a.png", 1, 16, 1096)  # wider than a tile
    assert_done(pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--save-images"))
    model = AutoencoderPQ.from_pretrained(f8).eval()
    with torch.no_grad():
        expected = to_pixels(model(normalize(to_tensor(load_image(original))[None])).sample[0])
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.tiny-f8.png"), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("names", [["x/a.png", "y/a.png", "z/a.jpg"], ["x/a.png", "y/a.png", "a-2.png"]])
@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_photos_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, names, command):
    photos = [save(tmp_path / name, seed, 8, 8 * (seed + 1)) for seed, name in enumerate(names)]
    result = pqdiff(command, *photos, "-o", tmp_path / "out", "-m", f8, "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == 3


def test_models_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, f16):
    other = shutil.copytree(f16, tmp_path / "other" / f8.name)
    photos = [save(tmp_path / "a.png", 1, 16, 16)]
    result = pqdiff("reconstruct", *photos, "-o", tmp_path / "out", "-m", f8, "-m", other, "--save-images", "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == len(set(json.loads(result.out)["files"])) == 3


# encode and decode


@pytest.mark.parametrize("size", [(40, 56), (13, 29), (1, 1)])
def test_encode_then_decode_is_reconstruct(tmp_path, pqdiff, f8, size):
    original = save(tmp_path / "a.png", 1, *size)
    assert_done(pqdiff("reconstruct", original, "-o", tmp_path / "direct", "-m", f8, "--save-images"))
    codes = encoded(pqdiff, tmp_path / "codes", f8, original)
    result = pqdiff("decode", *codes, "-o", tmp_path / "decoded", "--json")
    assert_done(result)
    files = [row["file"] for row in json.loads(result.out)["results"]]
    assert files == [str(tmp_path / "decoded" / "a.png")]
    assert np.array_equal(pixels_of(files[0]), pixels_of(tmp_path / "direct" / "a.tiny-f8.png"))


def test_encode_packs_tokens_to_the_promised_rate(tmp_path, pqdiff, f8):
    original = save(tmp_path / "a.png", 1, 40, 56)
    result = pqdiff("encode", original, "-o", tmp_path / "out", "-m", f8, "--json")
    assert_done(result)
    (row,) = json.loads(result.out)["results"]
    assert row["bytes"] == 64 * 5 * 7 * 9 // 8
    assert row["bits_per_pixel"] == pytest.approx(9.0)
    codes = load_codes(row["file"])
    model = AutoencoderPQ.from_pretrained(f8).eval()
    with torch.no_grad():
        assert torch.equal(codes.indices, model.encode_to_indices(normalize(to_tensor(load_image(original))[None]))[0])
    assert (codes.height, codes.width, codes.fingerprint) == (40, 56, fingerprint(model))


def test_encode_and_decode_print_what_they_wrote(tmp_path, pqdiff, f8):
    photos = [save(tmp_path / "a.png", 1, 16, 24), save(tmp_path / "b.png", 2, 8, 8)]
    result = pqdiff("encode", *photos, "-o", tmp_path / "codes", "-m", f8)
    assert_done(result)
    assert str(64 * 2 * 3 * 9 // 8) in result.out
    codes = sorted((tmp_path / "codes").iterdir())
    result = pqdiff("decode", *codes, "-o", tmp_path / "out")
    assert_done(result)
    assert result.out.splitlines() == ["Written:", *(f"  {tmp_path / 'out' / name}" for name in ("a.png", "b.png"))]


def test_decode_takes_a_moved_model_by_option(tmp_path, pqdiff, f8):
    moved = shutil.copytree(f8, tmp_path / "moved")
    codes = encoded(pqdiff, tmp_path / "codes", moved, save(tmp_path / "a.png", 1, 16, 24))
    shutil.rmtree(moved)
    assert_refused(pqdiff("decode", *codes, "-o", tmp_path / "out"), moved, tmp_path / "out")
    assert_done(pqdiff("decode", *codes, "-o", tmp_path / "out", "-m", f8))
    assert files_in(tmp_path / "out") == ["a.png"]


def test_decode_refuses_codes_of_another_tokenizer(tmp_path, pqdiff, f8, f16):
    codes = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "a.png", 1, 16, 24))
    result = pqdiff("decode", *codes, "-o", tmp_path / "out", "-m", f16)
    assert_refused(result, codes[0], tmp_path / "out")
    assert str(f8) in result.err
    assert str(f16) in result.err


def test_decode_does_not_overwrite_codes_of_the_same_name(tmp_path, pqdiff, f8):
    first = encoded(pqdiff, tmp_path / "x", f8, save(tmp_path / "a.png", 1, 8, 8))
    second = encoded(pqdiff, tmp_path / "y", f8, save(tmp_path / "a.png", 2, 8, 16))
    assert_done(pqdiff("decode", *first, *second, "-o", tmp_path / "out"))
    assert sorted(pixels_of(path).shape for path in (tmp_path / "out").iterdir()) == [(8, 8, 3), (8, 16, 3)]


@pytest.mark.parametrize("kind", BAD_PHOTOS)
@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_a_bad_photo_is_refused_before_anything_is_written(tmp_path, pqdiff, f8, command, kind):
    good, bad = save(tmp_path / "good.png", 1, 16, 16), bad_photo(kind, tmp_path)
    result = pqdiff(command, good, bad, "-o", tmp_path / "out", "-m", f8)
    assert_refused(result, bad, tmp_path / "out")


@pytest.mark.parametrize("kind", BAD_CODES)
def test_bad_codes_are_refused_before_anything_is_written(tmp_path, pqdiff, f8, kind):
    (good,) = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "good.png", 1, 16, 24))
    bad = bad_codes(kind, tmp_path, good)
    assert_refused(pqdiff("decode", good, bad, "-o", tmp_path / "out"), bad, tmp_path / "out")


def test_codes_whose_codebooks_are_not_the_models_are_refused(tmp_path, pqdiff, f8):
    (good,) = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "good.png", 1, 16, 24))
    bad = tmp_path / "bad.pq.safetensors"
    with safe_open(good, framework="pt") as file:
        header = json.loads(file.metadata()["pqdiff"])
    header |= {"codebook_sizes": [512] * 3, "shape": [3, 2, 3]}  # consistent in itself
    packed = torch.zeros(-(-3 * 6 * 9 // 8), dtype=torch.uint8)
    save_file({"codes": packed}, bad, metadata={"pqdiff": json.dumps(header)})
    assert_refused(pqdiff("decode", good, bad, "-o", tmp_path / "out"), bad, tmp_path / "out")


@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode"])
def test_an_output_that_is_a_file_is_refused(tmp_path, pqdiff, f8, command):
    inputs = [save(tmp_path / "a.png", 1, 16, 16)]
    if command == "decode":
        inputs = encoded(pqdiff, tmp_path / "codes", f8, *inputs)
    (tmp_path / "out").write_text("precious")
    assert_refused(pqdiff(command, *inputs, "-o", tmp_path / "out", "-m", f8), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


# Models that are none


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused(tmp_path, pqdiff, f8, kind):
    bad = bad_model(kind, tmp_path, f8)
    assert_refused(pqdiff("info", bad), bad)


@pytest.mark.parametrize("kind", ["missing", "another class", "cut weights", "a tensor missing"])
@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "evaluate"])
def test_a_bad_model_is_refused_before_anything_is_written(tmp_path, pqdiff, f8, command, kind):
    inputs = [save(tmp_path / "photos" / "a.png", 1, 16, 16)]
    if command == "decode":
        inputs = encoded(pqdiff, tmp_path / "codes", f8, *inputs)
    bad = bad_model(kind, tmp_path, f8)
    output = tmp_path / "out" / "metrics.json" if command == "evaluate" else tmp_path / "out"
    sources = [tmp_path / "photos"] if command == "evaluate" else inputs
    assert_refused(pqdiff(command, *sources, "-o", output, "-m", bad), bad, tmp_path / "out")


@pytest.mark.parametrize("name", ["f8-d128", "some-user/some-model", "no/such/folder"])
def test_an_unknown_model_name_is_refused(pqdiff, name):
    assert_refused(pqdiff("info", name), name)


# info


def test_info_as_json_holds_the_configuration_and_rate(pqdiff, f8):
    result = pqdiff("info", f8, "--json")
    assert_done(result)
    facts, model = json.loads(result.out), AutoencoderPQ.from_pretrained(f8)
    assert facts["fingerprint"] == fingerprint(model)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (facts["downsample_factor"], facts["tokens_per_position"]) == (8, 64)
    assert (facts["bits_per_position"], facts["bits_per_pixel"]) == (576, 9)
    assert facts["config"]["quantizer_config"] == {"num_subspaces": 64, "codebook_size": 512}
    assert facts["config"]["preset"] == F8
    assert facts["measured"] is None


def test_info_as_a_table(pqdiff, f8):
    result = pqdiff("info", f8)
    assert_done(result)
    for text in ("fingerprint", "bits_per_pixel", "9.0", "config.latent_channels", "128", "pqdiff evaluate"):
        assert text in result.out


def evaluated(pqdiff, folder, model, output):
    for seed in range(2):
        save(folder / f"{seed}.png", seed, 32, 40)
    return pqdiff("evaluate", folder, "-m", model, "-o", output, "--resolution", "32", "--json")


def test_info_shows_what_evaluate_measured(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    result = evaluated(pqdiff, tmp_path / "photos", model, tmp_path / "metrics.json")
    assert_done(result)
    (measured,) = json.loads(result.out).values()
    (model / "metrics.json").write_text(json.dumps(measured))
    assert json.loads(pqdiff("info", model, "--json").out)["measured"] == measured
    table = pqdiff("info", model)
    assert_done(table)
    assert f"{measured['metrics']['psnr_dataset']:.4f}" in table.out
    assert "2 images, photos" in table.out


def test_info_follows_its_own_advice_to_evaluate(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    assert_done(evaluated(pqdiff, tmp_path / "photos", model, model / "metrics.json"))
    assert_done(pqdiff("info", model))  # must not stumble over the file that evaluate wrote there


@pytest.mark.parametrize("text", ["", "{", '{"metrics": 3}'])
def test_info_refuses_a_damaged_file_of_metrics(tmp_path, pqdiff, f8, text):
    model = shutil.copytree(f8, tmp_path / "model")
    (model / "metrics.json").write_text(text)
    assert_refused(pqdiff("info", model), "metrics.json")


# evaluate


def test_evaluate_writes_what_it_prints(tmp_path, pqdiff, f8, f16):
    for seed in range(5):
        save(tmp_path / "photos" / f"{seed}.png", seed, 40, 50)
    output = tmp_path / "new" / "metrics.json"
    arguments = ["evaluate", tmp_path / "photos", "-m", f8, "-m", f16, "-o", output, "--resolution", 32]
    result = pqdiff(*arguments, "--every", 2, "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert report == json.loads(output.read_text())
    assert files_in(tmp_path / "new") == ["metrics.json"]
    assert list(report) == [str(f8), str(f16)]
    for model in report.values():
        assert model["num_images"] == 3
        assert model["data"] == "photos, every 2"
        assert model["protocol"]["resolution"] == 32
    metrics = report[str(f8)]["metrics"]
    assert metrics["bits_per_pixel"] == pytest.approx(9)
    assert 0 < metrics["entropy_bits_per_pixel"] < 9
    assert metrics["psnr_image_mean"] >= metrics["psnr_dataset"] > report[str(f16)]["metrics"]["psnr_dataset"]
    table = pqdiff(*arguments)
    assert_done(table)
    assert "5 images at 32 px" in table.out
    assert str(output) in table.out.replace("\n", "")


def test_evaluate_agrees_with_reconstruct(tmp_path, pqdiff, f8):
    original = save(tmp_path / "photos" / "a.png", 3, 64, 64)  # no resizing, no cropping
    evaluation = pqdiff("evaluate", original.parent, "-m", f8, "-o", tmp_path / "m.json", "--resolution", 64, "--json")
    reconstruction = pqdiff("reconstruct", original, "-m", f8, "-o", tmp_path / "out", "--json")
    metrics, row = json.loads(evaluation.out)[str(f8)]["metrics"], json.loads(reconstruction.out)["results"][0]
    assert metrics["psnr_dataset"] == pytest.approx(row["psnr"], abs=1e-6)
    assert metrics["ssim"] == pytest.approx(row["ssim"], abs=1e-6)


@pytest.mark.parametrize("resolution", [100, 8, 0, -32])
def test_evaluate_refuses_a_resolution_that_does_not_fit(tmp_path, pqdiff, f8, resolution):
    save(tmp_path / "photos" / "a.png", 1, 16, 16)
    arguments = ["-m", f8, "-o", tmp_path / "out" / "m.json", "--resolution", resolution]
    assert_refused(pqdiff("evaluate", tmp_path / "photos", *arguments), resolution, tmp_path / "out")


# fit


def test_fit_writes_a_model_that_loads_with_its_card(fitted):
    assert fitted.code in (0, None)
    assert files_in(fitted.model) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    model = AutoencoderPQ.from_pretrained(fitted.model)
    assert model.config.preset == F8
    report = {"preset": F8, "folder": str(fitted.model), "fingerprint": fingerprint(model)}
    assert json.loads(fitted.out) == {"fitted": [report]}
    card = (fitted.model / "README.md").read_text()
    assert card.startswith("---\n")
    assert fingerprint(model) in card
    assert f"--preset {F8}" in card
    assert sorted(path.name for path in fitted.folder.iterdir()) == ["model", "photos"]


def test_a_fitted_model_reconstructs_its_photos(fitted, tmp_path, pqdiff):
    result = pqdiff("reconstruct", fitted.folder / "photos" / "3.png", "-m", fitted.model, "-o", tmp_path, "--json")
    assert_done(result)
    assert json.loads(result.out)["results"][0]["psnr"] > 25


def test_everyone_may_read_a_fitted_model_who_may_read_its_folder(fitted):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o444 for path in fitted.model.iterdir()}
    assert set(modes.values()) == {stat.S_IMODE(fitted.model.stat().st_mode) & 0o444}, modes


def test_the_same_seed_fits_the_same_model(fitted, tmp_path, pqdiff):
    result = pqdiff("fit", fitted.folder / "photos", "-o", tmp_path / "again", "-p", F8, "--resolution", 128)
    assert_done(result)
    assert result.out.splitlines() == ["Written:", f"  {tmp_path / 'again'}"]
    again = AutoencoderPQ.from_pretrained(tmp_path / "again")
    assert fingerprint(again) == json.loads(fitted.out)["fitted"][0]["fingerprint"]


def photos_for_fit(folder, count=2):
    for seed in range(count):
        save(folder / f"{seed}.png", seed)
    return folder


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_fit_refuses_an_output_that_exists_before_any_work(tmp_path, pqdiff, kind):
    photos, output = photos_for_fit(tmp_path / "photos"), tmp_path / "model"
    bad_photo("corrupt", photos)  # which would be found first if the work began
    if kind == "file":
        output.write_text("precious")
    else:
        output.mkdir()
        (output / "notes.txt").write_text("precious")
    result = pqdiff("fit", photos, "-o", output, "-p", F8)
    assert_refused(result, output)
    assert "exists" in result.err
    assert (output if kind == "file" else output / "notes.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]


def test_fit_of_several_presets_refuses_an_output_that_exists_before_any_work(tmp_path, pqdiff):
    photos, second = photos_for_fit(tmp_path / "photos"), tmp_path / "models" / "pqgan-f16-d128-s64-k128"
    bad_photo("corrupt", photos)
    second.mkdir(parents=True)
    (second / "notes.txt").write_text("precious")
    result = pqdiff("fit", photos, "-o", tmp_path / "models", "-p", F8, "-p", "f16-d128-s64-k128")
    assert_refused(result, second)
    assert files_in(tmp_path / "models") == [second.name, "notes.txt"][::-1]


def test_an_interrupted_fit_leaves_nothing_behind(tmp_path, pqdiff):
    photos, output = photos_for_fit(tmp_path / "photos", 8), tmp_path / "model"

    def interrupt():
        for _ in range(1000):
            if any(path.name.startswith(".model") for path in tmp_path.iterdir()):  # the fit has claimed its folder
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = pqdiff("fit", photos, "-o", output, "-p", F8, "--resolution", 128)
    thread.join()
    assert result.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert "Traceback" not in result.err
    assert result.err == "pqdiff: interrupted; nothing was left half-written\n"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-p", "f8-d128"], "f8-d128"),
        (["-p", F8, "-p", "nonsense"], "nonsense"),
        (["-p", F8, "--hidden-channels", "7"], "hidden"),
        (["-p", F8, "--hidden-channels", "-64"], "hidden"),
        (["-p", F8, "--hidden-channels", "128"], "hidden"),  # more than a patch has
        (["-p", F8, "--exclude-every", "1"], "too few"),
        (["-p", F8, "--resolution", "16"], "512"),  # fewer patches than codewords
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fit_refuses_options_that_cannot_work(tmp_path, pqdiff, options, name):
    photos = photos_for_fit(tmp_path / "photos")
    assert_refused(pqdiff("fit", photos, "-o", tmp_path / "out" / "model", *options), name, tmp_path / "out")


# Sources of photos, for evaluate and fit


def run_on_source(pqdiff, command, source, output, model):
    options = ["-p", F8] if command == "fit" else ["-m", model, "--resolution", 16]
    return pqdiff(command, source, "-o", output / "result.json", *options)


@pytest.mark.parametrize("kind", [kind for kind in BAD_PHOTOS if kind not in ("folder", "missing")])
@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_a_bad_photo_in_a_folder_is_refused(tmp_path, pqdiff, f8, command, kind):
    save(tmp_path / "photos" / "a.png", 1, 16, 16)
    bad = bad_photo(kind, tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "aside", ignore_errors=True)
    result = run_on_source(pqdiff, command, tmp_path / "photos", tmp_path / "out", f8)
    assert_refused(result, bad, tmp_path / "out")


@pytest.mark.parametrize("command", ["evaluate", "fit"])
@pytest.mark.parametrize("kind", ["missing", "empty", "photo", "data set"])
def test_a_source_without_photos_is_refused(tmp_path, pqdiff, f8, command, kind):
    source = tmp_path / "source"
    if kind == "empty":
        source.mkdir()
    elif kind == "photo":
        source = save(tmp_path / "source.png", 1, 16, 16)
    elif kind == "data set":
        source = "some-user/some-photos"
    assert_refused(run_on_source(pqdiff, command, source, tmp_path / "out", f8), source, tmp_path / "out")
