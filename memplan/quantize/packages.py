"""The packages that work on weights needs: told in one line when one is not there, and kept quiet when they are."""

from __future__ import annotations

import importlib.util
import os

from memplan.errors import MissingExtra

_NEEDED = ("torch", "transformers", "safetensors")


def require_packages(what: str, *others: str, hint: str = "pip install 'memplan[quantize]'") -> None:
    """Raises: MissingExtra when a package that `what` needs is not installed."""
    missing = [name for name in (*_NEEDED, *others) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"{what} needs {', '.join(missing)}", hint=hint)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
