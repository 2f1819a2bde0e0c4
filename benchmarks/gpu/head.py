"""From logits where labels part to one log-probability per label."""

from __future__ import annotations

import torch
from torch import nn

from train.tree import LabelTree

HIDDEN = -1e4


class LabelScores(nn.Module):
    """Logits (B, R, U), at the R nodes with several branches over the U ``tokens`` that some branch has, to
    log-probabilities (B, L) in label order: each node's logits are normalised over its own branches, and a
    label's value is the sum along its path."""

    def __init__(self, tree: LabelTree, device: torch.device) -> None:
        super().__init__()
        parting = [i for i, node in enumerate(tree.nodes) if len(node.branches) > 1]
        tokens = sorted({token for i in parting for token in tree.nodes[i].branches})
        own = torch.full((len(parting), len(tokens)), HIDDEN)
        for row, i in enumerate(parting):
            own[row, [tokens.index(token) for token in tree.nodes[i].branches]] = 0.0
        longest = max(len(path) for path in tree.paths)
        places = torch.zeros(len(tree.paths), longest, dtype=torch.long)
        taken = torch.zeros(len(tree.paths), longest)
        for label, path in enumerate(tree.paths):
            for step, (node, branch) in enumerate(path):
                token = tokens.index(tree.nodes[node].branches[branch])
                places[label, step] = parting.index(node) * len(tokens) + token
                taken[label, step] = 1.0
        self.own: torch.Tensor
        self.places: torch.Tensor
        self.taken: torch.Tensor
        self.tokens: torch.Tensor
        self.register_buffer("own", own.to(device))
        self.register_buffer("places", places.to(device))
        self.register_buffer("taken", taken.to(device))
        self.register_buffer("tokens", torch.tensor(tokens, device=device))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        steps = (logits.float() + self.own).log_softmax(-1).flatten(1)  # (B, R * U)
        return (steps[:, self.places] * self.taken).sum(-1)
