"""Weights from Hugging Face's files: logits, names, shapes and settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from small import filled

import jaxops as jo
from jaxops import text
from jaxops.language import load_pretrained
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 20, (2, 9), np.int32)
SEEN = np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def shaken(model):
    """Its weights larger than at the start, and biases and norms not 0 and 1."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=4, n_inner=24
    )
    return shaken(transformers.GPT2LMHeadModel(config))


def bert(transformers, kind="BertForMaskedLM"):
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    return shaken(getattr(transformers, kind)(config))


def t5(transformers, **settings):
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=4, **settings
    )
    return shaken(transformers.T5ForConditionalGeneration(config))


def llama(transformers, **settings):
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        **{"num_key_value_heads": 2, "rms_norm_eps": 1e-5, **settings},
    )
    return shaken(transformers.LlamaForCausalLM(config))


MODELS = {
    "gpt2": gpt2,
    "bert": bert,
    "t5": t5,
    "t5 v1.1": lambda t: t5(t, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "llama": llama,
    "llama tied": lambda t: llama(t, tie_word_embeddings=True, num_key_value_heads=4),
    "llama biased": lambda t: llama(t, attention_bias=True, mlp_bias=True, head_dim=6),
}


FAST = ("gpt2", "bert", "t5 v1.1", "llama")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_logits_are_those_of_transformers(transformers, tmp_path, name):
    import torch

    scan = name in ("gpt2", "t5 v1.1", "llama tied")
    theirs = MODELS[name](transformers)
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    module, params = load_pretrained(tmp_path, scan=scan)
    assert module.config.scan == scan
    inputs = [torch.tensor(x, dtype=torch.int64) for x in (TOKENS, SEEN)]
    variables = {"params": params}
    with torch.no_grad():
        if isinstance(module, EncoderDecoder):
            target = TOKENS[:, ::-1][:, :7]
            decoded = torch.tensor(target.copy(), dtype=torch.int64)
            want = theirs(inputs[0], inputs[1], decoder_input_ids=decoded).logits.numpy()
            got = jax.jit(module.apply)(variables, TOKENS, target, SEEN)
            real = np.ones((2, 7, 1))
        else:
            want = theirs(inputs[0], attention_mask=inputs[1]).logits.numpy()
            got = jax.jit(module.apply)(variables, TOKENS, SEEN)
            real = SEEN[..., None]
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got * real, want * real, atol=1e-4)


def test_types_and_the_encoder_of_bert(transformers, tmp_path):
    """`BertModel`: other names, no head; two segment types."""
    import torch

    theirs = bert(transformers, "BertModel")
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    module, params = load_pretrained(tmp_path)
    types = (np.arange(9)[None] >= np.array([[4], [2]])).astype(np.int32)
    tokens, seen, kinds = (torch.tensor(x, dtype=torch.int64) for x in (TOKENS, SEEN, types))
    with torch.no_grad():
        want = theirs(tokens, attention_mask=seen, token_type_ids=kinds).last_hidden_state.numpy()
    hidden = jax.jit(lambda *x: module.apply({"params": params}, *x, method="hidden"))
    got = hidden(TOKENS, SEEN, None, types)
    np.testing.assert_allclose(got * SEEN[..., None], want * SEEN[..., None], atol=1e-4)


def test_sharded_files(transformers, tmp_path):
    theirs = llama(transformers)
    theirs.save_pretrained(tmp_path / "whole", safe_serialization=True)
    theirs.save_pretrained(tmp_path / "parts", safe_serialization=True, max_shard_size="3KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    whole, parts = (load_pretrained(tmp_path / name)[1] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


# without torch or transformers

WIDTH, HEADS, VOCABULARY = 8, 2, 13
GPT2 = TransformerConfig(vocabulary=VOCABULARY, context=6, depth=2, heads=HEADS, width=WIDTH)
SETTINGS = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": 6,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS,
}


