"""llama.cpp: which layer lies where, what its cache holds, and what its graph needs while it runs."""
