"""memplan: what a language model will use on a GPU, before you rent or crash one."""

__version__ = "0.1.0"
