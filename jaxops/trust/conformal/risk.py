"""Conformal risk control: a setting whose expected loss is at most what was asked for."""

import numpy as np


def controlled(losses: np.ndarray, risk: float = 0.1, most: float = 1.0) -> int:
    """The first of several settings whose expected loss on the next row is at most `risk`.

    It is the first setting j with (Σ_i losses_ij + most) / (N + 1) ≤ risk.

    Args:
        losses: (N, J), the loss of each calibration row at each setting. From one setting to the
            next no loss rises, as when sets grow.
        risk: the wanted expected loss.
        most: the largest loss there can be.

    Raises:
        ValueError: other shapes; a loss that rises, is not finite, or is above `most`; too few
            rows; or no setting keeps the risk.

    References:
        Angelopoulos, Bates, Fisch, Lei and Schuster 2024, Conformal risk control,
        arXiv:2208.02814, theorem 1.

    >>> losses = np.tile([1.0, 0.5, 0.0], (99, 1))
    >>> controlled(losses, risk=0.6), controlled(losses, risk=0.1)
    (1, 2)
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2 or not losses.size or not np.isfinite(losses).all() or losses.max() > most:
        raise ValueError(
            f"losses must have shape (N, J) and finite values of at most {most}, got shape "
            f"{losses.shape}"
        )
    rising = np.argwhere(np.diff(losses, axis=1) > 1e-12)
    if len(rising):
        row, setting = rising[0].tolist()
        raise ValueError(
            f"losses must not rise from one setting to the next, got {losses[row, setting]} and "
            f"{losses[row, setting + 1]} in row {row}"
        )
    check_rows(len(losses), risk, most)
    bound = (losses.sum(0) + most) / (len(losses) + 1)
    kept = bound <= risk + 1e-12
    if not kept.any():
        raise ValueError(
            f"risk must be at least {bound.min():.4g}, which the last setting has, got {risk}"
        )
    return int(kept.argmax())


def label_threshold(
    probabilities: np.ndarray, target: np.ndarray, false_negatives: float = 0.1
) -> float:
    """The highest threshold at which the expected share of a row's labels that are missed is kept.

    A row is told the labels whose probability is at least the threshold. The share is that of its
    true labels which it is not told; 0 for a row without labels. It is `controlled` over all
    thresholds that make a difference.

    Args:
        probabilities: (N, L), of each label.
        target: (N, L), whether the row has the label.
        false_negatives: the wanted expected share.

    Raises:
        ValueError: other shapes, NaN, no label in any row, or too few rows.

    >>> p = np.linspace(0.05, 0.95, 19)[:, None]
    >>> round(label_threshold(p, np.ones((19, 1)), false_negatives=0.1), 2)
    0.1
    """
    p, true = np.asarray(probabilities, np.float64), np.asarray(target).astype(bool)
    if p.ndim != 2 or true.shape != p.shape or not true.any():
        raise ValueError(
            "probabilities and target must have shape (N, L), with a label in some row, got "
            f"{p.shape} and {true.shape}, {int(true.sum()):,} labels"
        )
    if not np.isfinite(p).all():
        row = int((~np.isfinite(p)).any(1).argmax())
        raise ValueError(f"probabilities must be finite, got {p[row].tolist()} in row {row}")
    check_rows(len(p), false_negatives)
    missed = (true / np.maximum(true.sum(1, keepdims=True), 1))[true]
    order = np.argsort(p[true])
    levels, lost = p[true][order], missed[order].cumsum()
    # at a threshold of a level all labels strictly below it are missed
    first = np.searchsorted(levels, levels)
    below = np.append(0, lost)[first]
    kept = (below + 1) / (len(p) + 1) <= false_negatives + 1e-12
    return float(levels[kept][-1])


def check_rows(rows: int, risk: float, most: float = 1.0) -> None:
    """Raise `ValueError` if so few rows cannot keep any risk."""
    if not 0 < risk < most:
        raise ValueError(f"risk must be in (0, {most:g}), got {risk}")
    needed = int(np.ceil(most / risk - 1 - 1e-9))
    if rows < needed:
        raise ValueError(f"rows must be at least {needed} for a risk of {risk:g}, got {rows}")
