"""Training of a tokenizer's vocabulary by the `tokenizers` library."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from jaxops._optional import require
from jaxops.data.words import TOGETHER

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

KINDS = ("bpe", "byte", "wordpiece", "character", "word")
BYTES = 256


def trained(
    texts: list[str], kind: str, vocabulary: int, lowercase: bool, special: list[str]
) -> "Rust":
    """A tokenizer of the library, see `Tokenizer.train`.

    Args:
        texts: the training texts.
        kind: one of `KINDS`.
        vocabulary: the largest number of tokens.
        lowercase: whether texts are read in lower case.
        special: the names of the first tokens; the second is the unknown one.
    """
    library = require("tokenizers", extra="text")
    normal = [library.normalizers.NFC()] * (kind == "word")
    normal += [library.normalizers.Lowercase()] * lowercase
    room = vocabulary - len(special)
    # "wordpiece" may keep two forms of a character, one at the start of a word and one inside
    for characters in (room, room // 2):
        alphabet = _frequent(kind, texts, lowercase, characters)
        model, trainer, before, rejoin = _parts(kind, vocabulary, special, alphabet)
        rust: Any = library.Tokenizer(model)
        rust.pre_tokenizer, rust.decoder = before, rejoin
        if normal:
            rust.normalizer = library.normalizers.Sequence(normal)
        rust.train_from_iterator(texts, trainer)
        if rust.get_vocab_size() <= vocabulary:
            break
    return rust


def _frequent(kind: str, texts: list[str], lowercase: bool, most: int) -> list[str]:
    """The most frequent characters, in a fixed order; the library's own choice may vary."""
    counts: Counter[str] = Counter()
    for text in texts if kind in ("bpe", "wordpiece") else []:
        text = text.lower() if lowercase else text
        counts.update(f" {text}".replace(" ", "▁") if kind == "bpe" else "".join(text.split()))
    return sorted(counts, key=lambda character: (-counts[character], character))[:most]


def _parts(
    kind: str, vocabulary: int, special: list[str], alphabet: list[str]
) -> tuple[Any, Any, Any, Any]:
    """The model, the trainer, the splitter of texts into words, and the decoder."""
    tokenizers = require("tokenizers", extra="text")
    decoders, models = tokenizers.decoders, tokenizers.models
    pre_tokenizers, trainers = tokenizers.pre_tokenizers, tokenizers.trainers

    unknown = special[1]
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "special_tokens": special,
        "show_progress": False,
    }
    limited = {**common, "initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}
    match kind:
        case "bpe":
            return (
                models.BPE(unk_token=unknown),
                trainers.BpeTrainer(**limited),
                pre_tokenizers.Metaspace(),
                decoders.Metaspace(),
            )
        case "byte":
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            return (
                models.BPE(),
                trainers.BpeTrainer(initial_alphabet=alphabet, **common),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                decoders.ByteLevel(),
            )
        case "wordpiece":
            return (
                models.WordPiece(unk_token=unknown),
                trainers.WordPieceTrainer(**limited),
                pre_tokenizers.BertPreTokenizer(),
                decoders.WordPiece(),
            )
        case "character":
            parted: Any = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
            joined: Any = decoders.Fuse()
        case _:  # splits as `words` does
            alone = (rf"[{TOGETHER}]\p{{M}}*", "isolated"), (r"(?y{w})\X", "isolated")
            parts = [(r"\s+", "removed"), *alone]
            splits = [pre_tokenizers.Split(tokenizers.Regex(p), how) for p, how in parts]
            parted, joined = pre_tokenizers.Sequence(splits), None
    return models.WordLevel(unk_token=unknown), trainers.WordLevelTrainer(**common), parted, joined
