"""Scores that need token ids alone: length, rarity, and the loss under unigram and bigram models of the data itself.

All are in tokens or nats per token; the end-of-document id counts as a token. A document without tokens scores 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.document_blocks import DocumentBlock
from megatron_ext.data.curriculum.ngram_counts import NgramCounts

PRIOR_TOKENS = 100.0
"""Weight of the unigram model inside the bigram model, in tokens."""


def length(block: DocumentBlock) -> NDArray[np.float64]:
    """Tokens of each document, `[documents]`."""
    return block.lengths.astype(np.float64)


def rarity(block: DocumentBlock, counts: NgramCounts) -> NDArray[np.float64]:
    """Mean of -log p(token), `[documents]` in nats; p is the token's share of all tokens of the dataset.

    Source: the vocabulary rarity of DeepSpeed Data Efficiency (Li et al., arXiv 2212.03597), which sums over tokens;
    the mean does not grow with the length.
    """
    occurring = np.maximum(counts.tokens, 1)
    costs = np.log(max(1, counts.num_tokens)) - np.log(occurring)
    return block.means(costs[block.tokens])


def unigram_loss(block: DocumentBlock, counts: NgramCounts) -> NDArray[np.float64]:
    """Loss per token under the unigram model of all other documents, `[documents]` in nats.

    Each document d is taken out of the counts c before it is judged, so its own rare words do not look known:
    p(t) = (c(t) - c_d(t) + 1) / (n - n_d + v), with n tokens and a vocabulary of v ids (Laplace's rule).
    """
    return block.means(-np.log(_unigram_probabilities(block, counts, _own(block, block.tokens))))


def bigram_loss(block: DocumentBlock, counts: NgramCounts) -> NDArray[np.float64]:
    """Loss per token under the bigram model of all other documents, `[documents]` in nats.

    With u the unigram model of `unigram_loss` and all counts c without document d:
    p(t | s) = (min(c(s, t), c(s)) + m u(t)) / (c(s) + m), where m = PRIOR_TOKENS; the first token costs -log u(t).
    The minimum matters where pairs share a cell of the table. Source: the hierarchical Dirichlet language model
    (MacKay and Peto, Natural Language Engineering 1, 1995) with a fixed m.
    """
    own = _own(block, block.tokens)
    probabilities = _unigram_probabilities(block, counts, own)
    places = block.follows
    before = block.tokens[places - 1]
    cells = counts.cells(before, block.tokens[places])
    own_pairs = _own_counts(block.document_of_token[places], cells, len(counts.pairs))
    contexts = counts.tokens[before] - own[places - 1]
    pairs = np.minimum(counts.pairs[cells] - own_pairs, contexts)
    probabilities[places] = (pairs + PRIOR_TOKENS * probabilities[places]) / (contexts + PRIOR_TOKENS)
    return block.means(-np.log(probabilities))


def _unigram_probabilities(block: DocumentBlock, counts: NgramCounts, own: NDArray[np.int64]) -> NDArray[np.float64]:
    others = counts.num_tokens - block.lengths[block.document_of_token]
    return (counts.tokens[block.tokens] - own + 1) / (others + counts.num_ids)


def _own(block: DocumentBlock, tokens: NDArray) -> NDArray[np.int64]:
    """How often each token occurs in its own document, int64 `[t]`."""
    return _own_counts(block.document_of_token, tokens.astype(np.int64), int(tokens.max(initial=0)) + 1)


def _own_counts(documents: NDArray[np.int64], values: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """How often each value (below `limit`) occurs with the same document."""
    _, inverse, counts = np.unique(documents * limit + values, return_inverse=True, return_counts=True)
    return counts[inverse]
