"""Published weights: GPT-2, BERT, T5 and Llama from files in Hugging Face's layout."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.language.huggingface import FAMILIES, T5_ENCODER, Family
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig


def load_pretrained(
    path: str | Path, config: TransformerConfig | None = None, **changes: Any
) -> tuple[Transformer | EncoderDecoder, Any]:
    """A GPT-2, BERT, T5 or Llama with its weights, in float32.

    This function reads the safetensors files that `save_pretrained` writes, or that a model's page
    at Hugging Face offers. It downloads nothing and does not need PyTorch. A BERT without its head
    for masked tokens (`BertModel`) and a T5 encoder without a decoder (`T5EncoderModel`) have only
    the method `hidden`. Give `masked_head=False` to leave out the head of a file that has one, for
    example to use the encoder in a classifier. Poolers are left out, and so are the heads of
    fine-tuned models (`BertForSequenceClassification` and similar).

    Args:
        path: a folder with config.json and model.safetensors, or with several safetensors files
            and model.safetensors.index.json; or one safetensors file, together with `config`.
        config: the config of the module; by default made from config.json.
        changes: fields of the config to replace, such as `scan=True, dropout=0.0`.

    Returns:
        The module and its parameters, for `module.apply({"params": params}, tokens)`. With
        `config.scan` the parameters of the blocks are stacked.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another kind of model; a setting that is not supported; tensors that are
            missing, not expected, or of another shape.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> config = TransformerConfig(vocabulary=5, context=4, depth=1, heads=1, width=2)
    >>> shapes = {"attn.c_attn": (2, 6), "attn.c_proj": (2, 2), "ln_1": (2,), "ln_2": (2,),
    ...           "mlp.c_fc": (2, 8), "mlp.c_proj": (8, 2)}
    >>> weights = {f"h.0.{name}.weight": np.ones(shape) for name, shape in shapes.items()}
    >>> weights |= {f"h.0.{name}.bias": np.ones(shape[-1:]) for name, shape in shapes.items()}
    >>> weights |= {"wte.weight": np.ones((5, 2)), "wpe.weight": np.ones((4, 2)),
    ...             "ln_f.weight": np.ones(2), "ln_f.bias": np.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(weights, f"{folder}/small.safetensors")
    ...     module, params = load_pretrained(f"{folder}/small.safetensors", config)
    >>> type(module).__name__, params["embedding"]["tokens"].shape
    ('Transformer', (5, 2))
    """
    from safetensors import SafetensorError

    path = Path(path)
    try:
        with contextlib.ExitStack() as files:
            tensors = _tensors(path, files)
            family, config = _family(path, config, tensors)
            config = replace(config, **changes)
            module = family.module(config)
            params = _params(family, config, tensors)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error
    return module, params


def _tensors(path: Path, files: contextlib.ExitStack) -> dict[str, tuple[Any, str]]:
    """The open file and the name in it of each tensor, by its name without the model's prefix."""
    from safetensors import safe_open

    paths = [path]
    if path.is_dir():
        paths, index = [path / "model.safetensors"], path / "model.safetensors.index.json"
        if not paths[0].exists() and index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
            paths = [path / name for name in sorted(names)]
    tensors = {}
    for one in paths:
        if not one.exists():
            raise FileNotFoundError(f"{one}: no such file; only safetensors files are read")
        file = files.enter_context(safe_open(one, framework="flax"))
        for name in file.keys():  # noqa: SIM118
            short = re.sub(r"^(transformer|bert|model)\.", "", name)
            # the old names, in files of the first BERTs
            short = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", short))
            tensors[short] = file, name
    return tensors


def _family(
    path: Path, config: TransformerConfig | None, tensors: Any
) -> tuple[Family, TransformerConfig]:
    if config is not None:
        for family in (*FAMILIES.values(), T5_ENCODER):
            if f"{family.names['stack.block_#.attention.out'][0]}.weight".replace("#", "0") in (
                tensors
            ):
                return family, config
        raise ValueError(f"tensors must be those of {', '.join(FAMILIES)}, got {_few(tensors)}")
    if not path.is_dir():
        raise ValueError("config must be given with a single file, got None")
    settings = json.loads((path / "config.json").read_text())
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type must be one of {tuple(FAMILIES)}, got {kind!r}")
    family = FAMILIES[kind]
    if kind == "t5" and not any(name.startswith("decoder.") for name in tensors):
        family = T5_ENCODER
    try:
        config = family.config(settings)
    except KeyError as error:
        raise ValueError(f"config.json must have {error}, got nothing") from error
    if config.masked_head and not any(name.startswith("cls.predictions.") for name in tensors):
        config = replace(config, masked_head=False)
    return family, config


def _params(family: Family, config: TransformerConfig, tensors: dict[str, tuple[Any, str]]) -> Any:
    """All parameters; names and shapes are checked before any is read."""
    module = family.module(replace(config, scan=False))
    row = jnp.zeros((1, 1), jnp.int32)
    rows = (row, row) if isinstance(module, EncoderDecoder) else (row,)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *rows)["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    sources = [_sources(family, ".".join(key.key for key in path)) for path, _ in leaves]
    needed = {name for names in sources for name in names}
    if missing := needed - tensors.keys():
        raise ValueError(f"tensors must have {_few(missing)}, got none of that name")
    spare = {name for name in tensors if re.fullmatch(family.spare, name)}
    if unexpected := tensors.keys() - needed - spare:
        raise ValueError(f"tensors must be those of the config, got {_few(unexpected)} as well")
    turned = [family.transposed and path[-1].key == "kernel" for path, _ in leaves]
    for names, (_, leaf), turn in zip(sources, leaves, turned, strict=True):
        _check_shapes(names, leaf.shape, turn, tensors)

    def joined(names: tuple[str, ...], turn: bool) -> Any:
        parts = [np.asarray(file.get_tensor(name)) for file, name in (tensors[n] for n in names)]
        return np.concatenate([part.T if turn else part for part in parts], -1, dtype=np.float32)

    params = jax.tree.unflatten(tree, map(joined, sources, turned))
    if config.scan:
        params = {name: _stacked(part) for name, part in params.items()}
    return jax.tree.map(jnp.asarray, params)


def _sources(family: Family, path: str) -> tuple[str, ...]:
    """The tensors of a parameter such as stack.block_3.attention.out.kernel."""
    number = (re.findall(r"block_(\d+)", path) or ["0"])[0]
    name = re.sub(r"block_\d+", "block_#", path)
    module, _, leaf = name.rpartition(".")
    if name not in family.names and module not in family.names:
        raise ValueError(f"config must have parameters with known tensors, got {path}")
    suffix = ".bias" if leaf == "bias" else ".weight"
    names = family.names.get(name) or [f"{part}{suffix}" for part in family.names[module]]
    return tuple(part.replace("#", number) for part in names)


def _check_shapes(names: Any, wanted: tuple[int, ...], turn: bool, tensors: Any) -> None:
    shapes = {
        name: tuple(tensors[name][0].get_slice(tensors[name][1]).get_shape()) for name in names
    }
    turned = [shape[::-1] if turn else shape for shape in shapes.values()]
    lengths = [shape[-1] for shape in turned if shape[:-1] == wanted[:-1] and len(shape) > 0]
    if len(lengths) < len(turned) or sum(lengths) != wanted[-1]:
        actual = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        whole = wanted[::-1] if turn else wanted
        together = " together" * (len(names) > 1)
        raise ValueError(f"{', '.join(names)} must be {whole}{together}, got {actual}")


def _stacked(stack: Any) -> Any:
    """block_0, block_1, ... as one `blocks`, with parameters stacked along a new first axis."""
    blocks = [stack[f"block_{i}"] for i in range(sum(name.startswith("block_") for name in stack))]
    if not blocks:
        return stack
    others = {name: part for name, part in stack.items() if not name.startswith("block_")}
    return {**others, "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}


def _few(names: Any) -> str:
    """The first names, and the number of the others."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
