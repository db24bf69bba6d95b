"""Fine-tuning the real pretrained network by the recipe that docs/fine-tuning.md recommends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from calibnorm.lab import recipes
from calibnorm.lab.data.mnist import DEBIAN_FASHION_MNIST
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training import train

WITHIN = 2.0
"""Points that IEBN may be below BatchNorm of the same seed. In the three seeds of the study it was 3.1, 4.9 and 5.0
above: 4.3 on average, standard deviation 1.1. The bound is six standard deviations below."""


@pytest.mark.nightly
@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_a_converted_pretrained_network_is_trained_as_well_as_its_batch_norm(tmp_path: Path) -> None:
    """And not with the paper's gate input, which is what the conversion spares people."""
    recipe = replace(cast("Classification", recipes.recipe("fine-tune")), image_size=48, test_every=4)

    def accuracy(norm: str) -> float:
        return train(replace(recipe, norm=norm), tmp_path / norm, accelerator="cpu").figures["test_accuracy"]

    plain = accuracy("bn")
    assert plain > 40
    assert accuracy("iebn") > plain - WITHIN
    assert accuracy("iebn:gate_input=mean") < plain - 20
