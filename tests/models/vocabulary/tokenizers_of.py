"""A small tokenizer of every kind, trained here."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hf_prune.models.vocabulary.schemes import BYTES
from tests.models.vocabulary.prose import PROSE

SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level() -> Tokenizer:
    """BPE over bytes, as GPT-2, Llama 3 and Qwen have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        PROSE, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


def whole_words() -> Tokenizer:
    """The same, taking words that are tokens as they are, as Llama 3 does."""
    raw = json.loads(byte_level().to_str())
    raw["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(raw))


def byte_fallback() -> Tokenizer:
    """BPE over characters, with bytes for those it does not know, as Llama 2 and Gemma have it."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"]))
    model = json.loads(trained.to_str())["model"]
    first = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *sorted(BYTES)])}
    rest = (t for t in model["vocab"] if t not in first)
    vocab = {**first, **{t: len(first) + i for i, t in enumerate(rest)}}
    merges = [tuple(m) for m in model["merges"]]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def unigram() -> Tokenizer:
    """Pieces with scores, as T5 has them."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        PROSE, trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return made


def unigram_bytes() -> Tokenizer:
    """The same, with bytes for what it does not know."""
    raw = json.loads(unigram().to_str())["model"]
    pieces = [tuple(p) for p in raw["vocab"]] + [(b, -20.0) for b in sorted(BYTES)]
    made = Tokenizer(models.Unigram(pieces, raw["unk_id"], byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(SPECIAL)
    return made


def word_piece() -> Tokenizer:
    """The longest pieces first, as BERT has it."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        PROSE, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def marked_ends() -> Tokenizer:
    """BPE whose words end in a mark, as CLIP has it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    made.train_from_iterator(
        PROSE, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    )
    return made


KINDS = (byte_level, whole_words, byte_fallback, unigram, unigram_bytes, word_piece, marked_ends)
LOSSLESS = (byte_level, whole_words, byte_fallback, unigram_bytes)
"""Those that write every text."""
