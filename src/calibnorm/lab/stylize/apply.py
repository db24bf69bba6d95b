"""`calibnorm stylize apply`: pictures of any size and mode become pictures in a style."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.listing import named
from calibnorm.lab.data.pictures import pixels_of, read_picture
from calibnorm.lab.models.transformation import TransformationNetwork
from calibnorm.lab.stylize.config import ApplyConfig
from calibnorm.lab.stylize.opening import opened
from calibnorm.lab.stylize.strips import in_strips, on_disk
from calibnorm.report.files import refuse_file, write_whole, writing

GIB = 1024**3
WHOLE, STRIPS = 24, 6
"""Bytes that a pixel's features take for each channel of the first convolution: in a forward as it is, where layers
and the convolution's own copies lie beside each other; and strip by strip, where two layers do."""
QUALITY = 95


def run(config: ApplyConfig, console: Console | None = None) -> int:
    """Stylize pictures.

    Returns:
        The exit status: 0; 1 where pictures were left out.

    Raises:
        UsageError: The network or a named picture is not there, or the folder cannot be written.
    """
    console = console or Console()
    refuse_file("out", config.out)
    trained = opened(config.run)
    pairs = list(places(config.images, config.out, config.format))
    console.print(trained.words, highlight=False, markup=False, soft_wrap=True)
    left_out = 0
    quiet = not console.is_terminal
    for source, target in track(pairs, "stylizing", console=console, transient=True, disable=quiet):
        try:
            picture = pixels_of(read_picture(source))
            if min(picture.shape[1:]) < trained.network.smallest:
                high, wide = picture.shape[1:]
                reason = f"is {wide} x {high} pixels; at least {trained.network.smallest} a side are needed"
                raise UsageError(f"{source}: {reason}")
            done = stylized(trained.network, picture, config.memory)
        except UsageError as error:
            left_out += 1
            print(f"calibnorm: left out: {error}", file=sys.stderr)
            continue
        with writing(target):
            write_whole(target, encoded(done, config.format, trained.words))
    console.print(f"{len(pairs) - left_out} of {len(pairs)} pictures in {config.out}", highlight=False, soft_wrap=True)
    return 1 if left_out else 0


def places(images: Sequence[Path], out: Path, ending: str) -> Iterator[tuple[Path, Path]]:
    """Yield every picture's file and where its stylized one goes, in order.

    Raises:
        UsageError: A name is no file and no folder, a folder holds no picture, or a picture would be written over
            one that is read, or over another one's.
    """
    found: list[tuple[Path, Path]] = []
    for image, paths in named(images):
        base = image.absolute() if image.is_dir() else image.parent
        found += [(path, out / path.relative_to(base).with_suffix(f".{ending}")) for path in paths]
    read, written = {path.resolve() for path, _ in found}, dict[Path, Path]()
    for source, target in found:
        if target.resolve() in read:
            raise UsageError(Setting("out", out), f"{target} is a picture that is read; choose another folder")
        if (other := written.get(target)) is not None:  # a/0.png and b/0.png, or 0.png beside 0.jpg
            alike = other.name == source.name
            target = target.with_name(f"{source.parent.name}-{target.name}" if alike else f"{source.name}.{ending}")
        if target in written:
            raise UsageError(f"{source}: another picture of its name goes to {target}; stylize it by itself")
        written[target] = source
        yield source, target


@torch.no_grad()
def stylized(network: TransformationNetwork, picture: Tensor, memory: float) -> Tensor:
    """Return a picture (3, H, W) in uint8 in the network's style.

    Args:
        network: In evaluation mode.
        picture: As the result.
        memory: GiB that features may take; where a forward would take more, it is done in strips.
    """
    pixels = picture[0].numel() * network.width / GIB
    inputs = picture.float() / 255
    if WHOLE * pixels <= memory:
        (done,) = network(inputs[None])
    elif STRIPS * pixels <= memory:
        done = in_strips(network, inputs)
    else:
        done = in_strips(network, inputs, empty=on_disk)
    result: Tensor = done.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return result


def encoded(picture: Tensor, ending: str, words: str) -> bytes:
    """Return a picture as a file's bytes, in which a comment says what made it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, data = PngInfo(), BytesIO()
    info.add_text("Comment", words)
    save = partial(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save, data)
    save("PNG", pnginfo=info) if ending == "png" else save("JPEG", quality=QUALITY, comment=words)
    return data.getvalue()
