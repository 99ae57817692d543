"""The switch of all rewritings: an argument of a learner, and an environment variable."""

import os


def is_enabled(asked: bool = True) -> bool:
    """Whether programs may be rewritten: if a learner has `rewrite=True` and the environment does not switch it off.

    Raises:
      ValueError: If the environment variable `JAXMAML_REWRITE` is neither 0 nor 1.
    """
    value = os.environ.get("JAXMAML_REWRITE", "1")
    if value not in ("0", "1"):
        raise ValueError(f"The environment variable `JAXMAML_REWRITE` must be 0 or 1, got {value!r}.")
    return asked and value == "1"
