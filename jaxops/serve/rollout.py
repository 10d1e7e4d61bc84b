"""What an administrator does with versions, and what shadows are asked."""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxops.model.files import load
from jaxops.serve import answers, tensors
from jaxops.serve.inputs import Given
from jaxops.serve.models import Served
from jaxops.serve.refused import Refused
from jaxops.serve.versions import check_name, file_below
from jaxops.serve.watch import Record

WAITING = 64  # requests whose shadows have not been asked
IDLE = 0.002  # seconds between two looks at whether the device is idle
CLOSE = 1e-6  # between fractions that are called equal
FORM = (
    'the body must be {"path": file} or {"version": number}, also with "canary": share or '
    '"shadow": share'
)


class Administration:
    """The routes of an administrator; each act has a line in the log.

    Args:
        service: whose models these are.
    """

    def __init__(self, service: Any) -> None:
        self._service = service
        self._loads = asyncio.Lock()  # others do not wait for a model that compiles

    async def change(self, request: Any) -> Any:
        """Load a version of a model, give it a share, promote it, or take a step back."""
        models, name = self._service.models, request.path_params["model"]
        body = tensors.parsed(await self._service._body(request))
        told: dict[str, Any] = {"act": "refused", "model": name[:100]}
        with self._audited(request, told):
            what, value, share = _asked(body)
            told |= {what: value[:200], **share}
            if what == "path":
                told["act"] = "load"
                async with self._loads:
                    value = await asyncio.to_thread(self._load, name, value, share)
            elif share:
                told["act"] = kind = next(iter(share))
                getattr(models, kind)(name, value, share[kind])
            else:
                told["act"] = "roll back"
                versions = models.versions(name)
                if value in versions[versions.index(models.told(name)["version"]) + 1 :]:
                    told["act"] = "promote"
                models.use(name, value)
            told["outcome"] = f"version {value}"
            self._named(request, value)
        return self._service._json({"model": name, **models.told(name)})

    async def unload(self, request: Any) -> Any:
        """Unload a version of a model, or all of it."""
        models, names = self._service.models, request.path_params
        await self._service._body(request)
        name, version, query = names["model"], names.get("version"), dict(request.query_params)
        told = {"act": "unload", "model": name[:100], "version": (version or "all")[:20]}
        with self._audited(request, told):
            if query not in ({}, {"last": "true"}):
                raise Refused(400, "the query must be last=true or nothing, got another")
            gone = models.unload(name, version, last=bool(query))
            told["outcome"] = f"version {', '.join(gone)}"
            self._named(request, version or "")
        left = models.told(name) if name in models.current else {"versions": []}
        return self._service._json({"model": name, "unloaded": gone, **left})

    @contextlib.contextmanager
    def _audited(self, request: Any, told: dict[str, Any]) -> Iterator[None]:
        """Log an act that `told` describes when it has ended, well or not."""
        record, audit = request.scope["jaxops"], self._service.watch.audit
        try:
            if self._service.keys is None:
                sentence = "models must be changed with a key of an administrator, got none"
                raise Refused(403, sentence)
            if self._service.workers > 1:
                sentence = "models must be changed in a server of one worker, got one of"
                raise Refused(409, f"{sentence} {self._service.workers}")
            yield
        except Exception as error:
            audit(record, **told, outcome=type(error).__name__)
            if isinstance(error, ValueError):  # of a file that holds no model, or of a share
                raise Refused(400, str(error)) from None
            raise
        audit(record, **told)

    def _named(self, request: Any, version: str) -> None:
        record = request.scope["jaxops"]
        record.model, record.version = request.path_params["model"], version

    def _load(self, name: str, path: str, share: dict[str, Any]) -> str:
        check_name(name)
        file: Path = file_below(self._service.folder, path)
        model = load(file, key=self._service.model_key)
        version: str = self._service.models.add(name, model, file.name, **share).version
        return version


