"""Load a Hugging Face folder as a stranger would, and write down what it computes.

    python reload_hf.py FOLDER REQUEST.json RESULTS

Runs under any transformers from 4.57 on and imports nothing of this project, so that what it sees is what a user sees.
REQUEST: {"tokens": [[id, ...], ...], "texts": [text, ...], "own_code": bool, "new_tokens": int}. RESULTS gets
logits.safetensors (`logits`: fp32 `[b, s, v]`) and result.json (versions, class, ids of the texts, continuation).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def reload(folder: Path, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Logits fp32 `[b, s, v]` and the JSON part of the result.

    The weights are read as fp32 whatever type they are stored in. The model's own code runs only with `own_code`.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=request["own_code"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=request["own_code"], local_files_only=True
    ).eval()
    tokens = torch.tensor(request["tokens"], dtype=torch.int64)
    result: dict[str, Any] = {
        "transformers": transformers.__version__,
        "model_class": type(model).__name__,
        "stored_dtype": str(config.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    with torch.no_grad():
        logits = model(input_ids=tokens).logits.float()
        if request.get("new_tokens"):
            continued = model.generate(tokens[:1], max_new_tokens=request["new_tokens"], do_sample=False)
            result["continuation"] = continued[0, tokens.shape[1] :].tolist()
    if request.get("texts"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        result["ids"] = [tokenizer(text)["input_ids"] for text in request["texts"]]
        result["decoded"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in result["ids"]]
        result["special"] = {n: getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad", "unk")}
        result["tokenizer_length"] = len(tokenizer)
    return logits, result


def main() -> None:
    """Run one request."""
    parser = argparse.ArgumentParser(prog="reload_hf.py", description="Write down what a Hugging Face folder computes.")
    parser.add_argument("folder", type=Path, help="the folder to load")
    parser.add_argument("request", type=Path, help="JSON file: tokens, texts, own_code, new_tokens")
    parser.add_argument("results", type=Path, help="folder for logits.safetensors and result.json")
    options = parser.parse_args()
    from safetensors.torch import save_file

    logits, result = reload(options.folder, json.loads(options.request.read_text(encoding="utf-8")))
    save_file({"logits": logits.contiguous()}, options.results / "logits.safetensors")
    (options.results / "result.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
