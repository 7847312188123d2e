"""sentence-transformers and scikit-learn: the texts embedded once, logistic regression on the embeddings.

python benchmarks/arms/st_sklearn.py SET [--dtype bfloat16] [--batch 64] [--inverse-penalty 10]
"""

from __future__ import annotations

import argparse
import time

from common import minilm, read_texts, report, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--inverse-penalty", type=float, nargs="+", default=[10.0], help="C; of several, each is judged"
    )
    parser.add_argument("--depth", type=int, help="cut the model off above this block")
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    imported = seconds()
    model = SentenceTransformer(str(minilm()), device="cpu", model_kwargs={"dtype": options.dtype})
    texts, labels = read_texts(options.set, "train", options.rows)
    test_texts, test_labels = read_texts(options.set, "test", options.rows)
    begin = time.perf_counter()
    train, test = (model.encode(each, batch_size=options.batch).astype("float32") for each in (texts, test_texts))
    encoded = time.perf_counter() - begin
    found = {}
    for inverse in options.inverse_penalty:
        begin = time.perf_counter()
        head = LogisticRegression(C=inverse, max_iter=1000).fit(train, labels)
        accuracy = float(head.score(test, test_labels))
        found[inverse] = {"accuracy": accuracy, "fit": round(time.perf_counter() - begin, 3)}
    best = max(found, key=lambda inverse: found[inverse]["accuracy"])
    report(
        seconds=round(seconds(), 3), accuracy=found[best]["accuracy"], C=best, imported=round(imported, 3),
        encode=round(encoded, 3), fit=found[best]["fit"], tried=found if len(found) > 1 else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
