"""What is said of a model that transformers knows and memplan does not work on. Torch is not known here."""

from __future__ import annotations

from memplan.errors import UnsupportedModel

NEWER_TRANSFORMERS = "is the download complete? a newer release may know it: pip install -U transformers"


class UnsupportedHere(UnsupportedModel):
    """A model built in a way that is not worked on block by block, or that a format of files has no words for."""

    usual_hint = "--backend llmcompressor may take it; what is known here is in docs/quantize.md"
