"""Megatron-LM flags that have no meaning here, each with the reason: an accepted flag always does something.

A name that ends in `*` stands for all flags that begin so. The names are those of Megatron-LM core_v0.16.1
(training/arguments.py and the dataclasses it generates flags from) and of older scripts still in use.
"""

from __future__ import annotations

import functools

_REASONS: tuple[tuple[str, str], ...] = (
    # Model
    (
        "the blocks are this project's own over megatron-core and chosen from the device",
        "--use-mcore-models --use-legacy-models --spec --attention-backend --use-flash-attn "
        "--use-te-activation-func --te-* --use-kitchen* --kitchen-* --use-fused-weighted-squared-relu "
        "--experimental-attention-variant --enable-experimental --symmetric-ar-type --disable-jit-fuser --test-mode",
    ),
    ("use --position-embedding-type rope", "--use-rotary-position-embeddings"),
    ("use --position-embedding-type none", "--no-position-embedding"),
    (
        "RoPE is stretched by --rope-scaling-type and its options",
        "--rotary-scaling-factor --rotary-seq-len-interpolation-factor --rope-type --mscale --mscale-all-dim",
    ),
    (
        "positions are --position-embedding-type rope, alibi, learned_absolute or none, the same in every layer",
        "--no-rope-freq --mrope-section --relative-attention-*",
    ),
    (
        "the activation is GELU, --openai-gelu, or SiLU with a gate through --swiglu",
        "--squared-relu --onnx-safe --quick-geglu --glu-linear-offset --activation-func-*",
    ),
    (
        "no supported architecture needs this variant of a block",
        "--apply-layernorm-1p --apply-query-key-layer-scaling --apply-residual-connection-post-layernorm "
        "--fp32-residual-connection --attention-output-gate --softmax-type --qk-* --apply-wd-to-qk-layernorm "
        "--window-* --init-method-xavier-uniform --embedding-init-method-std --heterogeneous-* --mtp-* --head-lr-mult "
        "--decoupled-lr --decoupled-min-lr --no-weight-decay-cond-type",
    ),
    (
        "mixture of experts is not supported; models are dense",
        "--moe-* --num-experts --expert-* --ep-* --overlap-moe-*",
    ),
    (
        "multi-latent attention is not supported; see --num-query-groups for grouped-query attention",
        "--multi-latent-attention --q-lora-rank --kv-lora-rank --v-head-dim --cache-mla-latents",
    ),
    (
        "the model is a transformer decoder; this belongs to another kind of model",
        "--mamba-* --disable-mamba-* --is-hybrid-model --hybrid-* --linear-* --dsa-* --encoder-* --decoder-num-layers "
        "--bert-* --biencoder-* --ict-* --retriever-* --vision-* --dino-* --swin-* --img-* --patch-dim --num-channels "
        "--num-classes --classes-fraction --data-per-class-fraction --iter-per-epoch --mask-* --short-seq-prob "
        "--query-in-block-prob --use-one-sent-docs --evidence-data-path --titles-data-path --block-data-path "
        "--embedding-path --indexer-* --sample-rate --output-bert-embeddings --result-rejected-tracker-filename",
    ),
    ("the sequence length of the decoder is --seq-length", "--decoder-seq-length"),
    # Initialisation
    (
        "weights are always a function of --seed, the tensor's name and the element, the same in every layout",
        "--use-cpu-initialization --no-initialization --data-parallel-random-init --lazy-mpu-init "
        "--init-model-with-meta-device",
    ),
    ("random generators are the project's own", "--te-rng-tracker --inference-rng-tracker"),
    # Kernels
    (
        "kernels are chosen for all places together, by --transformer-impl; local takes PyTorch's own",
        "--no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion "
        "--no-rope-fusion --no-persist-layer-norm --cross-entropy-fusion-impl "
        "--fp16-lm-cross-entropy --no-gradient-reduce-div-fusion --disable-bf16-reduced-precision-matmul",
    ),
    (
        "compute types are --bf16, --fp16 and fp32",
        "--fp8-* --no-fp8-* --fp4-* --first-last-layers-bf16 --num-layers-at-* --reuse-grad-buf-*",
    ),
    (
        "optimizer state and main gradients are fp32",
        "--use-precision-aware-optimizer --main-grads-dtype --main-params-dtype --exp-avg-dtype --exp-avg-sq-dtype "
        "--grad-reduce-in-bf16",
    ),
    ("the attention kernels always compute the softmax in fp32", "--attention-softmax-in-fp32"),
    ("CUDA graphs are not supported", "--cuda-graph-* --enable-cuda-graph --external-cuda-graph"),
    (
        "runs on CPU repeat bit for bit as they are; on a GPU set the variables of your libraries",
        "--deterministic-mode --batch-invariant-mode",
    ),
    # Recomputation and memory
    (
        "use --recompute-granularity selective, or full with --recompute-method and --recompute-num-layers",
        "--recompute-activations --checkpoint-activations --checkpoint-num-layers",
    ),
    ("use --sequence-parallel, which splits saved activations as well", "--distribute-saved-activations"),
    (
        "moving activations or optimizer state to the host is not supported",
        "--cpu-offloading* --fine-grained-activation-offloading --offload-modules --min-offloaded-tensor-size "
        "--optimizer-cpu-offload --optimizer-offload-fraction --use-torch-optimizer-for-cpu-offload "
        "--overlap-cpu-optimizer-* --no-pin-cpu-*",
    ),
    ("memory is left to PyTorch", "--empty-unused-memory-level --no-clone-scatter-output-in-embedding"),
    # Parallel
    ("use --tensor-model-parallel-size", "--model-parallel-size"),
    (
        "keys and values go round TransformerEngine's ring where that is installed, and are gathered elsewhere",
        "--cp-comm-type --hierarchical-context-* --max-seqlen-per-dp-cp-rank --hybrid-context-parallel",
    ),
    (
        "fully sharded data parallelism is not supported; --use-distributed-optimizer shards the optimizer state",
        "--use-megatron-fsdp --use-torch-fsdp2 --torch-fsdp2-* --fsdp-* --data-parallel-sharding-strategy "
        "--outer-dp-sharding-strategy --enable-full-sharding-in-hsdp --suggested-communication-unit-size "
        "--keep-fp8-transpose-cache --no-strict-fsdp-dtensor-load",
    ),
    (
        "the communication schedule is chosen from the device and the layout",
        "--no-overlap-p2p-communication --overlap-p2p-communication-warmup-flush --no-align-grad-reduce "
        "--no-align-param-gather --overlap-param-gather-with-optimizer-step --ddp-average-in-collective "
        "--ddp-num-buckets "
        "--ddp-pad-buckets-for-high-nccl-busbw --ddp-reduce-scatter-with-fp32-accumulation --delay-wgrad-compute "
        "--defer-embedding-wgrad-compute --wgrad-deferral-limit --microbatch-group-size-per-virtual-pipeline-stage "
        "--no-scatter-gather-tensors-in-pipeline --use-ring-exchange-p2p --pipeline-model-parallel-comm-backend "
        "--no-async-tensor-model-parallel-allreduce --tp-comm-* --no-tp-comm-* --high-priority-stream-groups "
        "--use-nccl-ub --use-sharp --sharp-enabled-group --disable-symmetric-registration --create-all-gather-group "
        "--nccl-*",
    ),
    (
        "process groups are made in one order by one file; ranks come from torchrun",
        "--use-tp-pp-dp-mapping --disable-gloo-process-groups --local-rank --fake-process-group "
        "--distributed-timeout-seconds-after-init --replication* --calculate-per-token-loss",
    ),
    # Data
    (
        "vocabulary files of BERT and GPT-2 are not read; use --tokenizer-type with --tokenizer-model",
        "--vocab-file --merge-file --vocab-extra-ids",
    ),
    (
        "tokenizer options come with the tokenizer's own files",
        "--tokenizer-hf-* --tokenizer-metadata --tokenizer-special-tokens --tokenizer-sentencepiece-legacy "
        "--tiktoken-* --legacy-tokenizer --allow-ambiguous-pad-tokens --no-use-tokenizer-model-from-checkpoint-args",
    ),
    ("no code from data or model files is ever run", "--trust-remote-code"),
    ("nothing is mocked: preprocess a small text with tools/preprocess_data.py", "--mock-data"),
    ("the order of samples does not depend on a loader; see --dataset-order", "--dataloader-* --no-data-sharding"),
    (
        "datasets are opened in a moment, without index files to build or to fetch",
        "--num-dataset-builder-threads --no-mmap-bin-files --mid-level-dataset-surplus --object-storage-cache-path "
        "--per-dataset-sequences-path --disable-msc",
    ),
    (
        "write the paths into a --config file (data: train_data_path: ...)",
        "--data-args-path --per-split-data-args-path",
    ),
    (
        "attention masks are described, never materialised; see --reset-attention-mask",
        "--no-create-attention-mask-in-dataloader",
    ),
    ("fill-in-the-middle is not supported", "--fim-*"),
    ("this project pretrains; export the model and fine-tune it with the tool you like", "--sft*"),
    # Training
    ("use --micro-batch-size and --global-batch-size", "--batch-size"),
    ("use --lr-warmup-fraction, --lr-warmup-iters or --lr-warmup-samples", "--warmup --lr-warmup-steps"),
    ("use the same name with -iters or -samples", "--lr-decay-steps --wsd-decay-steps --wd-incr-steps"),
    ("the batch sizes must fit the layout as they are", "--decrease-batch-size-if-needed"),
    (
        "the order of the data is a file: see --dataset-order and --rampup-batch-size",
        "--phase-transition-iterations --step-batch-size-schedule --iterations-to-skip",
    ),
    (
        "muon orthogonalises whole matrices, gathered over the tensor-parallel ranks, in bf16 on GPUs that train in "
        "half precision, else in fp32",
        "--muon-tp-mode --muon-fp32-matmul-prec",
    ),
    (
        "SIGTERM is the signal, the loader processes leave it to the rank",
        "--exit-signal --exit-signal-handler-for-dataloader",
    ),
    (
        "evaluation runs --eval-iters batches of the validation split",
        "--full-validation --multiple-validation-sets --no-manual-gc-eval --start-eval-at-iter --eval-micro-batch-size "
        "--eval-global-batch-size",
    ),
    (
        "a loss or gradient that is not finite is always reported and never hidden; steps are not run twice",
        "--no-check-for-nan-in-loss-and-grad --check-for-spiky-loss --check-for-large-grads --rerun-mode "
        "--error-injection-* --check-weight-hash-across-dp-replicas-interval --train-sync-interval",
    ),
    (
        "restart the same command: a run resumes from its newest checkpoint",
        "--adlr-autoresume* --inprocess-* --enable-ft-package --calc-ft-timeouts --ft-* "
        "--run-workload-inspector-server",
    ),
    # Checkpoints
    (
        "there is one checkpoint format, it loads under every layout and is verified on load",
        "--ckpt-format --ckpt-convert-* --use-dist-ckpt --dist-ckpt-* --auto-detect-ckpt-format "
        "--ckpt-fully-parallel-* --no-ckpt-fully-parallel-* --ckpt-assume-constant-structure "
        "--load-main-params-from-ckpt "
        "--distrib-optim-fully-reshardable-mem-efficient --use-mp-args-from-checkpoint-args",
    ),
    ("checkpoints are saved before the next step", "--async-save --use-persistent-ckpt-worker --async-*"),
    (
        "checkpoints are kept by --save-interval, --save-keep-last and --save-retain-interval",
        "--persistent-save-interval --non-persistent-*",
    ),
    (
        "checkpoints hold no generator state: dropout is a function of --seed and the step",
        "--no-save-rng --no-load-rng",
    ),
    (
        "the checkpoint's architecture must equal the settings; give its saved configuration as --config",
        "--use-checkpoint-args",
    ),
    ("use --load with --finetune", "--pretrained-checkpoint"),
    # Reporting
    (
        "metrics go to metrics.jsonl and TensorBoard",
        "--wandb-* --one-logger-* --no-one-logger --app-tag-* --config-logger-dir --log-timers-to-tensorboard "
        "--log-validation-ppl-to-tensorboard --log-memory-* --log-world-size-to-tensorboard "
        "--no-log-loss-scale-to-tensorboard --tensorboard-queue-size "
        "--log-progress --log-device-memory-used --log-energy --log-max-attention-logit --logging-level "
        "--save-dgrads-interval --save-wgrads-interval --dump-param-to-param-group-map",
    ),
    ("--profile already uses torch.profiler", "--use-pytorch-profiler"),
    ("--profile tells how the time of a step divides", "--timing-log-* --no-barrier-with-level-1-timing"),
    (
        "--profile traces steps; for memory use a tool around the program, and slow ranks show in their traces",
        "--record-memory-history --memory-snapshot-path --log-straggler --straggler-* --disable-straggler-on-startup",
    ),
    ("use --config FILE, as often as needed", "--yaml-cfg"),
    # Other programs
    (
        "this program trains; generate text from an exported model",
        "--inference-* --flash-decode --max-tokens-to-oom --enable-chunked-prefill --disable-chunked-prefill "
        "--decode-only-cuda-graphs --mlp-chunks-for-prefill --use-legacy-static-engine",
    ),
    (
        "reinforcement learning is not part of this project",
        "--rl-* --grpo-* --langrl-* --perform-rl-step --refit-method",
    ),
)


def refusal(flag: str) -> str | None:
    """Why a Megatron-LM flag is not accepted and what to use instead; None for a flag that is not in the table."""
    exact, prefixes = _tables()
    if flag in exact:
        return exact[flag]
    return next((reason for prefix, reason in prefixes.items() if flag.startswith(prefix)), None)


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    exact: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for reason, names in _REASONS:
        for name in names.split():
            table, key = (prefixes, name[:-1]) if name.endswith("*") else (exact, name)
            table[key] = reason
    return exact, prefixes
