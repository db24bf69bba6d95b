"""Fine-tuning the real pretrained network by the recipe that docs/fine-tuning.md recommends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import cast

import pytest

from calibnorm.lab import recipes
from calibnorm.lab.data.mnist import DEBIAN_FASHION_MNIST
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training import train

WITHIN = 6.5
"""Points that IEBN may be below BatchNorm, in the mean of three seeds. In the study's six seeds it was 1.2 above, with
a standard deviation of 4.4: the bound is three of the mean's standard deviations below."""


@pytest.mark.nightly
@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_a_converted_pretrained_network_is_trained_as_well_as_its_batch_norm(tmp_path: Path) -> None:
    """And not with the paper's gate input, which is what the conversion spares people."""
    recipe = replace(cast("Classification", recipes.recipe("fine-tune")), image_size=48, test_every=4)

    def accuracy(norm: str, seed: int) -> float:
        folder = tmp_path / f"{norm}-{seed}"
        return train(replace(recipe, norm=norm, seed=seed), folder, accelerator="cpu").figures["test_accuracy"]

    plain = [accuracy("bn", seed) for seed in range(3)]
    assert min(plain) > 40
    assert fmean(accuracy("iebn", seed) for seed in range(3)) > fmean(plain) - WITHIN
    assert accuracy("iebn:gate_input=mean", 0) < plain[0] - 20
