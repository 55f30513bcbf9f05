"""What data sets call a language: in files' names, hub configurations and columns. Pure.

The grid speaks ISO 639-1 throughout. A pattern says where a source's own name of the language stands: ``{language}`` for
the ISO code, ``{flores}`` for the code of FLORES-200 and FLORES+ (ISO 639-3 and script, arXiv 2207.04672).
"""

from cft_ray.errors import UserError

FLORES: dict[str, str] = {
    "af": "afr_Latn",
    "ar": "arb_Arab",
    "bg": "bul_Cyrl",
    "bn": "ben_Beng",
    "ca": "cat_Latn",
    "cs": "ces_Latn",
    "da": "dan_Latn",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "en": "eng_Latn",
    "es": "spa_Latn",
    "et": "est_Latn",
    "fa": "pes_Arab",
    "fi": "fin_Latn",
    "fr": "fra_Latn",
    "gu": "guj_Gujr",
    "ha": "hau_Latn",
    "he": "heb_Hebr",
    "hi": "hin_Deva",
    "hr": "hrv_Latn",
    "hu": "hun_Latn",
    "id": "ind_Latn",
    "ig": "ibo_Latn",
    "it": "ita_Latn",
    "ja": "jpn_Jpan",
    "ko": "kor_Hang",
    "lt": "lit_Latn",
    "mr": "mar_Deva",
    "ms": "zsm_Latn",
    "nl": "nld_Latn",
    "no": "nob_Latn",
    "pa": "pan_Guru",
    "pl": "pol_Latn",
    "pt": "por_Latn",
    "ro": "ron_Latn",
    "ru": "rus_Cyrl",
    "sk": "slk_Latn",
    "sl": "slv_Latn",
    "sr": "srp_Cyrl",
    "sv": "swe_Latn",
    "sw": "swh_Latn",
    "ta": "tam_Taml",
    "te": "tel_Telu",
    "th": "tha_Thai",
    "tr": "tur_Latn",
    "uk": "ukr_Cyrl",
    "ur": "urd_Arab",
    "vi": "vie_Latn",
    "yo": "yor_Latn",
    "zh": "zho_Hans",
}
"""ISO 639-1 -> FLORES-200 (`zh`: simplified)."""


def names_language(pattern: str) -> bool:
    """Whether a pattern has a place for the language."""
    return "{language}" in pattern or "{flores}" in pattern


def filled(pattern: str, language: str) -> str:
    """The pattern with the language in its places.

    Args:
        pattern: of a file, a hub configuration or a column.
        language: ISO 639-1.

    Raises:
        UserError: the pattern wants a FLORES code, and the language's is not known here.
    """
    if "{flores}" in pattern:
        if language not in FLORES:
            raise UserError(f"no FLORES code is known for {language!r}", where=pattern, fix=f"one of {', '.join(FLORES)}")
        pattern = pattern.replace("{flores}", FLORES[language])
    return pattern.replace("{language}", language)
