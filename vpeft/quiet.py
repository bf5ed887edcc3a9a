"""Which warnings of libraries say nothing about a run."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Silence hints about what is arranged here on purpose."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for known in (
        ".*does not have many workers.*",
        ".*Total length of `list` across ranks is zero.*",  # no val200 under train800val200
        ".*You defined a `validation_step` but have no `val_dataloader`.*",
        r".*module\(s\) in eval mode at the start of training.*",  # the frozen backbone
        ".*your dataloader is not resumable.*",  # the data module is
        ".*smaller than the logging interval.*",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",  # between Lightning and torch
        # The curves show the first process's share of training; evaluation is the same in all of them.
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The `srun` command is available on your system but is not used.*",  # vpeft.slurm.cluster has looked
        ".*Sparse CSR tensor support is in beta state.*",  # of FishMask's gradients, which tests hold
        ".*could be decompression bomb DOS attack.*",  # vpeft.data.images has a limit of its own
        # Packed runs: torch calls this kernel once a model, which takes as long as one call for all of them.
        ".*batching rule for aten::_scaled_dot_product_flash_attention_for_cpu.*",
    ):
        warnings.filterwarnings("ignore", message=known)
