"""Settings of a BaichuanForCausalLM with ALiBi; the keys are those of Baichuan-13B's config.json."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class BaichuanConfig(PretrainedConfig):
    """Shape of the decoder.

    Args:
        head_dim: size of one head; `hidden_size / num_attention_heads` when absent, as in the published models.
        norm_head: divide each row of the output layer's weight by its length before the product (Baichuan 2).
        model_max_length: longest sequence of training, in tokens; ALiBi itself has no limit.
        others: as in transformers' LlamaConfig.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (the base class declares it so)

    def __init__(  # noqa: PLR0913  (the keys of config.json)
        self,
        vocab_size: int = 64000,
        hidden_size: int = 5120,
        intermediate_size: int = 13696,
        num_hidden_layers: int = 40,
        num_attention_heads: int = 40,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        model_max_length: int = 4096,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        norm_head: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.model_max_length = model_max_length
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.norm_head = norm_head
        self.use_cache = use_cache
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)
