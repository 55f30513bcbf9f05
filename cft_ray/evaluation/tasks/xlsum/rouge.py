"""ROUGE of XL-Sum's answers, in two tokenizations; loaded by the harness from the YAMLs beside it.

Both are the F1 of the package rouge-score (Lin 2004). ``rouge1_ascii`` and its siblings use the package's own tokenizer with
Porter's stemmer: it keeps a-z and 0-9 alone, so that Arabic or Hindi text has no words and scores 0, however good it is. The
study's near-zero scores in these languages point to it. ``rouge1`` and its siblings find words as Unicode says, by ICU: with
dictionaries for Chinese, Japanese and Thai, which do not write spaces. No stemming there, as none suits all languages.
"""

import unicodedata
from typing import Any

from icu4py.breakers import WordBreaker
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

KINDS = ["rouge1", "rouge2", "rougeL"]
_APOSTROPHES = str.maketrans("'’", "  ")


class WordTokenizer(Tokenizer):
    """Words of a text in any language, without regard to case or to how a character is encoded.

    ICU takes what an apostrophe joins for one word; it is split there, which is right for French (l'homme) and what the
    ASCII tokenizer does in English.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words; punctuation and symbols are none."""
        composed = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
        # One locale for all: ICU chooses the dictionary by script, so a text may mix languages. Compatible forms (full-width
        # letters) are folded afterwards, because that takes Thai vowels apart, which the dictionary knows whole.
        words = (word for word in WordBreaker(composed, "en") if any(character.isalnum() for character in word))
        return [unicodedata.normalize("NFKC", word).casefold() for word in words]


_BY_WORDS = RougeScorer(KINDS, tokenizer=WordTokenizer())
_BY_ASCII = RougeScorer(KINDS, use_stemmer=True)


def rouge(target: str, answer: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, each between 0 and 1; ROUGE-2 of a text of one word is 0."""
    words, ascii_words = _BY_WORDS.score(target, answer), _BY_ASCII.score(target, answer)
    return {kind: float(words[kind].fmeasure) for kind in KINDS} | {
        f"{kind}_ascii": float(ascii_words[kind].fmeasure) for kind in KINDS
    }


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics of one answer; called by the harness."""
    return rouge(doc["summary"], results[0])