def gpt2_weights():
    """As the file on GPT-2's page names them: no `transformer.` before, and masks among them."""
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (6, WIDTH)}
    layers = {
        "ln_1": (WIDTH,),
        "attn.c_attn": (WIDTH, 3 * WIDTH),
        "attn.c_proj": (WIDTH, WIDTH),
        "ln_2": (WIDTH,),
        "mlp.c_fc": (WIDTH, 4 * WIDTH),
        "mlp.c_proj": (4 * WIDTH, WIDTH),
    }
    modules = {f"h.{i}.{name}": shape for i in range(2) for name, shape in layers.items()}
    for name, shape in {**modules, "ln_f": (WIDTH,)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return weights | {f"h.{i}.attn.bias": np.ones((1, 1, 6, 6), np.float32) for i in range(2)}


def gpt2_by_numpy(w, tokens):
    """Logits of one row, in float64."""

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    later = np.triu(np.full((len(tokens),) * 2, -np.inf), 1)
    for i in range(2):
        q, k, v = np.split(dense(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)), 3, -1)
        mixed = []
        for n in range(HEADS):
            part = slice(n * WIDTH // HEADS, (n + 1) * WIDTH // HEADS)
            weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(WIDTH // HEADS) + later)
            mixed.append(weights @ v[:, part] / weights.sum(-1, keepdims=True))
        x = x + dense(f"h.{i}.attn.c_proj", np.concatenate(mixed, -1))
        y = dense(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))
        y = y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2
        x = x + dense(f"h.{i}.mlp.c_proj", y)
    return norm("ln_f", x) @ w["wte.weight"].T


@pytest.fixture
def path(tmp_path):
    save_file(gpt2_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


def test_gpt2_by_hand(path):
    """From the folder and, with a config, from its one file."""
    tokens = np.array([[3, 1, 12, 0, 7]], np.int32)
    wide = {name: weight.astype(np.float64) for name, weight in gpt2_weights().items()}
    want = gpt2_by_numpy(wide, tokens[0])
    module, params = load_pretrained(path)
    assert isinstance(module, Transformer) and module.config.dropout == 0.1
    logits = jax.jit(module.apply)({"params": params}, tokens)
    np.testing.assert_allclose(logits[0], want, atol=1e-4)
    module, again = load_pretrained(path / "model.safetensors", GPT2, scan=True)
    logits = jax.jit(module.apply)({"params": again}, tokens)
    np.testing.assert_allclose(logits[0], want, atol=1e-4)
    blocks, block = again["stack"]["blocks"], params["stack"]["block_1"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), blocks, block)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(again))


def test_bfloat16_becomes_float32(path):
    from safetensors.flax import save_file

    weights = {name: jnp.asarray(w, jnp.bfloat16) for name, w in gpt2_weights().items()}
    save_file(weights, path / "model.safetensors")
    params = load_pretrained(path)[1]
    got = params["embedding"]["tokens"]
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, weights["wte.weight"].astype(jnp.float32))


def change(path, **tensors):
    """The file with other tensors; `None` takes one away."""
    weights = load_file(path / "model.safetensors") | tensors
    kept = {name: w for name, w in weights.items() if w is not None}
    save_file(kept, path / "model.safetensors")


def test_a_tensor_too_few_or_too_many(path):
    change(path, **{"h.1.ln_2.bias": None})
    with pytest.raises(
        ValueError, match=r"tensors must have h\.1\.ln_2\.bias, got none of that name"
    ):
        load_pretrained(path)
    change(path, **{"h.1.ln_2.bias": np.zeros(WIDTH, np.float32)})
    load_pretrained(path)
    with pytest.raises(
        ValueError,
        match=r"tensors must be those of the config, got h\.1\.attn\.c_attn\.bias.* and 7 more",
    ):
        load_pretrained(path, depth=1)
    with pytest.raises(ValueError, match=r"tensors must have h\.2\.attn.* and 7 more, got none"):
        load_pretrained(path, depth=3)


@pytest.mark.parametrize("head", ["classifier", "qa_outputs", "score"])
def test_the_head_of_a_fine_tuned_model_is_left_out(path, head):
    plain = load_pretrained(path)[1]
    change(path, **{f"{head}.weight": np.ones((2, WIDTH), np.float32)})
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(path)[1], plain)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("wpe.weight", (7, WIDTH), r"wpe\.weight must be \(6, 8\), got wpe\.weight \(7, 8\)"),
        ("h.0.attn.c_attn.weight", (WIDTH, WIDTH), r"must be \(8, 24\), got .*\(8, 8\)"),
        ("h.0.mlp.c_fc.weight", (4 * WIDTH, WIDTH), r"must be \(8, 32\), got .*\(32, 8\)"),
        ("ln_f.bias", (), r"ln_f\.bias must be \(8,\), got ln_f\.bias \(\)"),
    ],
)
def test_another_shape(path, name, shape, message):
    change(path, **{name: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=message):
        load_pretrained(path)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "max_position_embeddings": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 20,
    "num_layers": 2,
    "num_heads": 4,
    "d_model": 16,
    "d_ff": 24,
    "d_kv": 4,
}


