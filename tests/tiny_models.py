"""Tiny language models with random weights, and LoRA settings and draws for tests of adapters."""

from pathlib import Path

import pytest
import torch

from mcdi.networks.backbones.language import LoraSettings
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.phrases import phrase_sets

transformers = pytest.importorskip("transformers", reason="needs mcdi[lora]")
peft = pytest.importorskip("peft", reason="needs mcdi[lora]")
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "llama": ("q_proj", "v_proj"),
}
BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {
    "bert": BERT,
    "roberta": {**BERT, "pad_token_id": 0},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "llama": {**BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}
PAIR = [("the old boat", "near the pond"), ("a red rose", "my aunt found a spoon and a kettle"), ("it", "the")]


def make_models(root: Path) -> dict[str, Path]:
    """Folders of tiny models with random weights and a vocabulary of the phrases, by type of model."""
    words = {
        w.strip("?.,") for parts in phrase_sets(0, 100).values() for t in parts["train"].texts for s in t for w in s.split()
    }
    out = {}
    for kind, sizes in SIZES.items():
        out[kind] = folder = root / kind
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words), "?", "."]))
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def lora(models, kind="bert", **options) -> LoraSettings:
    return LoraSettings(
        **{"model": str(models[kind]), "targets": TARGETS.get(kind, ("c_attn",)), "rank": 2, "length": 12, **options}
    )


def drawn(net: LoraClassifier, tasks: int, way: int | None = None, seed: int = 0) -> torch.Tensor:
    units = net.space.units(way or net.way)
    return net.theta0(0, units) + 0.3 * torch.randn(tasks, units, net.space.D, generator=torch.Generator().manual_seed(seed))
