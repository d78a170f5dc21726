"""How long texts are in truth: the columns of ids that reach no result."""

import torch
from torch import Tensor, nn

from diptych.model.text import TextTransformer
from diptych.towers.bert import BertEncoder

__all__ = ["cut"]


def cut(tower: nn.Module, batch: Tensor, step: int = 1) -> Tensor:
    """`batch` without the columns that reach no result, cut to a multiple of `step` columns.

    Ids [n s] of causal towers are cut behind the last pooled position, BERT's behind the last real
    token. Anything else is returned as it is. Reads values: on ids of a GPU it waits for them.
    """
    match tower:
        case TextTransformer() if tower.cfg.causal and tower.cfg.pad_id is None:
            length = int(tower.pooled(batch).max()) + 1
        case BertEncoder() if tower.cfg.pad_id is not None:
            places = torch.arange(1, batch.shape[1] + 1, device=batch.device)
            length = max(1, int(((batch != tower.cfg.pad_id) * places).max()))
        case _:
            return batch
    return batch[:, : -(-length // step) * step]
