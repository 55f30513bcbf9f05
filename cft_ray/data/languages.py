"""What data sets call a language: in files' names, hub configurations and columns. Pure.

The grid speaks ISO 639-1 throughout. A pattern says where a source's own name of the language stands: ``{language}`` for
the ISO code, ``{flores}`` for the code of FLORES-200 and FLORES+ (ISO 639-3 and script, arXiv 2207.04672).
"""

import re

from cft_ray.errors import UserError

_PLAIN = re.compile(r"[\w-]*")
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
        UserError: the pattern wants a FLORES code, and the language's is not known here; what stands for a language would
            lead out of the pattern's place.
    """
    if not _PLAIN.fullmatch(language):
        raise UserError(f"{language!r} is no language", where=pattern, fix="an ISO 639-1 code, e.g. de")
    if "{flores}" in pattern:
        if language not in FLORES:
            raise UserError(f"no FLORES code is known for {language!r}", where=pattern, fix=f"one of {', '.join(FLORES)}")
        pattern = pattern.replace("{flores}", FLORES[language])
    return pattern.replace("{language}", language)


_NAMES = """
af Afrikaans; ar Arabic العربية; bg Bulgarian български; bn Bengali বাংলা; ca Catalan català; cs Czech čeština cze;
da Danish dansk; de German Deutsch ger; el Greek ελληνικά gre; en English; es Spanish español; et Estonian eesti;
fa Persian farsi فارسی per fas; fi Finnish suomi; fr French français fre; gu Gujarati; ha Hausa; he Hebrew עברית;
hi Hindi हिन्दी; hr Croatian hrvatski; hu Hungarian magyar; id Indonesian; ig Igbo; it Italian italiano;
ja Japanese 日本語; ko Korean 한국어; lt Lithuanian; mr Marathi; ms Malay may msa; nl Dutch Nederlands dut;
no Norwegian norsk bokmål nor nb; pa Punjabi; pl Polish polski; pt Portuguese português; ro Romanian română rum;
ru Russian русский; sk Slovak slovenčina slo; sl Slovenian slovenščina; sr Serbian српски; sv Swedish svenska;
sw Swahili kiswahili swa; ta Tamil தமிழ்; te Telugu; th Thai ไทย; tr Turkish türkçe; uk Ukrainian українська;
ur Urdu اردو; vi Vietnamese; yo Yoruba; zh Chinese Mandarin 中文 chi cmn
"""
_MEANT = {code: code for code in FLORES} | {name.partition("_")[0]: code for code, name in FLORES.items()}
for _entry in _NAMES.replace("\n", " ").split(";"):
    _code, *_words = _entry.split()
    _MEANT |= {word.casefold(): _code for word in _words}


def meant(text: str) -> str | None:
    """The ISO 639-1 code of a language that is spelled otherwise: ``DE``, ``German``, ``deu``, ``de-DE``, ``deu_Latn``.

    None where the text names no language that is known here.
    """
    word = text.strip().casefold().replace("_", "-")
    return _MEANT.get(word) or _MEANT.get(word.partition("-")[0])
