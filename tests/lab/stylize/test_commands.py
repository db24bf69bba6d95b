"""`calibnorm stylize` as a user calls it: training, resumption, pictures of all kinds, export, comparison, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibnorm.errors import UsageError
from calibnorm.lab import exporting, tasks
from calibnorm.lab.data import unlabelled
from calibnorm.lab.recipes import Recipe, Stylization
from calibnorm.lab.stylize import apply
from calibnorm.lab.stylize.opening import opened
from lab.calling import main
from lab.stylize.small import SMALL, words
from lab.training import tiny

CPU = ["--accelerator", "cpu", "--workers", "0", "--no-progress"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs, two of them in a folder inside."""
    folder, draw = tmp_path_factory.mktemp("content"), np.random.default_rng(0)
    (folder / "more").mkdir()
    for number in range(12):
        place = folder / "more" if number > 9 else folder
        pixels = draw.integers(0, 255, (30, 36 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run(content: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command, with a style and photographs of one's own."""
    folder = tmp_path_factory.mktemp("run") / "run"
    style = content.parent / "stripes.png"
    Image.fromarray(np.tile(np.array([[250, 40, 20], [10, 60, 240]], np.uint8).repeat(4, 0), (40, 5, 1))).save(style)
    options = [*words(replace(SMALL, norm="iebn")), "--style", str(style), "--content", str(content)]
    assert main(["stylize", "train", *options, "--out", str(folder), *CPU]) == 0
    return folder


def test_a_run_has_its_losses_apart_a_preview_and_says_which_features(run: Path, content: Path) -> None:
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    names = [f"{of}_{what}" for of in ("train", "test") for what in ("loss", "content_loss", "style_loss", "variation")]
    assert header == ["epoch", *names, "learning_rate"]
    assert [path.name for path in sorted((run / "previews").iterdir())] == ["epoch-001.png", "epoch-002.png"]
    with Image.open(run / "previews" / "epoch-002.png") as preview:
        assert preview.size == (2 * 24, 2 * 24), "the test's two photographs above what becomes of them"
    data = json.loads((run / "data.json").read_text())
    assert data["beside"] == [f"style {content.parent / 'stripes.png'}; features: VGG-16 with random weights (seed 0)"]
    assert data["train"]["images"] == {"photographs": 10, "style": 1}
    assert data["test"]["images"] == {"photographs": 2}
    again = unlabelled.Contents.from_dict(data)
    assert again.in_words() == [f"{content}: 10 photographs to train on, 2 others to test on", *data["beside"]]
    assert (again.outputs, again.of_outputs(), again.news()) == ((), {}, again.in_words())


def test_the_folder_is_named_after_style_norm_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = replace(SMALL, steps=1, epochs=1, norm="rbn", style="gravel")
    assert main(["stylize", "train", *words(shorter), *CPU]) == 0
    assert (tmp_path / "runs" / "style-small" / "gravel-rbn-seed0" / "result.json").exists()
    assert main(["inspect", "runs/style-small/gravel-rbn-seed0"]) == 0
    assert "calibnorm train style-small" in (tmp_path / "runs/style-small/gravel-rbn-seed0/report.md").read_text()


@pytest.mark.untraced
def test_interrupted_in_an_epoch_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = replace(SMALL, norm="rbn", steps=6)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(recipe, tmp_path / "ended", workers=0, checkpoint_minutes=0.0, watcher=tiny.Interrupting(5))
    assert tiny.state(tmp_path / "ended")["progress"]["step"] == 4
    for folder in ("ended", "whole"):
        tiny.run(recipe, tmp_path / folder, workers=0)
    tiny.assert_same_run(tmp_path / "ended", tmp_path / "whole")


def test_a_run_does_not_go_on_with_another_style_or_other_photographs(run: Path, content: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(json.loads((run / "config.json").read_text()))
    assert isinstance(recipe, Stylization)
    feeds = tiny.feeds(recipe)
    assert feeds.train.contents is not None
    style = Path(recipe.style)
    before = style.read_bytes()
    try:
        Image.new("RGB", (40, 40), "red").save(style)
        changed = tiny.feeds(recipe).train.contents
        assert changed is not None
        assert "'style' has other training images" in changed.difference(feeds.train.contents)
    finally:
        style.write_bytes(before)
    fewer = tiny.feeds(replace(recipe, content=str(content / "more"))).train.contents
    assert fewer is not None
    assert "'photographs' had 10 training images and has 1" in fewer.difference(feeds.train.contents)


def test_every_photograph_is_seen_equally_often_and_processes_share_a_batch() -> None:
    paths = [Path(__file__), *Path(__file__).parent.glob("test_*.py")][:4]
    options = {"size": 24, "batch_size": 4, "batches": 5, "seed": 1, "device": torch.device("cpu"), "workers": 0}

    def order(rank: int, world: int, epoch: int = 0) -> list[list[int]]:
        train, _ = unlabelled.feeds((paths, paths), "any", {}, [], rank=rank, world=world, **options)
        train._order.epoch = epoch
        return [[row for _, row in batch] for batch in train._order]

    alone = order(0, 1)
    assert [sorted(batch) for batch in alone] == [[0, 1, 2, 3]] * 5
    assert [a + b for a, b in zip(order(0, 2), order(1, 2), strict=True)] == alone
    assert order(0, 1, epoch=1) != alone


def pictures(folder: Path) -> dict[str, Path]:
    """The same picture as files of many kinds, and some that cannot be stylized."""
    folder.mkdir()
    gradient = np.linspace(20, 230, 30 * 40).reshape(30, 40).astype(np.uint8)
    colored = Image.fromarray(np.stack([gradient, gradient[::-1], gradient[:, ::-1]], 2))
    turned = colored.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # turned back by 270 degrees
    found: dict[str, Path] = {
        name: folder / name for name in ("rgb.png", "exif.png", "grey.png", "deep.png", "cmyk.tif")
    }
    colored.save(found["rgb.png"])
    turned.save(found["exif.png"], exif=exif)
    Image.fromarray(gradient).save(found["grey.png"])
    Image.fromarray(gradient.astype(np.uint16) * 257).save(found["deep.png"])
    colored.convert("CMYK").save(found["cmyk.tif"])
    found["alpha.png"] = folder / "alpha.png"
    colored.convert("RGBA").save(found["alpha.png"])
    return found


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_pictures_of_every_kind_come_out_right(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, out = pictures(tmp_path / "in"), tmp_path / "out"
    assert main(["stylize", "apply", str(run), str(tmp_path / "in"), "--out", str(out)]) == 0
    assert "6 of 6 pictures" in capsys.readouterr().out
    made = {name: read(out / Path(name).with_suffix(".png").name) for name in found}
    assert made["rgb.png"].shape == (30, 40, 3)
    for like in ("exif.png", "alpha.png"):
        assert np.array_equal(made[like], made["rgb.png"]), like
    assert np.array_equal(made["deep.png"], made["grey.png"])
    assert np.abs(made["cmyk.tif"] - made["rgb.png"]).mean() < 3
    net, picture = opened(run).network, torch.from_numpy(read(found["rgb.png"])).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = (255 * net(picture)[0]).round().permute(1, 2, 0).numpy()
    assert np.array_equal(made["rgb.png"], expected)
    with Image.open(out / "rgb.png") as image:
        assert image.text["Comment"].startswith("calibnorm: style stripes, norm iebn, 4 steps, seed 0, features random")


def test_little_memory_makes_strips_and_the_same_picture(run: Path, tmp_path: Path) -> None:
    net, picture = opened(run).network, torch.randint(0, 256, (3, 50, 44), dtype=torch.uint8)
    gib = 50 * 44 * net.width / apply.GIB
    whole, strips, disk = (apply.stylized(net, picture, factor * gib) for factor in (100, 10, 1))
    assert int((whole.int() - strips.int()).abs().max()) <= 1
    assert torch.equal(strips, disk)


def test_a_broken_picture_is_named_and_left_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pictures(tmp_path / "in")
    broken, small = tmp_path / "in" / "broken.jpg", tmp_path / "in" / "small.png"
    broken.write_bytes(found["rgb.png"].read_bytes()[:70])
    Image.new("RGB", (4, 30)).save(small)
    status = main(
        [
            "stylize",
            "apply",
            str(run),
            str(found["rgb.png"]),
            str(broken),
            str(small),
            "--out",
            str(tmp_path / "o"),
            "--format",
            "jpg",
        ]
    )
    assert status == 1
    said = capsys.readouterr()
    assert f"calibnorm: left out: {broken}: no picture that can be read" in said.err
    assert f"{small}: is 4 x 30 pixels; at least 5 a side are needed" in said.err
    assert "1 of 3 pictures" in said.out
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["rgb.jpg"]


def test_frames_keep_their_order_and_places_and_nothing_is_written_over(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    (frames / "b").mkdir(parents=True)
    for name in ("f2.png", "f1.png", "b/f0.jpg", "f1.jpg"):
        Image.new("RGB", (8, 8)).save(frames / name)
    found = list(apply.places([frames], tmp_path / "out", "png"))
    # as torchvision lists a class: a folder's own files, then those of the folders in it
    assert [source.relative_to(frames).as_posix() for source, _ in found] == ["f1.jpg", "f1.png", "f2.png", "b/f0.jpg"]
    assert [t.relative_to(tmp_path / "out").as_posix() for _, t in found] == [
        "f1.png",
        "f1.png.png",
        "f2.png",
        "b/f0.png",
    ]
    with pytest.raises(UsageError, match=r"out=.*frames: .*f1.png is a picture that is read; choose another folder"):
        list(apply.places([frames], frames, "png"))
    with pytest.raises(UsageError, match="another picture of its name"):
        list(apply.places([frames / "f1.jpg", frames / "f1.png", frames / "f1.png"], tmp_path / "out", "png"))
    two = [frames / "b" / "f0.jpg", tmp_path / "c" / "f0.jpg"]
    two[1].parent.mkdir()
    Image.new("RGB", (8, 8)).save(two[1])
    assert [target.name for _, target in apply.places(two, tmp_path / "out", "jpg")] == ["f0.jpg", "c-f0.jpg"]


def test_what_cannot_be_read_or_written_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, empty, file = tmp_path / "a.png", tmp_path / "empty", tmp_path / "file"
    Image.new("RGB", (8, 8)).save(picture)
    empty.mkdir()
    file.write_text("")
    for line, said in (
        (["apply", str(run), "nowhere.png"], "nowhere.png: is not there"),
        (["apply", str(run), str(empty)], f"{empty}: holds no picture"),
        (["apply", "no-run", str(picture), "--out", str(file)], f"--out {file}: is a file; name a folder"),
        (["export", "no-run", "--out", str(file / "a.safetensors")], f"--out {file}: is a file; name a folder"),
    ):
        assert main(["stylize", *line]) == 2
        assert capsys.readouterr().err.startswith(f"calibnorm: {said}")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert main(["stylize", "export", str(run), "--out", "a.onnx"]) == 2
    assert "--out a.onnx: needs onnx, onnxscript; pip install onnx onnxscript" in capsys.readouterr().err


def test_weights_are_safetensors_that_apply_takes(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    assert main(["stylize", "export", str(run), "--out", str(tmp_path / "w.safetensors")]) == 0
    again, first = opened(tmp_path / "w.safetensors"), opened(run)
    assert again.recipe == first.recipe
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.network.state_dict().values(), first.network.state_dict().values(), strict=True)
    )
    assert opened(run / "best.pt").words == first.words


@pytest.mark.nightly
@pytest.mark.untraced
@pytest.mark.parametrize("norm", ["bn", "in", "se", "iebn", "rbn"])
@pytest.mark.parametrize("shape", [("each", "nearest"), ("start", "transposed")])
def test_onnx_takes_pictures_of_any_size_and_says_the_same(norm: str, shape: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from calibnorm.lab.stylize.export import as_onnx
    from calibnorm.lab.stylize.opening import Opened

    recipe = replace(SMALL, norm=norm, edge=shape[0], upsampling=shape[1])
    network = tasks.of(recipe).network(None).eval()  # type: ignore[arg-type]
    session = runtime.InferenceSession(as_onnx(Opened(recipe, network)), providers=["CPUExecutionProvider"])  # type: ignore[arg-type]
    for size in ((1, 3, 40, 52), (3, 3, 37, 30)):
        x = torch.rand(*size)
        with torch.no_grad():
            expected = network(x).numpy()
        np.testing.assert_allclose(session.run(None, {"pictures": x.numpy()})[0], expected, atol=1e-4)


def test_a_comparison_shows_pictures_losses_and_the_rest_of_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*words(replace(SMALL, steps=2)), "--norms", "bn", "in", "--styles", "gravel", "--seeds", "1"]
    where = ["--out", str(tmp_path), "--name", "t", "--jobs", "0", "--accelerator", "cpu"]
    assert main(["stylize", "compare", *options, *where]) == 0
    text = (tmp_path / "t" / "report.md").read_text()
    assert "VGG-16 with random weights (seed 0)" in text
    assert "calibnorm stylize compare style-small --norms bn in --styles gravel --seeds 1" in text
    for name in ("pictures-gravel.jpg", "steps.png", "company.jpg"):
        assert name in text
        with Image.open(tmp_path / "t" / name) as image:
            assert min(image.size) > 100
    page = (tmp_path / "t" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 * 3 + 6
    rows = [line.split(",") for line in (tmp_path / "t" / "batch_noise.csv").read_text().splitlines()]
    shares = {norm: float(share) for _, norm, share, *_ in rows[1:]}
    assert shares["in"] == 0 < shares["bn"]
    assert main(["stylize", "compare", *options, *where]) == 0
    assert "1 of 2" not in capsys.readouterr().err
    assert main(["compare", "style-small", "--out", str(tmp_path), "--name", "t"]) == 2
    assert main(["report", str(tmp_path / "t"), "--no-gates", "--out", str(tmp_path / "page")]) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "digits-tiny"], "stylize train digits-tiny: is no recipe of style transfer; try style-small"),
        (["train", "--style", "nix.png"], "--style nix.png: is no file; name a picture, or one of astronaut, brick"),
        (["train", "--content", "nowhere"], "--content nowhere: is no folder; name one that holds photographs"),
        (["train", "--steps", "7"], "--steps 7: must be a multiple of epochs, 10: 10"),
        (["train", "--steps", "25"], "--steps 25: must be a multiple of epochs, 10: 20 or 30"),
        (["train", "--image-size", "12"], "--image-size 12: must be at least 16"),
        (["train", "--edge", "start", "--image-size", "40"], "--image-size 40: must be at least 41"),
        (["train", "--features", "none.pth"], "--features none.pth: is no file; choose random, hed, torchvision or"),
        (["train", "--layer-weights", "1", "2"], "--layer-weights 1.0 2.0: must be 4 numbers, one for each"),
        (["train", "--style-layers", "relu9_1"], "--style-layers relu9_1: must be one or more of relu1_1"),
        (["train", "--stages", "stage1"], "--stages stage1: the transformation network has no stages; choose all"),
        (["train", "--model", "resnet56"], "--model resnet56: is not known; there is johnson"),
        (["train", "--data", "digits"], "--data digits: must be photographs; --content names a folder of others"),
        (["train", "--norm", "xbn"], "--norm xbn: is not known"),
        (["train", "--style-weight", "-1"], "--style-weight -1.0: must be 0 or a positive number"),
        (["apply"], "stylize apply: needs a network: calibnorm stylize apply RUN IMAGE"),
        (["apply", "here"], "stylize apply: needs pictures"),
        (["apply", "nowhere", "a.png"], "run nowhere: is not there; name the folder of a run"),
        (["apply", "here", "a.png", "--memory", "0"], "--memory 0.0: must be a positive number"),
        (["export"], "stylize export: needs a network"),
        (["export", "here", "--out", "a.pt"], "--out a.pt: must end in .safetensors or .onnx"),
        (["compare", "digits-tiny"], "recipe digits-tiny: is none of style transfer"),
        (["compare", "--style", "brick"], "--style brick: is one; name all behind --styles"),
        (["compare", "--styles", "brick", "a/brick.png"], "--styles brick a/brick.png: two have the same name"),
        (["show"], "stylize show: is not known; did you mean stylize"),
    ],
)  # fmt: skip
def test_wrong_input_is_said_in_a_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stylize", *line]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"calibnorm: {said}"), error
    assert error.count("\n") == 1


def test_what_is_no_style_network_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match=r"run=.*: holds no last.pt, as a run has after its first epoch"):
        opened(tmp_path)
    tiny.run(replace(tiny.TINY, epochs=1), tmp_path / "digits")
    with pytest.raises(UsageError, match=r"run=.*digits: has a network of classification, which calibnorm predict and"):
        opened(tmp_path / "digits")
    content = torch.load(run / "last.pt", weights_only=True)
    content["network"].pop("last.bias")
    torch.save(content, tmp_path / "cut.pt")
    with pytest.raises(UsageError, match=r"cut.pt: does not fit its recipe"):
        opened(tmp_path / "cut.pt")


def test_a_folder_of_one_picture_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures; two are needed"):
        unlabelled.find(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="holds 1 picture; two are needed, one to train on and one to test on"):
        unlabelled.find(tmp_path)