def test_an_encoder_of_t5_alone(tmp_path):
    """`T5EncoderModel`: the file of the whole, without its decoder."""
    width = {"k": 16, "q": 16, "v": 16, "o": 16, "wi": 24}
    tensors = {"shared.weight": (20, 16), "encoder.final_layer_norm.weight": (16,)}
    for side, blocks in (("encoder", 2), ("decoder", 2)):
        for i in range(blocks):
            layers = ["SelfAttention", "EncDecAttention"][: 1 + (side == "decoder")]
            for n, layer in enumerate(layers):
                at = f"{side}.block.{i}.layer.{n}"
                tensors |= {f"{at}.{layer}.{x}.weight": (width[x], 16) for x in "qkvo"}
                tensors[f"{at}.layer_norm.weight"] = (16,)
            at = f"{side}.block.{i}.layer.{len(layers)}"
            tensors |= {
                f"{at}.layer_norm.weight": (16,),
                f"{at}.DenseReluDense.wi.weight": (24, 16),
            }
            tensors[f"{at}.DenseReluDense.wo.weight"] = (16, 24)
        relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors |= {relative: (32, 4), f"{side}.final_layer_norm.weight": (16,)}
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    (tmp_path / "config.json").write_text(json.dumps(T5))
    save_file(arrays, tmp_path / "model.safetensors")
    both, whole = load_pretrained(tmp_path)
    want = both.apply({"params": whole}, TOKENS, SEEN, method="encode")
    alone = {name: value for name, value in arrays.items() if not name.startswith("decoder.")}
    save_file(alone, tmp_path / "model.safetensors")
    module, params = load_pretrained(tmp_path)
    assert isinstance(module, Transformer) and not module.config.causal
    got = module.apply({"params": params}, TOKENS, SEEN, method="hidden")
    np.testing.assert_allclose(got * SEEN[..., None], want * SEEN[..., None], atol=1e-5)
    one, _ = load_pretrained(tmp_path / "model.safetensors", module.config)
    assert isinstance(one, Transformer)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_type": "mamba"}, "model_type must be one of .*gpt2.*, got 'mamba'"),
        ({}, "model_type must be one of .*, got None"),
        ({"model_type": "gpt2"}, "config.json must have 'vocab_size', got nothing"),
        (
            {**SETTINGS, "activation_function": "silu"},
            "activation_function must be one of .*, got 'silu'",
        ),
        (
            {**SETTINGS, "scale_attn_by_inverse_layer_idx": True},
            "layer_idx must be False, got True",
        ),
        (
            {**LLAMA, "rope_scaling": {"rope_type": "llama3"}},
            "rope_scaling must be none .*, got 'llama3'",
        ),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "yarn"}},
            "rope_scaling must be none .*, got 'yarn'",
        ),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act must be one of .*silu.*, got 'gelu'"),
        ({**LLAMA, "attention_bias": True}, "mlp_bias must be True, got False"),
        ({**T5, "num_decoder_layers": 3}, "num_decoder_layers must be 2, got 3"),
        ({**T5, "relative_attention_num_buckets": 16}, "buckets must be 32, got 16"),
        ({**SETTINGS, "n_head": 3}, r"width must be a multiple of 3 \(heads\), got 8"),
        (LLAMA, r"tensors must have embed_tokens\.weight.* more, got none"),
    ],
)
def test_settings_that_are_not_supported(path, settings, message):
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value)


def test_shapes_of_what_is_side_by_side(path):
    """Several tensors of PyTorch's `Linear` become one kernel here."""
    config = TransformerConfig(
        5, 6, 1, 2, 8, hidden=4, kv_heads=1, position="rotary", norm="rms", activation="swiglu",
        bias=False,
    )  # fmt: skip
    shapes = {
        "embed_tokens": (5, 8),
        "norm": (8,),
        "layers.0.input_layernorm": (8,),
        "layers.0.post_attention_layernorm": (8,),
        "layers.0.self_attn.q_proj": (8, 8),
        "layers.0.self_attn.k_proj": (4, 8),
        "layers.0.self_attn.v_proj": (4, 8),
        "layers.0.self_attn.o_proj": (8, 8),
        "layers.0.mlp.gate_proj": (4, 8),
        "layers.0.mlp.up_proj": (4, 8),
        "layers.0.mlp.down_proj": (8, 4),
    }
    weights = {
        f"model.{n}.weight": RNG.normal(size=s).astype(np.float32) for n, s in shapes.items()
    }
    file = path / "llama.safetensors"
    save_file(weights, file)
    _, params = load_pretrained(file, config)
    kernel = params["stack"]["block_0"]["attention"]["qkv"]["kernel"]
    want = [weights[f"model.layers.0.self_attn.{x}_proj.weight"].T for x in "qkv"]
    np.testing.assert_array_equal(kernel, np.concatenate(want, 1))
    with pytest.raises(
        ValueError, match=r"must be \(24, 8\) together, got .*v_proj\.weight \(4, 8\)"
    ):
        load_pretrained(file, config, kv_heads=2)
    with pytest.raises(
        ValueError, match=r"config must have parameters with known tensors, got stack.*key_norm"
    ):
        load_pretrained(file, config, qk_norm=True)


BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
}


def bert_weights():
    """As the file on BERT's page names them: pooler and both heads beside the encoder."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "bert.embeddings.position_embeddings.weight": (6, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (2, WIDTH),
        "cls.predictions.bias": (VOCABULARY,),
    }
    layer = "bert.encoder.layer.0"
    modules = {
        "bert.embeddings.LayerNorm": (WIDTH,),
        f"{layer}.attention.self.query": (WIDTH, WIDTH),
        f"{layer}.attention.self.key": (WIDTH, WIDTH),
        f"{layer}.attention.self.value": (WIDTH, WIDTH),
        f"{layer}.attention.output.dense": (WIDTH, WIDTH),
        f"{layer}.attention.output.LayerNorm": (WIDTH,),
        f"{layer}.intermediate.dense": (12, WIDTH),
        f"{layer}.output.dense": (WIDTH, 12),
        f"{layer}.output.LayerNorm": (WIDTH,),
        "bert.pooler.dense": (WIDTH, WIDTH),
        "cls.predictions.transform.dense": (WIDTH, WIDTH),
        "cls.predictions.transform.LayerNorm": (WIDTH,),
        "cls.seq_relationship": (2, WIDTH),
    }
    for name, shape in modules.items():  # kernels are (out, in), as PyTorch has them
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_bert_with_its_heads_becomes_a_classifier(path):
    weights = bert_weights()
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(BERT))
    whole = load_pretrained(path)[1]
    assert "head_dense" in whole["embedding"]
    module, params = load_pretrained(path, masked_head=False)
    assert not {"head_dense", "head_norm", "head_bias"} & params["embedding"].keys()
    jax.tree.map(np.testing.assert_array_equal, params["stack"], whole["stack"])
    # as `BertForSequenceClassification` has it: the head of its classes in place of the others
    tuned = {name: w for name, w in weights.items() if not name.startswith("cls.")}
    tuned |= {"classifier.weight": np.ones((3, WIDTH)), "classifier.bias": np.ones(3)}
    save_file(tuned, path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(path)[1], params)

    columns = {
        "tokens": np.array([[5, 3, 1, 0, 0, 0], [2, 9, 12, 4, 7, 0]], np.int32),
        "label": np.array([0, 1], np.int32),
    }
    task = text.classifier(text.TransformerClassifier(module.config, 2), 6, 2)
    tx = optax.sgd(0.1)
    fresh, extra = filled(task.init, columns)
    params_of_both = {**fresh, "encoder": params}
    given = jo.TrainState(np.int32(0), params_of_both, (), extra, jax.random.key(0))
    # the classes follow from the mean of what the encoder of the file says
    real = columns["tokens"] > 0
    encode = jax.jit(lambda *x: module.apply({"params": params}, *x, method="hidden"))
    hidden = encode(columns["tokens"], real * 1)
    mean = (np.asarray(hidden) * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    last = given.params["logits"]
    want = jax.nn.softmax(mean @ np.asarray(last["kernel"]) + np.asarray(last["bias"])[None])
    before = jo.predict(task, given, columns)
    np.testing.assert_allclose(before, want, atol=1e-5)

    how = {"optimizer": tx, "batch_size": 2, "steps": 1, "progress": False}
    tuned = jo.fit(task, columns, state=given, **how)
    after = jo.predict(task, tuned, columns)
    assert np.log(after[[0, 1], [0, 1]]).sum() > np.log(before[[0, 1], [0, 1]]).sum()
    query = tuned.params["encoder"]["stack"]["block_0"]["attention"]["qkv"]["kernel"][:, :WIDTH]
    first = weights["bert.encoder.layer.0.attention.self.query.weight"].T
    assert 0 < np.abs(query - first).max() < 0.1  # moved, from where the file has it


def test_files_that_are_not_there_or_of_another_kind(path):
    with pytest.raises(FileNotFoundError, match=r"absent"):
        load_pretrained(path / "absent.safetensors", GPT2)
    with pytest.raises(ValueError, match="config must be given with a single file, got None"):
        load_pretrained(path / "model.safetensors")
    save_file({"a": np.zeros(2)}, path / "other.safetensors")
    with pytest.raises(ValueError, match="tensors must be those of gpt2, bert, t5, llama, got a"):
        load_pretrained(path / "other.safetensors", GPT2)
    (path / "broken.safetensors").write_bytes(b"12345678 not a file of tensors")
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        load_pretrained(path / "broken.safetensors", GPT2)
    (path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_pretrained(path)
