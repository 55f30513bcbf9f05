"""The one exception that means "the user can mend this": the CLI prints it without a traceback and exits with 2."""


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
