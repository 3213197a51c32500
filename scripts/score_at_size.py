#!/usr/bin/env python
"""Score a model at the size that it averages photos down to, as the earlier PyTorch project did.

    scripts/score_at_size.py runs/unet data/val

Pixels are counted on the small masks. Dice and IoU are computed over the pixels of each batch of 16 and then
averaged, which hides errors in thin structures and small cars. `carvana-batch score` measures the masks that
users get.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from carvana_batch.masks.counts import Counts, count
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.network.model import Model
from carvana_batch.training.pairs import Pair, find_pairs, load_pair
from carvana_batch.values import PackedMask

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a weights file, or the folder of a training run")
    parser.add_argument("data", type=Path, help="a folder with images/ and masks/")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    network = prepare_network(model.network, torch.device("cpu"), torch.float32)
    counts = [count_at_size(network, model, pair) for pair in find_pairs(arguments.data)]
    batches = [sum_counts(counts[start : start + BATCH]) for start in range(0, len(counts), BATCH)]
    for name in ("dice", "iou", "pixel_accuracy"):
        print(f"{name:<15}{np.mean([getattr(batch, name) for batch in batches]):.4f}")


@torch.inference_mode()
def count_at_size(network: torch.nn.Module, model: Model, pair: Pair) -> Counts:
    """Compare the mask of a photo with the true one at the size of the model."""
    photo, true_mask, _ = (np.asarray(image) for image in load_pair(pair, model.size))
    normalised = (photo / 255 - model.mean) / model.deviation
    logits = network(torch.from_numpy(normalised).permute(2, 0, 1)[None].float())
    return count(PackedMask.from_bool(logits[0, 0].numpy() > 0), PackedMask.from_bool(true_mask > 127))


def sum_counts(counts: list[Counts]) -> Counts:
    return Counts(*(sum(getattr(each, name) for each in counts) for name in Counts.__slots__))


if __name__ == "__main__":
    main()
