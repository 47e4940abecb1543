"""Sentences that belong to no class: how well the answer for a query tells them from the others.

    python benchmarks/out_of_scope.py --data FOLDER/clinc150 [--shots 1 5 10] [--tasks 20]

FOLDER/clinc150: a set of sentences with `class_splits.tsv`, and a file `oos_test.tsv` of queries that belong to none of its
classes. A task is all test classes of the set's first division, with --shots sentences each; its queries are 15 further
sentences a class and all that are out of scope. Prints, for `texts` and for class means of the same features, and for two
scores of a query, the probability of its class and the largest logit, the area under the ROC curve (0.5: no information, 1:
perfect), and the part of the out-of-scope queries that is noticed where 95 % of the others are answered. Then how many of the
other queries are answered rightly, and their mean probability, which should be the same.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import Tensor

import mcdi
from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.text.intents import IntentSettings, target_sentences
from mcdi.tasks.text.rows import file_rows, labelled_rows
from mcdi.types import TaskBatch

ANSWERED, QUERIES = 0.95, 15
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: logits.softmax(-1).amax(-1),
    "largest logit": lambda logits: logits.amax(-1),
}


def noticed(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """AUROC, and the part of `outside` below the value that ANSWERED of `inside` reach; larger values are more certain."""
    labels = [1] * len(inside) + [0] * len(outside)
    threshold = inside.quantile(1 - ANSWERED)
    return float(roc_auc_score(labels, torch.cat([inside, outside]))), float((outside < threshold).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="texts")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--tasks", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = mcdi.load(arguments.model)
    net = generator.network
    path = arguments.data.resolve()
    classes = target_sentences(IntentSettings(sets=(path.name,)), path)
    count = min(map(len, classes.values()))
    features = torch.stack([net.read(texts[:count]) for texts in classes.values()])
    file = path / "oos_test.tsv"
    outside = net.read([text for (text,) in labelled_rows(file, file_rows(file), labels=False).texts])
    family = FewShot("intents", net, {"test": features}, way=len(features), shots=arguments.shots, queries=QUERIES)

    def prototypes(batch: TaskBatch) -> Tensor:
        return prototype_rows(class_means(batch.support.x, batch.support.y, len(features))[0])

    heads: dict[str, Callable[[TaskBatch], Tensor]] = {
        arguments.model: lambda batch: generator.method.generate(net, batch.support, batch.mask, seed=0),
        "class means": prototypes,
    }
    table = Table(title=f"{len(features)} classes of {path.name}, {len(outside)} queries of none, {arguments.tasks} tasks")
    for column in ("shots", "head", "score", "AUROC", f"noticed, {ANSWERED:.0%} of others answered (%)"):
        table.add_column(column, justify="left" if column in ("head", "score") else "right")
    sure = Table("shots", "head", "right (%)", "mean probability (%)", title="queries of the classes")
    for shots in arguments.shots:
        batches = [family.sample("test", [seed], shots=shots) for seed in range(arguments.tasks)]
        for name, head in heads.items():
            logits = [[net.predict(head(batch), x)[0] for x in (batch.query.x, outside[None])] for batch in batches]
            inside = torch.cat([of_classes for of_classes, _ in logits]).softmax(-1)
            right = inside.argmax(-1) == torch.cat([batch.query.y[0] for batch in batches])
            sure.add_row(str(shots), name, *(f"{100 * x.float().mean():.1f}" for x in (right, inside.amax(-1))))
            for score, of in SCORES.items():
                figures = [noticed(of(inside), of(other)) for inside, other in logits]
                area, part = (interval(torch.tensor(values)) for values in zip(*figures, strict=True))
                cells = f"{area['mean']:.3f} ± {area['ci95']:.3f}", f"{100 * part['mean']:.1f} ± {100 * part['ci95']:.1f}"
                table.add_row(str(shots), name, score, *cells)
    described = provenance()
    Console().print(table, sure, f"{described['hardware']}, {described['date']}, commit {described['commit']}")


if __name__ == "__main__":
    main()
