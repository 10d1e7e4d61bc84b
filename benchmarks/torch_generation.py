"""PyTorch's generation: with a cache made beforehand, and as `transformers` has it."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import torch_nets, workloads
from benchmarks.torch_choices import (
    ALL_THREADS,
    COMPILERS,
    DEVICE,
    GPU,
    PREDICT_COMPILERS,
    Settings,
    apply,
    medium_is_exact,
    peak_memory,
)
from benchmarks.torch_predict import Prediction
from benchmarks.torch_train import TRIAL_SECONDS

Ask = Callable[[Tensor], Tensor]
MODES = PREDICT_COMPILERS if GPU else ("cpp_wrapper", "freezing, cpp_wrapper")


def look(
    model: torch_nets.GPT,
    caches: list[Tensor],
    tokens: Tensor,
    positions: Tensor,
    store: Callable[[Tensor, Tensor], None],
    seen: Callable[[Tensor], Tensor],
    **attention: Any,
) -> Tensor:
    """The next token after `tokens` (B, T), (B, 1): the most probable one.

    Args:
        model: the network.
        caches: of each layer (2, B, heads, slots, width of a head), keys and values.
        tokens: those that the caches lack.
        positions: their embeddings (T, width).
        store: puts keys or values (B, heads, T, .) into a cache.
        seen: the slots of a cache that are looked at.
        attention: options of `scaled_dot_product_attention`.
    """
    x = model.tokens(tokens) + positions
    batch, length, width = x.shape
    for name, cache in zip(model.blocks, caches, strict=True):
        block: Any = getattr(model, name)
        qkv = block.qkv(block.norm_1(x)).view(batch, length, 3, block.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        store(cache[0], k)
        store(cache[1], v)
        mixed = F.scaled_dot_product_attention(q, seen(cache[0]), seen(cache[1]), **attention)
        x = x + block.project(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + block.down(F.gelu(block.up(block.norm_2(x)), approximate="tanh"))
    return model.logits(model.norm(x[:, -1:])).argmax(-1)


def sliced(model: torch_nets.GPT, caches: list[Tensor], tokens: Tensor, begin: int) -> Tensor:
    """Look at the slots that are filled."""
    end = begin + tokens.shape[1]

    def store(cache: Tensor, new: Tensor) -> None:
        cache[:, :, begin:end] = new

    causal = tokens.shape[1] > 1
    positions = model.positions[begin:end]
    return look(model, caches, tokens, positions, store, lambda c: c[:, :, :end], is_causal=causal)


def masked(model: torch_nets.GPT, caches: list[Tensor], tokens: Tensor, place: Tensor) -> Tensor:
    """Look at all slots, the unfilled ones masked: one program for every place, an int64 (1,)."""
    slots = torch.arange(caches[0].shape[3], device=place.device)
    mask = (slots <= place).view(1, 1, 1, -1)

    def store(cache: Tensor, new: Tensor) -> None:
        cache.index_copy_(2, place, new)

    return look(model, caches, tokens, model.positions[place], store, lambda c: c, attn_mask=mask)


class Generation(Prediction):
    """Prompts of one length to the most probable answers; examples are tokens."""

    @property
    def network(self) -> workloads.GPT:
        """Its size."""
        assert isinstance(self.size, workloads.GPT)
        return self.size

    def answerer(self, settings: Settings, traced: bool) -> Callable[[np.ndarray], np.ndarray]:
        """What a user calls; `traced` (no such thing here) looks at all slots."""
        apply(settings)
        if self.form == "transformers":
            ask = _transformers(self.network, self.folder / "weights.npz")
        else:
            ask = self.cached(settings, whole=traced)

        def answers(prompts: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return ask(torch.from_numpy(prompts).long().to(DEVICE)).cpu().numpy()

        return answers

    def cached(self, settings: Settings, whole: bool) -> Ask:
        """Eager or compiled."""
        size, rows = self.network, self.workload.batch_size
        model = torch_nets.GPT(size)
        self.load(model, settings)
        model = model.to(DEVICE).eval()
        slots = workloads.PROMPT + workloads.NEW_TOKENS
        shape = (2, rows, size.heads, slots, size.width // size.heads)
        caches = [torch.zeros(shape, device=DEVICE) for _ in range(size.depth)]
        places = torch.arange(slots, device=DEVICE)
        step: Any = masked if whole else sliced
        if settings.compile:
            torch._dynamo.reset()
            options = COMPILERS[settings.compile]
            step = torch.compile(step, dynamic=not whole, **options)

        def ask(prompts: Tensor) -> Tensor:
            length = prompts.shape[1]
            asked = len(prompts), workloads.NEW_TOKENS
            answer = torch.empty(asked, dtype=torch.long, device=DEVICE)  # on a GPU nothing waits
            token = sliced(model, caches, prompts, 0)
            for i in range(workloads.NEW_TOKENS):
                answer[:, i : i + 1] = token
                if i + 1 < workloads.NEW_TOKENS:
                    place: Any = places[length + i : length + i + 1] if whole else length + i
                    token = step(model, caches, token, place).clone()
            return answer

        return ask

    def setup(self) -> dict[str, Any]:
        """Seconds to the first answer."""
        self.question = self.raw["test_x"][: self.workload.batch_size, : workloads.PROMPT]
        self.ask = self.answerer(self.settings, traced=False)
        self.ask(self.question)
        return {"first_step_seconds": time.time() - self.started, "peak_memory": peak_memory()}

    def answers(self, ask: Callable[[np.ndarray], np.ndarray], seconds: float) -> float:
        """Tokens a second of the next so many seconds."""
        return workloads.NEW_TOKENS * super().answers(ask, seconds)

    def trial(self, traced: bool = False, **changes: Any) -> None:
        """As of a prediction, which is shorter and has no need to be warm for so long."""
        settings = self.settings._replace(**changes)
        try:
            ask = self.answerer(settings, traced)
            ask(self.question)
            rate = max(self.answers(ask, TRIAL_SECONDS) for _ in range(2))
        except Exception as error:
            if not settings.compile:
                raise
            self.failed[str(changes)] = str(error)[:500]
            return
        if rate > self.best:
            self.best, self.settings, self.traced = rate, settings, traced

    def tune(self, seconds: float) -> dict[str, Any]:
        """All slots or the filled ones; threads; whose products; the compiler's modes."""
        self.traced = False
        self.settings = self.settings._replace(compile="")
        wholes = (False,) if self.form == "transformers" else (False, True)
        for whole in wholes:
            self.trial(whole)
        if medium_is_exact():
            self.trial(self.traced, products="medium")
        if ALL_THREADS > 1 and not GPU:
            self.trial(self.traced, threads=1)
        if self.form == "compiled":
            self.best = 0.0  # the careful form has its own line
            for whole in wholes:
                self.trial(whole, compile="default")
            for mode in MODES:
                self.trial(self.traced, compile=mode)
            if ALL_THREADS > 1 and not GPU:
                self.trial(self.traced, threads=ALL_THREADS + 1 - self.settings.threads)
        self.ask = self.answerer(self.settings, self.traced)
        self.answers(self.ask, seconds)
        used = ("threads", "products", "compile")
        chosen = {name: getattr(self.settings, name) for name in used}
        found = {"settings": {**chosen, "whole cache": self.traced, "device": str(DEVICE)}}
        return {**found, **({"failed_trials": self.failed} if self.failed else {})}

    def check(self, order: int) -> dict[str, Any]:
        """The tokens of the answers that are timed."""
        apply(self.settings, exact=True)
        found = self.ask(self.question)
        apply(self.settings)
        return {"outputs": found.ravel().tolist()}


