"""A norm right after the word embedding, as in BLOOM."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor


def add_embedding_norm(embedding: LanguageModelEmbedding, norm: type[torch.nn.Module]) -> None:
    """Put a norm between the word embedding and whatever megatron-core does with it (positions, dropout). In place.

    Its parameters are `embedding.word_embeddings_layernorm.*`. Under sequence parallelism the word embedding gives
    each tensor-parallel rank its slice of the sequence, and the gradients of the slices are summed like those of the
    other norms; but where learned positions follow, it gives every rank the whole sequence, and every rank then has
    the whole gradient, which must not be summed.

    Args:
        embedding: of a first pipeline stage.
        norm: what `norm_of` gives.

    Source: BLOOM's `word_embeddings_layernorm`, arXiv:2211.05100, section 3.2.2.
    """
    config = embedding.config
    layer = norm(config, config.hidden_size, eps=config.layernorm_epsilon)
    for parameter in layer.parameters():
        parameter.sequence_parallel = embedding.reduce_scatter_embeddings
    embedding.word_embeddings_layernorm = layer

    def normalise(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return layer(embedded)

    # megatron-core's embedding has no place for a module here, and its word embedding must keep its canonical name
    embedding.word_embeddings.register_forward_hook(normalise)
