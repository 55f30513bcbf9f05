"""A sentence-transformers model as the `embed` stage uses it: texts in, checked vectors and a count of cut texts out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cft_ray.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """The vectors of some texts.

    Args:
        vectors: [texts, dimension] float32, as the model gives them.
        truncated: texts of which the model has seen the beginning only.
    """

    vectors: np.ndarray
    truncated: int


class Embedder:
    """A loaded model.

    Args:
        folder: of the model; None: the lexical embedder.
        max_length: tokens kept of a text (characters, of the lexical embedder); None, or more than the model takes: the
            model's own limit.
        threads: of torch, on a CPU.

    Raises:
        UserError: the folder holds no sentence-transformers model.
    """

    def __init__(self, folder: str | None, *, max_length: int | None = None, threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.where = folder or "lexical embedder"
        self._model = _loaded(folder)
        own = self._model.max_seq_length
        self.limit: int | None = own if max_length is None else min(max_length, own or max_length)
        if self.limit != own:
            self._model.max_seq_length = self.limit

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Encoded:
        """Embed texts; batches are of like length, results in the order of the texts.

        Args:
            texts: not empty.
            batch_size: texts in one forward pass.

        Raises:
            UserError: the model gives vectors that are not finite.
        """
        vectors = np.asarray(self._model.encode(list(texts), batch_size=batch_size, show_progress_bar=False), dtype=np.float32)
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            first = texts[int(np.flatnonzero(bad)[0])]
            raise UserError(
                f"the embedding of {int(bad.sum())} of {len(texts)} texts is not finite, e.g. of {first[:60]!r}",
                where=self.where,
                fix="use another embedding model; its weights may be damaged (NaN)",
            )
        return Encoded(vectors, self._count_cut(texts))

    def _count_cut(self, texts: Sequence[str]) -> int:
        """Texts with more tokens than the model reads. Only those are encoded again that have enough bytes for it."""
        from transformers import PreTrainedTokenizerBase

        if self.limit is None:
            return 0
        tokenizer = getattr(self._model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return sum(len(text) > self.limit for text in texts)
        long = [text for text in texts if len(text.encode()) + tokenizer.num_special_tokens_to_add() > self.limit]
        if not long:
            return 0
        lengths = tokenizer(long, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.limit for ids in lengths)  # pyright: ignore[reportArgumentType] - a list of lists


def _loaded(folder: str | None):  # noqa: ANN202 - a SentenceTransformer, whose import takes seconds
    if folder is None:
        from cft_ray.embedding.lexical import lexical

        return lexical()
    from sentence_transformers import SentenceTransformer

    if not Path(folder).is_dir():
        raise UserError("there is no such folder", where=folder, fix="give the folder of a sentence-transformers model")
    if not (Path(folder) / "modules.json").is_file():
        # The library would put mean pooling on any transformer, with a warning: a similarity nobody asked for.
        raise UserError("this is no sentence-transformers model (no modules.json)", where=folder, fix="give the folder of one")
    try:
        return SentenceTransformer(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"not a readable sentence-transformers model ({error})", where=folder, fix="fetch the model's folder again"
        ) from error
