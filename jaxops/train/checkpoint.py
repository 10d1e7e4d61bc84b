"""Checkpoints of a run in progress, by Orbax: complete or absent, and restored exactly."""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxops.devices import hosts
from jaxops.train import checksums


class Checkpointer:
    """Numbered checkpoints in one directory; the newest `keep` of them are kept.

    A checkpoint is written to a temporary folder and then renamed, so a run that is killed while
    it saves leaves the previous one as the newest. Saving is asynchronous: the arrays are copied to
    the host before `save` returns, and written while training continues.

    Every file's checksum is stored in the checkpoint and compared when the directory is opened. If
    the newest checkpoint is damaged, it is renamed to "STEP.damaged", a message is printed, and the
    previous one becomes the newest. A lock allows only one `Checkpointer` at a time to use a
    directory; the system releases it when the process ends.

    Args:
        directory: the directory; it is made if it does not exist.
        keep: number of checkpoints that are kept.

    Raises:
        OSError: the directory cannot be written to, or another run uses it. If writing fails while
            training continues, the next call raises it. Complete checkpoints stay readable.
        ValueError: every checkpoint is damaged (the message names the files), or there are several
            processes and `devices.start` was not called.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpoints:
    ...     tree = {"weights": jnp.arange(3.0)}
    ...     checkpoints.save(7, {"state": tree}, meta={"rows": 100})
    ...     checkpoints.wait()
    ...     like = abstract(tree, {"weights": tree["weights"].sharding})
    ...     restored = checkpoints.restore({"state": like})
    ...     print(checkpoints.latest_step(), checkpoints.meta(), restored["state"]["weights"])
    7 {'rows': 100} [0. 1. 2.]
    """

    def __init__(self, directory: str | Path, keep: int = 3) -> None:
        from orbax.checkpoint import v1 as ocp  # slow to import

        hosts.check_started()
        self.directory = _directory(directory)
        self._pending: Any = None
        self._lock: int | None = None
        self._saving: tuple[int, dict[str, Any]] = (0, {})
        self._told: OSError | None = None
        logging.getLogger("absl").addFilter(_told_by_us)
        try:
            hosts.by_first(self._open)
            policies, context = ocp.training, ocp.Context()
            # Process 0 calls this when all files are written, before they are moved into place. It
            # is a lambda because Orbax copies its options, and would copy a method's object too.
            context.asynchronous.post_finalization_callback = lambda: self._seal()
            # without this, Orbax reports a folder that cannot be made only after five minutes
            context.asynchronous.create_directories_asynchronously = False
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                context=context,
                save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        except BaseException:
            self._unlock()
            raise

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(
                f"checkpoints must name a directory, got {self.directory}, which is a file, is "
                "below a file, or is a broken link"
            ) from None
        self._lock = lock(self.directory, "checkpoint")
        _set_damaged_aside(self.directory)

    def _seal(self) -> None:
        step, record = self._saving
        (folder,) = self.directory.glob(f"{step}.orbax-checkpoint-tmp*")
        checksums.write(folder, record)

    def _unlock(self) -> None:
        logging.getLogger("absl").removeFilter(_told_by_us)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or `None`."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Save named trees of arrays and a small JSON-like `meta` as checkpoint `step`."""
        self.wait()
        if step == self.latest_step():
            return
        self._saving = step, {"meta": json.dumps(meta), "leaves": leaves(trees)}
        if hosts.count() > 1:
            hosts.by_first(self._try_folder)
        try:
            self._pending = self._orbax.save_checkpointables_async(
                step, trees, custom_metadata={"checksums": True}, force=True
            )
        except Exception as error:
            raise self._refused(error) from None

    def wait(self) -> None:
        """Wait until the last save is on disk; if it failed, raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except Exception as error:
                raise self._refused(error) from None

    def _try_folder(self) -> None:
        """Raise if no folder can be made; in Orbax other processes would wait for process 0."""
        try:
            os.rmdir(tempfile.mkdtemp(dir=self.directory))
        except OSError as error:
            raise self._refused(error) from None

    def meta(self) -> dict[str, Any]:
        """The `meta` that was saved with the newest checkpoint."""
        return json.loads(self._record()["meta"])

    def restore(self, trees: dict[str, Any]) -> dict[str, Any]:
        """The newest checkpoint's trees.

        Args:
            trees: name -> tree of `jax.ShapeDtypeStruct` with the shapes, dtypes and shardings of
                the arrays.

        Raises:
            FileNotFoundError: there is no complete checkpoint.
            ValueError: the checkpoint is of another model or optimizer (the message names what
                differs), or it cannot be read.
        """
        saved, expected = self._record()["leaves"], leaves(trees)
        step = self.latest_step()
        for leaf in sorted(saved.keys() | expected.keys()):
            have, want = (tree.get(leaf, "nothing") for tree in (saved, expected))
            if have != want:
                raise ValueError(
                    f"{leaf} must be {have}, as in checkpoint {step} of {self.directory}, got "
                    f"{want}; another model or optimizer wrote the checkpoint"
                )
        try:
            return self._orbax.load_checkpointables(step, trees)
        except Exception as error:
            folder = self.directory / str(step)
            raise ValueError(f"{folder}: the checkpoint cannot be read: {error}") from error

    def _record(self) -> Any:
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"{self.directory}: no complete checkpoint in it")
        record = checksums.read(self.directory / str(step))
        if record is None:  # an older version wrote it
            record = self._orbax.checkpointables_metadata(step).custom_metadata
        if not record or "leaves" not in record:
            raise ValueError(
                f"directory must hold checkpoints that jaxops wrote, got {self.directory}, whose "
                f"checkpoint {step} has no record of jaxops"
            )
        return record

    def close(self) -> None:
        """Wait for the last save and release the directory."""
        try:
            self.wait()
        finally:
            try:
                self._orbax.close()
            except Exception as error:  # Orbax raises the error of the save a second time
                raise self._refused(error) from None
            finally:
                self._unlock()

    def _refused(self, error: Exception) -> OSError:
        """A short error to raise instead of Orbax's, which has hundreds of lines."""
        newest = self.latest_step()
        kept = "no checkpoint is complete, so the same call starts from the beginning"
        if newest is not None and (self.directory / str(newest)).is_dir():
            kept = f"the checkpoint of step {newest} is complete, and the same call continues there"
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        self._told = OSError(
            f"{self.directory}: the checkpoint of step {self._saving[0]} could not be written; "
            f"{kept}: {reason}"
        )
        return self._told

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        told = self._told
        try:
            self.close()
        except OSError as refused:
            if error is None:
                raise
            if error is not told:
                print(refused, file=sys.stderr)


