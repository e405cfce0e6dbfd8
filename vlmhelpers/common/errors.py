"""The error of what is no bug and no wrong value."""


class CannotRun(RuntimeError):
    """The machine, or a program that was started, does not do what is needed; the text is a sentence with a remedy."""
