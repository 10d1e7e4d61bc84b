"""Checkpoints of a run in progress, by Orbax: whole or not there, and restored exactly."""

import json
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class Checkpointer:
    """Numbered checkpoints in one directory; the newest `keep` of them stay.

    A checkpoint is written beside its place and then moved into it, so a run that is killed while
    it saves leaves the one before as the newest. Saving is asynchronous: the arrays are copied to
    the host before `save` returns, and written while training goes on.

    Raises:
        OSError: from the next call on after the disk refused a write; checkpoints that were
            complete before stay readable.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpoints:
    ...     tree = {"weights": jnp.arange(3.0)}
    ...     checkpoints.save(7, {"state": tree}, meta={"rows": 100})
    ...     checkpoints.wait()
    ...     wanted = abstract(tree, {"weights": tree["weights"].sharding})
    ...     restored = checkpoints.restore({"state": wanted})
    ...     print(checkpoints.latest_step(), checkpoints.meta(), restored["state"]["weights"])
    7 {'rows': 100} [0. 1. 2.]
    """

    def __init__(self, directory: str | Path, keep: int = 3) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        policies = ocp.training
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._pending: Any = None

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or `None`."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Save named trees of arrays and a small JSON-like `meta` as checkpoint `step`."""
        self.wait()
        if step == self.latest_step():
            return
        record = {"meta": json.dumps(meta), "leaves": leaves(trees)}
        try:
            self._pending = self._orbax.save_checkpointables_async(
                step, trees, custom_metadata=record, force=True
            )
        except Exception as error:
            raise self._refused(error) from error

    def wait(self) -> None:
        """Return when the last save is on disk; raise what stopped it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except Exception as error:
                raise self._refused(error) from error

    def meta(self) -> dict[str, Any]:
        """What `save` was given as `meta` for the newest checkpoint."""
        return json.loads(self._record()["meta"])

    def restore(self, trees: dict[str, Any]) -> dict[str, Any]:
        """The newest checkpoint's trees.

        Args:
            trees: name -> tree of `jax.ShapeDtypeStruct` with shardings: what is wanted, where.

        Raises:
            FileNotFoundError: there is no complete checkpoint.
            ValueError: the checkpoint is of another model or optimizer; says what differs.
        """
        found, wanted = self._record()["leaves"], leaves(trees)
        step = self.latest_step()
        for leaf in sorted(found.keys() | wanted.keys()):
            have, want = (tree.get(leaf, "nothing") for tree in (found, wanted))
            if have != want:
                raise ValueError(
                    f"{self.directory}: checkpoint {step} is of another model or optimizer: "
                    f"{leaf}: {have} found, {want} wanted"
                )
        return self._orbax.load_checkpointables(step, trees)

    def _record(self) -> Any:
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"{self.directory}: no complete checkpoint in it")
        record = self._orbax.checkpointables_metadata(step).custom_metadata
        if not record or "leaves" not in record:
            raise ValueError(f"{self.directory}: checkpoint {step} was not written by jaxops")
        return record

    def close(self) -> None:
        """Wait for the last save and let go of the directory."""
        try:
            self.wait()
        finally:
            try:
                self._orbax.close()
            except Exception as error:  # it raises once more what stopped the save
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> OSError:
        return OSError(
            f"{self.directory}: the checkpoint could not be written (is the disk full?); "
            f"the newest complete one is of step {self.latest_step()}: {error}"
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leaves(trees: dict[str, Any]) -> dict[str, str]:
    """Path -> dtype and shape of every leaf."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]
    }


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays: what `Checkpointer.restore` wants."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
