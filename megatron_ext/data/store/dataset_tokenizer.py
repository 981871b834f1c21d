"""The tokenizer that made a dataset: from the flags of a command, or from what the manifest says."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.build import build_tokenizer


@dataclass(frozen=True)
class TokenizerFlags:
    """--tokenizer-type, --tokenizer-model and --vocab-size as given; None for what was not."""

    type: str | None = None
    model: str | None = None
    vocab_size: int | None = None

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return (self.type, self.model, self.vocab_size) != (None, None, None)


def open_tokenizer(manifest: DatasetManifest | None, flags: TokenizerFlags) -> Tokenizer:
    """The tokenizer of a dataset; flags win over the manifest, a flag that is missing is taken from it.

    Raises:
        TokenizerError: nothing says which tokenizer it is, it cannot be read, or it is not the one that made the ids.
    """
    if manifest is None and flags.type is None:
        raise TokenizerError(
            "the dataset has no manifest, so its tokenizer is not known",
            fix="Give --tokenizer-type, and --tokenizer-model or --vocab-size",
        )
    tokenizer = build_tokenizer(*_settings(manifest, flags))
    if manifest is not None:
        refuse_another_tokenizer(manifest, tokenizer)
    return tokenizer


def refuse_another_tokenizer(manifest: DatasetManifest, tokenizer: Tokenizer) -> None:
    """Compare a tokenizer with the one that the manifest names.

    Raises:
        TokenizerError: it is another one.
    """
    facts = manifest.tokenizer
    said = (facts.fingerprint, facts.vocab_size, facts.eod_id)
    found = (tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod_id)
    if said != found:
        raise TokenizerError(
            f"the {tokenizer.type_name} has fingerprint {found[0]}, {found[1]} ids and end-of-document id {found[2]}",
            f"The data was made with a {facts.type} of fingerprint {said[0]}, {said[1]} ids and end-of-document id "
            f"{said[2]}",
            f"Give the tokenizer that made the data ({facts.model or facts.type})",
        )


def _settings(manifest: DatasetManifest | None, flags: TokenizerFlags) -> tuple[str, str | None, int | None]:
    facts = None if manifest is None else manifest.tokenizer
    kind = flags.type or (facts.type if facts else "")
    if kind != "NullTokenizer":
        return kind, flags.model or (facts.model if facts else None), flags.vocab_size
    plain_ids = facts.vocab_size - 1 if facts and flags.vocab_size is None else flags.vocab_size
    return kind, flags.model, plain_ids
