"""A result as one GGUF file, which llama.cpp and what is built on it run; certified with a llama.cpp where one is."""
