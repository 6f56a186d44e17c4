#!/usr/bin/env python3
"""Makes tests/fixtures/kmeans.json: k-means of scikit-learn on small made-up rows.

Each case has rows, the start centres, and what `sklearn.cluster.KMeans` (lloyd, tolerance 0) makes of them: labels,
centres and inertia from the given start; `best_inertia` is the best of 20 runs from its own k-means++ seeds.

    python3 scripts/reference_kmeans.py
"""

import json
import pathlib

import numpy
import sklearn
from sklearn.cluster import KMeans

ROOT = pathlib.Path(__file__).resolve().parent.parent


def case(name, rows, k, start):
    rows = rows.astype(numpy.float32).round(4)
    start = start(rows).astype(numpy.float32)
    one = KMeans(k, init=start, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(rows)
    best = KMeans(k, init="k-means++", n_init=20, tol=0, max_iter=300, random_state=0).fit(rows)
    return {
        "name": name,
        "dim": rows.shape[1],
        "clusters": k,
        "rows": [round(float(x), 4) for x in rows.ravel()],
        "start": [float(x) for x in start.ravel()],
        "labels": one.labels_.tolist(),
        "inertia": float(one.inertia_),
        "iterations": int(one.n_iter_),
        "centres": [round(float(x), 6) for x in one.cluster_centers_.ravel()],
        "best_inertia": float(best.inertia_),
    }


def main():
    rng = numpy.random.default_rng(0)
    blobs = numpy.concatenate([rng.normal(rng.normal(0, 4, 5), 1.0, (40, 5)) for _ in range(6)])
    cloud = rng.normal(0, 1, (300, 8)) * numpy.array([3, 2, 1, 1, 1, 0.5, 0.2, 0.1]) + 20
    lonely = rng.normal(0, 1, (60, 3))
    far = numpy.array([[50.0, 0, 0], [60.0, 0, 0]])
    cases = [
        case("separated blobs", blobs, 6, lambda x: x[[0, 45, 90, 130, 170, 210]]),
        case("poor start", blobs, 6, lambda x: x[:6]),
        case("one stretched cloud away from 0", cloud, 12, lambda x: x[:12]),
        case("two start centres nobody is near", lonely, 5, lambda x: numpy.concatenate([x[:3], far])),
    ]
    out = ROOT / "tests" / "fixtures" / "kmeans.json"
    out.write_text(json.dumps({"sklearn": sklearn.__version__, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
