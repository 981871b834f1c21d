"""Load an exported model with transformers and print what it writes after each prompt.

This is what anybody does with an export: nothing of this project is imported. For an export that brings its own
modelling file (Baichuan), transformers asks for permission to run it; this example does not give it.
"""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str]) -> int:
    """Print one continuation per prompt; returns the exit status."""
    parser = argparse.ArgumentParser(prog="examples/generate.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, metavar="DIR", help="folder written by megatron_to_hf.py")
    parser.add_argument("--prompt", required=True, nargs="+", help="texts to continue, one after another")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="length of a continuation (default: 48)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the sampling (default: 1234)")
    args = parser.parse_args(argv)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, local_files_only=True, dtype=torch.float32).eval()
    torch.manual_seed(args.seed)
    choice = {"do_sample": True, "temperature": args.temperature, "top_p": 0.9} if args.temperature > 0 else {}
    for prompt in args.prompt:
        # In training a document follows the end-of-document token of the one before; so does a prompt.
        start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = torch.tensor([start + tokenizer(prompt)["input_ids"]])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.max_new_tokens,
            **({"do_sample": False} | choice),
        )
        print(f"{prompt} ▸ {tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