def _asked(body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """What a body names, "path" or "version", with its value, and the share that it asks for."""
    what = [key for key in ("path", "version") if isinstance(body.get(key), str)]
    share: dict[str, Any] = {key: body[key] for key in ("canary", "shadow") if key in body}
    numbers = all(isinstance(number, int | float) for number in share.values())
    if len(what) != 1 or len(share) > 1 or len(body) != 1 + len(share) or not numbers:
        raise Refused(400, FORM)
    return what[0], body[what[0]], share


class Asked(NamedTuple):
    """A request that was answered, and is to be asked in shadow.

    Attributes:
        record: of the request.
        shadow: the version to ask.
        method: "predict" or "infer", of `Served`.
        read: makes what a version is given.
        answer: what the request was answered.
    """

    record: Record
    shadow: Served
    method: str
    read: Callable[[Served], Given]
    answer: Any


class Shadows:
    """Asks versions in shadow what requests were answered, one after the other.

    They are asked after the answer, and only when no request waits and the device is idle; if many
    wait for that, further ones are dropped and counted.

    Args:
        service: whose models these are.
    """

    def __init__(self, service: Any) -> None:
        self._service = service
        self._waiting: deque[tuple[Asked, int]] = deque()
        self._task: asyncio.Task[None] | None = None

    def ask(
        self,
        record: Record,
        method: str,
        read: Callable[[Served], Given],
        answer: Any,
        size: int,
    ) -> None:
        """Ask the shadow of an answered request, if there is one; it returns at once.

        Args:
            record: of the request.
            method: "predict" or "infer", of `Served`.
            read: makes what a version is given.
            answer: what the request was answered.
            size: bytes of the body, which is kept until then, as the answer is.
        """
        shadow = self._service.models.shadow_of(record.model, record.id)
        if shadow is None or shadow.version == record.version or self._service.draining:
            return
        asked = Asked(record, shadow, method, read, answer)
        size += 8 * answers.size(answer)
        held = size + sum(size for _, size in self._waiting)
        if len(self._waiting) >= WAITING or held > self._service.settings.body:
            self._service.watch.shadow(record, shadow.version, "dropped")
            return
        self._waiting.append((asked, size))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        watch, batcher = self._service.watch, self._service.batcher
        while self._waiting and not self._service.draining:
            asked, _ = self._waiting.popleft()
            outcome, difference = "failed", None
            try:  # what needs no device is done beside its thread, for which requests wait
                given = await asyncio.to_thread(asked.read, asked.shadow)
                call = functools.partial(getattr(asked.shadow, asked.method), [given])
                (found,) = await batcher.idle(call, IDLE)
                both = asked.answer, found.answer
                outcome, difference = await asyncio.to_thread(compared, *both)
            except Exception as error:  # of the shadow alone, whatever it is
                watch.failed(asked.record, error)
            watch.shadow(asked.record, asked.shadow.version, outcome, difference)


def compared(first: Any, second: Any) -> tuple[str, float | None]:
    """How two answers differ, and by how much their fractions do at most.

    Returns:
        "equal"; "fractions" if only numbers with a fraction differ, by more than 0.000001; "other"
        if a text, a whole number or the form differs. Then the difference, which is None for other
        forms.

    >>> compared({"labels": ["a"], "p": [0.5]}, {"labels": ["a"], "p": [0.25]})
    ('fractions', 0.25)
    >>> compared({"labels": ["a"], "p": [0.5]}, {"labels": ["b"], "p": [0.25]})
    ('other', 0.25)
    """
    old, form = jax.tree.flatten(answers.plain(first), is_leaf=lambda leaf: leaf is None)
    new, other = jax.tree.flatten(answers.plain(second), is_leaf=lambda leaf: leaf is None)
    if form != other:  # type: ignore[operator]
        return "other", None
    pairs = [*zip(old, new, strict=True)]
    fractions = [abs(a - b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    difference = max(fractions, default=0.0)
    if any(a != b for a, b in pairs if not (isinstance(a, float) and isinstance(b, float))):
        return "other", difference
    return ("fractions" if difference > CLOSE else "equal"), difference