def _told_by_us(record: logging.LogRecord) -> bool:
    """A filter for the tracebacks that Orbax's threads log; the same error is also raised."""
    return not (record.exc_info and "orbax" in record.pathname)


def _directory(given: str | Path) -> Path:
    """The absolute path of a directory; `ValueError` for a path that Orbax cannot read again."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(given), re.I):
        raise ValueError(
            f"checkpoints must name a directory of a mounted file system, got the URL {given}"
        )
    directory = Path(given).expanduser().absolute()
    if odd := sorted(set("[]\\") & set(str(directory))):
        raise ValueError(
            f"checkpoints must name a directory without {' '.join(odd)} in its path, got "
            f"{directory}"
        )
    return directory


def lock(directory: Path, what: str) -> int:
    """A lock on the directory itself; the system releases it in any case when the process ends.

    Args:
        directory: the directory.
        what: what is written there, for messages.

    Returns:
        The descriptor of the directory, whose closing releases the lock.

    Raises:
        OSError: another process has the lock, or the directory cannot be written to.
    """
    as_effective = os.access in os.supports_effective_ids
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=as_effective):
        raise PermissionError(f"{directory}: no {what} can be written; it is read-only")
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # there is no such lock on Windows and on some network drives
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(
            f"{directory}: another run is writing its {what}s there; "
            "wait until it ends, or use another directory"
        ) from error
    except OSError:
        pass
    return descriptor


def _set_damaged_aside(directory: Path) -> None:
    """Rename damaged checkpoints until the newest one is intact, if there is any."""
    steps = sorted(
        (p for p in directory.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name)
    )
    damaged: dict[Path, str] = {}
    while steps and (what := checksums.damage(steps[-1])):
        damaged[steps.pop()] = what
    if damaged and not steps:
        raise ValueError(
            f"directory must hold an intact checkpoint, got {directory}, where all are damaged:\n"
            + "\n".join(damaged.values())
        )
    for folder, what in damaged.items():
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(f"{what}; going back to checkpoint {steps[-1].name}", file=sys.stderr)


def leaves(trees: dict[str, Any]) -> dict[str, str]:
    """Path -> dtype and shape of every leaf."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]
    }


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, as `Checkpointer.restore` takes them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
