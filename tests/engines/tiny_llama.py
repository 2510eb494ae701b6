"""Writes a llama model so small that it loads and answers in milliseconds.

Real in everything but its wits: a true llama graph, a SentencePiece vocabulary, a chat
template, random weights from a fixed seed, so that the same request always has the same answer.

Runs in the engine's own environment, by its path (`python tiny_llama.py FILE`), because only
that one has numpy and gguf. It may therefore import nothing of ours.
"""

import sys
from pathlib import Path

import gguf  # type: ignore[import-not-found, unused-ignore]  # lives in the engine's environment
import numpy  # type: ignore[import-not-found, unused-ignore]  # the same

WIDTH = 32
HEADS = 2
LAYERS = 2
FEED_FORWARD = 64
CONTEXT = 1 << 15  # what it claims to be trained for; the server is started with less
SEED = 20

# "▁" is SentencePiece's space. Accents, kanji and an emoji, so that two, three and four bytes of
# UTF-8 cross the proxy in every answer.
TEXT = (
    "a the my your no one old new red green small grand bright quiet quick warm fox owl crane "
    "otter river stone cloud lamp road train piano letter garden window runs sings waits falls "
    "turns writes keeps finds und sur der die été café über señor 日本 海 空 山 🙂 🦙"
)
WORDS = TEXT.split()
CONTROL = ("<unk>", "<s>", "</s>")

# Says who speaks and ends each turn, as real templates do.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Return the tokens, their scores and their kinds: control, single bytes, words."""
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁" + word for word in WORDS]
    kinds = gguf.TokenType
    return (
        [*CONTROL, *single_bytes, *words],
        [0.0] * (len(CONTROL) + len(single_bytes)) + [-float(i) for i in range(len(words))],
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * len(single_bytes)
        + [kinds.NORMAL] * len(words),
    )


def write(path: Path) -> None:
    """Write the model to `path`."""
    tokens, scores, kinds = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")

    writer.add_name("tiny-llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))

    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    random = numpy.random.default_rng(SEED)

    def tensor(name: str, *shape: int, scale: float = 0.5) -> None:
        values = random.standard_normal(shape) * scale
        writer.add_tensor(f"{name}.weight", values.astype(numpy.float32))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))

    tensor("token_embd", len(tokens), WIDTH)
    for layer in range(LAYERS):
        ones(f"blk.{layer}.attn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{part}", WIDTH, WIDTH)
        ones(f"blk.{layer}.ffn_norm")
        tensor(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        tensor(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH)
        tensor(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD)
    ones("output_norm")

    # Only words can win: a logit of zero for everything else. A lone byte would be held back
    # by the engine as half a character, and an end token would make answers shorter than asked.
    out = random.standard_normal((len(tokens), WIDTH)).astype(numpy.float32)
    out[: len(tokens) - len(WORDS)] = 0
    writer.add_tensor("output.weight", out)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
