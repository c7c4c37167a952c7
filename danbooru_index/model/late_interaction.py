"""MaxSim of many texts with many texts on a device: what a ColBERT projection is measured by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Embeddings

if TYPE_CHECKING:
    import torch

QUESTION_VECTORS = 256


def max_sim_matrix(
    questions: Embeddings, records: Embeddings, projection: npt.NDArray[np.float32] | None, device: str
) -> npt.NDArray[np.float32]:
    """MaxSim, averaged over a question's vectors, of every question with every record, [questions, records]."""
    import torch
    from torch.nn.functional import normalize

    def vectors(encoding: Embeddings) -> torch.Tensor:
        matrix = torch.from_numpy(encoding.colbert).to(device).float()
        return matrix if projection is None else normalize(matrix @ torch.from_numpy(projection).to(device), dim=-1)

    def owners(encoding: Embeddings) -> torch.Tensor:
        lengths = torch.from_numpy(encoding.colbert_lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    with torch.inference_mode():
        asked, known, asker, owner = vectors(questions), vectors(records), owners(questions), owners(records)
        sums = torch.zeros(len(questions.dense), len(records.dense), device=device)
        for start in range(0, len(asked), QUESTION_VECTORS):
            products = known @ asked[start : start + QUESTION_VECTORS].T
            best = torch.full((len(records.dense), products.shape[1]), -2.0, device=device)
            best.scatter_reduce_(0, owner[:, None].expand_as(products), products, reduce="amax")
            sums.index_add_(0, asker[start : start + QUESTION_VECTORS], best.T)
        counts = torch.from_numpy(questions.colbert_lengths).to(device).clamp(min=1)
        scores: npt.NDArray[np.float32] = (sums / counts[:, None]).cpu().numpy()
    return scores
