"""What a bundle says of being served: by vLLM, llama.cpp and Ollama."""