def _transformers(size: workloads.GPT, weights: Path) -> Ask:
    """`generate` of Hugging Face's GPT-2 with these weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=size.context, n_embd=size.width,
        n_layer=size.depth, n_head=size.heads, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    names = {
        r"^embedding/tokens": "transformer.wte.weight",
        r"^embedding/positions": "transformer.wpe.weight",
        r"^embedding/head/kernel": "lm_head.weight",
        r"^stack/norm/": "transformer.ln_f.",
        r"^stack/block_(\d+)/": r"transformer.h.\1.",
        r"attention_norm/": "ln_1.",
        r"feed_forward_norm/": "ln_2.",
        r"attention/qkv/": "attn.c_attn.",
        r"attention/out/": "attn.c_proj.",
        r"feed_forward/up/": "mlp.c_fc.",
        r"feed_forward/down/": "mlp.c_proj.",
        r"(kernel|scale)$": "weight",
    }
    found = {}
    for path, value in np.load(weights).items():
        name = path
        for ours, theirs in names.items():
            name = re.sub(ours, theirs, name)
        # all its layers are (inputs, outputs), as Flax's are, but for the last
        found[name] = torch.from_numpy(value.T.copy() if name == "lm_head.weight" else value)
    model.load_state_dict(found, strict=False)
    missing = {n for n, _ in model.named_parameters()} ^ set(found)
    if missing:
        raise KeyError(
            f"parameters must be in both networks, got {', '.join(sorted(missing))} in one"
        )
    model = model.to(DEVICE).eval()

    def ask(prompts: Tensor) -> Tensor:
        both = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=workloads.NEW_TOKENS,
            do_sample=False,
        )
        return both[:, prompts.shape[1] :]

    return ask
