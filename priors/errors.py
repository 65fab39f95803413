"""The one error of unreadable weights."""


class CheckpointError(ValueError):
    """Weights that cannot be used; the message says which file, what was wanted and what to do."""
