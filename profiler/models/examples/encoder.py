"""An encoder of BERT-base's shape: an example for `--module`.

Devlin et al., arXiv 1810.04805: 12 layers, width 768, 12 heads; each token sees all tokens.

Example: ``python -m profiler predict --module profiler.models.examples.encoder:bert_base --hardware h100-sxm``
"""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel


def bert_base(batch: int = 8, tokens: int = 128) -> tuple[nn.Module, dict[str, Tensor]]:
    """BERT-base and `batch` sequences of `tokens` token ids."""
    return BertModel(BertConfig()), {"input_ids": torch.zeros(batch, tokens, dtype=torch.long)}
