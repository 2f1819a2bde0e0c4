"""Plan: which tokens the static pass computes, where they stand and what each of them sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from train.loading import Checkpoint
from train.scorer import TreePass
from train.tree import LabelTree
from wafervlm.errors import TaskError
from wafervlm.task import Task

# Attention kernels read a mask in rows of 16 bytes; what is added to fill a row is never seen.
ALIGNMENT = 16
HIDDEN = -1e4


@dataclass(frozen=True, eq=False)
class Plan:
    """``before`` (P,) and ``after`` (A,) are the token ids on both sides of the image, ``after`` with the
    answer's prefix and the tree's fed nodes; ``image_tokens`` is n, so that T = n + A tokens are computed.
    ``positions`` (3, 1, P + T) are rotary positions, ``sees`` (T, P + T) says which tokens a token sees,
    ``rows`` (R,) at which of the T tokens labels part."""

    before: torch.Tensor
    image_tokens: int
    after: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    rows: torch.Tensor
    tree: LabelTree

    @property
    def length(self) -> int:
        """T, the tokens that a pass computes."""
        return self.image_tokens + len(self.after)

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: Task) -> Plan:
        """The plan of ``task``: the sequence that transformers scores in one pass, with what stands before
        the image set aside. Raises TaskError."""
        whole = TreePass.of(checkpoint, task)
        ids = torch.cat([whole.prompt, whole.added])
        image = (ids == checkpoint.network.config.image_token_id).nonzero()[:, 0]
        if not len(image) or int(image[-1] - image[0]) + 1 != len(image):
            raise TaskError("the prompt must hold exactly one image")
        first, count = int(image[0]), len(image)
        parting = [i for i, node in enumerate(whole.tree.nodes) if len(node.branches) > 1]
        return cls(
            before=ids[:first],
            image_tokens=count,
            after=ids[first + count :],
            positions=whole.positions,
            sees=(whole.mask[0, 0] == 0)[first:],
            rows=whole.rows[parting] - first,
            tree=whole.tree,
        )

    @property
    def padding(self) -> int:
        """Unseen tokens put before all others, so that each token's row of the mask is aligned."""
        return -self.sees.shape[1] % ALIGNMENT

    def mask(self, rows: torch.Tensor | None, repeats: int, dtype: torch.dtype) -> torch.Tensor:
        """(1, 1, repeats * rows, padding + P + T): 0 where a token (all, or ``rows``) sees another, else
        -1e4; once for each of the query heads that share keys."""
        sees = self.sees if rows is None else self.sees[rows]
        mask = torch.full((len(sees), self.padding + sees.shape[1]), HIDDEN, dtype=dtype, device=sees.device)
        mask[:, self.padding :].masked_fill_(sees, 0.0)
        return mask.repeat(repeats, 1)[None, None].contiguous()
