"""The other side of `benchmarks.newsvendor`: stockpyl, one problem after the other.

    python benchmarks/stockpyl_loop.py PROBLEMS.npz ANSWERS.npz

It is a file of its own, without jaxops, for stockpyl 1.0.2 does not run on the NumPy of today.
"""

import sys
import time
import warnings

import numpy as np


def main(problems: str, answers: str) -> None:
    warnings.simplefilter("ignore")
    from stockpyl.newsvendor import newsvendor_normal, newsvendor_poisson
    from stockpyl.ss import s_s_discrete_exact

    given = np.load(problems)
    h, p, mean, sd, fixed = (given[n].tolist() for n in ("h", "p", "mean", "sd", "fixed"))
    lead = int(given["lead_time"])
    forms = {
        "normal": lambda i: newsvendor_normal(h[i], p[i], mean[i], sd[i]),
        "base stock": lambda i: newsvendor_normal(h[i], p[i], mean[i], sd[i], lead),
        "Poisson": lambda i: newsvendor_poisson(h[i], p[i], mean[i]),
        "(s, S)": lambda i: s_s_discrete_exact(h[i], p[i], fixed[i], True, mean[i]),
    }
    out = {}
    for name in forms:
        count = int(given[f"count {name}"])
        forms[name](0)
        start = time.perf_counter()
        rows = [forms[name](i) for i in range(count)]
        out[f"seconds {name}"] = np.array(time.perf_counter() - start)
        out[name] = np.array(rows)
    np.savez(answers, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
