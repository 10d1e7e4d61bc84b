"""What a finished model does when its input is worse than in training, by chance or on purpose.

print(jaxops.robustness.corrupted(model, rows, labels))  # noise, typos, missing cells, gaps, ...
attacked = jaxops.robustness.pgd(task, state, columns, epsilon=8)
hardened = jaxops.robustness.adversarial(task, epsilon=8)  # a task to train
jaxops.robustness.smoothed(task, state, sigma=64).certify(columns)
jaxops.robustness.audit(model, rows, labels).write("audit.html")
"""

from jaxops.robustness.attacks import fgsm, pgd
from jaxops.robustness.auditing import Audit, audit
from jaxops.robustness.corrupting import KINDS, Corrupted, corrupt, corrupted
from jaxops.robustness.smoothing import Certified, Smoothed, smoothed
from jaxops.robustness.training import adversarial

__all__ = [
    "KINDS",
    "Audit",
    "Certified",
    "Corrupted",
    "Smoothed",
    "adversarial",
    "audit",
    "corrupt",
    "corrupted",
    "fgsm",
    "pgd",
    "smoothed",
]
