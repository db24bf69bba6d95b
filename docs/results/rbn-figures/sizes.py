"""Print the sizes of RBN's learned weights by layer, in the network of a run.

python docs/results/rbn-figures/sizes.py RUN [DATA_ROOT]
"""

import sys
from pathlib import Path

from calibnorm.lab.training.trained import trained

with trained(Path(sys.argv[1]), Path(sys.argv[2] if sys.argv[2:] else "data")) as of:
    print("layer: means of |w_m| and |w_v|, greatest w_v, least and greatest w_b")
    for name, layer in of.network.named_modules():
        if hasattr(layer, "center_weight"):
            w_m, w_v, w_b = layer.center_weight, layer.scale_weight, layer.scale_bias
            values = w_m.abs().mean(), w_v.abs().mean(), w_v.max(), w_b.min(), w_b.max()
            print(f"{name}:", *(f"{value.item():.4f}" for value in values))
