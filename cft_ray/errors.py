"""The one exception that means "the user can mend this": the CLI prints it without a traceback and exits with 2.

And what no text of an error may hold, wherever it is shown or kept: `without_secrets`.
"""

import re

_OPTIONS = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s'\"<>?]+)\?[^\s'\"<>)\]]+", re.IGNORECASE)
"""of an address: where a signature stands"""
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"<>/@]+@", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:(?i:bearer\s+|basic\s+(?=[\w+/]{16}))|sk-|hf_|gh[pousr]_|AKIA|ASIA|xox[a-z]-)[\w.*+/=~-]{6,}")


def without_secrets(text: str) -> str:
    """A text without what signs an address, logs in or is a token: it may be shown, kept in tables, and sent to others."""
    text = _OPTIONS.sub(r"\1?[left out]", text)
    return _TOKENS.sub("[key]", _LOGIN.sub(r"\1[login]@", text))


class UserError(Exception):
    """Something outside the program is wrong: a grid, a file, a model, a data set, a setting.

    Args:
        what: what was found, in one sentence.
        where: file, URI or path inside the grid (``grids/x.yaml: training.batch_size``).
        fix: what would be right.
    """

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)  # all three, in order: pickling between Ray processes calls with them
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class StageFailed(Exception):
    """A stage ran and failed for a reason of its own (out of memory, diverged loss); its descendants are not run."""
