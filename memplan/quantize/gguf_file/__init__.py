"""GGUF: a Hugging Face checkpoint as one file for llama.cpp, tensor by tensor, and read back to be proven.

| `--method` | written by |
|---|---|
| `gguf:q8_0`, `q4_0`, `q4_1`, `q5_0`, `q5_1`, `mxfp4` | the `gguf` library |
| `gguf:q2_k`, `q3_k_m`, `q4_k_m`, `q5_k_m`, `q6_k` and their like | llama.cpp itself, through llama-cpp-python |

Which families and vocabularies are known says `families` and `vocabulary`; the others are refused, in one line.
"""
