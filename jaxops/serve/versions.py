"""The served models with their versions: swapped, given shares of the requests, unloaded."""

import hashlib
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from jaxops.model.finished import Model
from jaxops.serve.models import Served
from jaxops.serve.refused import Refused, short

KEPT = 3  # versions of a model, of which the oldest is dropped
NAME = r"[A-Za-z0-9][\w.-]{0,99}"


class Share(NamedTuple):
    """A version that is given a share of the requests for its model."""

    version: str
    share: float


class Line(NamedTuple):
    """The versions of a model; replaced as a whole, so that a request sees one state of it.

    Attributes:
        versions: number -> version, from the oldest.
        current: the version that answers by default.
        canary: the version that answers a share of the requests instead.
        shadow: the version that is asked a share of the requests too, and never answers them.
    """

    versions: dict[str, Served]
    current: str
    canary: Share | None = None
    shadow: Share | None = None

    def given(self, kind: str, share: Share | None) -> "Line":
        """The same with another share as "canary" or "shadow"."""
        return self._replace(canary=share) if kind == "canary" else self._replace(shadow=share)

    def without(self, version: str) -> "Line":
        """The same with no share for a version."""
        canary, shadow = (
            None if one and one.version == version else one for one in (self.canary, self.shadow)
        )
        return self._replace(canary=canary, shadow=shadow)


class Models:
    """The served models by name, each with its versions and what they are given.

    Each of its methods may be called while requests are answered: those that a version has begun
    are answered by it, also when it is unloaded.

    Args:
        batch_size: rows up to which a model is compiled ahead.
        slots: texts that a model generates at once.

    >>> from jaxops import tabular
    >>> table = {"age": list(range(40)), "left": [0, 1] * 20}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> models = Models(batch_size=1)
    >>> models.add("churn", model).version, models.add("churn", model, canary=0.25).version
    ('1', '2')
    >>> [models.get("churn", id=id).version for id in ("a", "b", "c", "a")]
    ['2', '1', '1', '2']
    >>> models.use("churn", "2").version, models.unload("churn", "1")
    ('2', ['1'])
    """

    def __init__(self, batch_size: int = 64, slots: int = 8) -> None:
        self._batch_size, self._slots = batch_size, slots
        self._lines: dict[str, Line] = {}
        self._numbers: dict[str, int] = {}  # the last one of each name, which is not used again
        self._lock = threading.RLock()

    @property
    def current(self) -> dict[str, Served]:
        """Name -> the version that answers by default."""
        return {name: line.versions[line.current] for name, line in [*self._lines.items()]}

    def loaded(self) -> list[Served]:
        """All versions of all models."""
        lines = [*self._lines.values()]
        return [one for line in lines for one in line.versions.values()]

    def used(self) -> list[Served]:
        """The versions that answer by default, or have a share of the requests."""
        found = []
        for line in [*self._lines.values()]:
            shares = (one.version for one in (line.canary, line.shadow) if one)
            found += [line.versions[one] for one in dict.fromkeys((line.current, *shares))]
        return found

    def versions(self, name: str) -> list[str]:
        """The versions of a model, from the oldest."""
        return [*self._line(name).versions]

    def told(self, name: str) -> dict[str, Any]:
        """The version that answers by default, all versions, and those with a share."""
        line = self._line(name)
        shares = {"canary": line.canary, "shadow": line.shadow}
        given = {kind: one._asdict() for kind, one in shares.items() if one is not None}
        return {"version": line.current, "versions": [*line.versions], **given}

    def _line(self, name: str) -> Line:
        if name not in self._lines:
            names = ", ".join(self._lines) or "none"
            raise Refused(404, f"model must be one of {names}, got {short(name)}")
        return self._lines[name]

    def get(self, name: str, version: str | None = None, id: str | None = None) -> Served:
        """A version of a model; by default the current one.

        Args:
            name: of the model.
            version: its number.
            id: of a request, which the canary answers if its share of all ids has this one.

        Raises:
            Refused: 404.
        """
        line = self._line(name)
        if version is None:
            version = line.current
            if id is not None and _has(line.canary, name, "canary", id):
                version = line.canary.version  # type: ignore[union-attr]
        if version not in line.versions:
            versions = ", ".join(line.versions)
            raise Refused(404, f"version must be one of {versions}, got {short(version)}")
        return line.versions[version]

    def shadow_of(self, name: str, id: str) -> Served | None:
        """The version that is asked in shadow what a request asks, if there is one."""
        line = self._lines.get(name)
        if line is None or not _has(line.shadow, name, "shadow", id):
            return None
        return line.versions[line.shadow.version]  # type: ignore[union-attr]

    def add(
        self,
        name: str,
        model: Model,
        file: str = "",
        canary: float | None = None,
        shadow: float | None = None,
    ) -> Served:
        """Compile a model for requests, and let it answer those that come from now on.

        The last versions stay loaded, to take a step back.

        Args:
            name: of the model.
            model: the new version.
            file: where it comes from, for people.
            canary: the share of the requests that it answers; all by default.
            shadow: or the share that it is asked without answering.

        Raises:
            ValueError: a name that an address cannot hold, a share that is not above 0, a model
                that cannot be served, or a share of a name without an earlier version.
            Refused: 404 for a share of a model that is not there.
        """
        check_name(name)
        shares = {"canary": canary, "shadow": shadow}
        given = [(kind, share) for kind, share in shares.items() if share is not None]
        if len(given) > 1:
            raise ValueError("canary must be left out with shadow, got both")
        for kind, share in given:
            _check_share(kind, share)
            self._line(name)
        with self._lock:
            number = self._numbers[name] = 1 + self._numbers.get(name, 0)
        served = Served(name, str(number), model, file).warm(self._batch_size, self._slots)
        with self._lock:
            line = self._line(name) if given else self._lines.get(name, Line({}, served.version))
            before = line.current
            versions = {**line.versions, served.version: served}
            self._lines[name] = line._replace(versions=versions)
            if given:
                self._give(name, served.version, *given[0])
            else:
                self.use(name, served.version)
            line = self._lines[name]
            with_shares = (one.version for one in (line.canary, line.shadow) if one)
            used = {before, served.version, *with_shares}
            spare = [version for version in versions if version not in used]
            for version in spare[: max(0, len(versions) - KEPT)]:  # the oldest
                self.unload(name, version)
        return served

    def use(self, name: str, version: str) -> Served:
        """Let a loaded version answer all requests: promote a newer one, or take a step back.

        Raises:
            Refused: 404.
        """
        with self._lock:
            served = self.get(name, version)
            line = self._lines[name].without(version)
            self._lines[name] = line._replace(current=version, canary=None)
        return served

    def canary(self, name: str, version: str, share: float) -> None:
        """Let a loaded version answer a share of the requests; 0 ends it.

        Which requests these are depends on their ids alone, so an id that comes again gets the same
        version, and a larger share has all ids of a smaller one.

        Raises:
            ValueError: another share, the version that answers by default, or 0 for a version
                that has no share.
            Refused: 404.
        """
        self._give(name, version, "canary", share)

    def shadow(self, name: str, version: str, share: float) -> None:
        """Ask a loaded version a share of the requests without answering by it; 0 ends it.

        Raises:
            ValueError: another share, the version that answers by default, or 0 for a version
                that has no share.
            Refused: 404.
        """
        self._give(name, version, "shadow", share)

    def _give(self, name: str, version: str, kind: str, share: float) -> None:
        with self._lock:
            self.get(name, version)
            line = self._lines[name]
            if share == 0 and not isinstance(share, bool):
                given = getattr(line, kind)
                if given is None or given.version != version:
                    raise ValueError(f"version must have a share as {kind} to end, got {version}")
                self._lines[name] = line.given(kind, None)
                return
            _check_share(kind, share)
            if version == line.current:
                raise ValueError(
                    f"version must not be the one that answers by default, got {version}"
                )
            self._lines[name] = line.given(kind, Share(version, float(share)))

    def unload(self, name: str, version: str | None = None, last: bool = False) -> list[str]:
        """Drop a version of a model, or all of it; a share of it ends.

        Args:
            name: of the model.
            version: its number; by default all of them.
            last: whether the model may be gone then.

        Returns:
            The versions that are gone.

        Raises:
            Refused: 404; 409 for the version that answers by default while there are others, and
                for the last of a model without `last`.
        """
        with self._lock:
            line = self._line(name)
            gone = [*line.versions] if version is None else [self.get(name, version).version]
            kept = {number: one for number, one in line.versions.items() if number not in gone}
            if not kept and not last:
                raise Refused(409, f"last must be true to unload all of {name}, got false")
            if kept and line.current in gone:
                sentence = f"version must not be the one that answers by default, got {version}"
                raise Refused(409, f"{sentence}; let another one answer first")
            if kept:
                self._lines[name] = line.without(gone[0])._replace(versions=kept)
            else:
                del self._lines[name]
        return gone


def _check_share(kind: str, share: Any) -> None:
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 < share <= 1:
        raise ValueError(f"{kind} must be a share above 0 and at most 1, got {short(share)}")


def _has(given: Share | None, name: str, kind: str, id: str) -> bool:
    """Whether a share of all ids has this one: an even number in [0, 1) of the texts is below it.

    The version is among them, so that it is not always the same ids that get what is new.
    """
    if given is None:
        return False
    text = "/".join((name, kind, given.version, id))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53 < given.share


def file_below(folder: Path | None, path: str) -> Path:
    """A file below the folder of models; not one that a link or `..` leads to outside."""
    if folder is None:
        raise Refused(403, "the server must have a folder of models to load from, got none")
    folder = folder.resolve()
    try:
        file = (folder / path).resolve()
        inside = file.is_relative_to(folder) and file.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        inside = False
    if not inside:
        raise Refused(404, f"path must be a file below the folder of models, got {short(path)}")
    return file


def check_name(name: str) -> None:
    """Raise `ValueError` for a name that is none of letters, digits, `_`, `.` and `-`."""
    if not re.fullmatch(NAME, name, re.ASCII):
        raise ValueError(f"name must be of letters, digits, _, . and -, got {name!r}")
