"""What a tuned model becomes: an adapter with its card, a merged model and its check, GGUF, vLLM, the Hub."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "adapters": ["save_adapter"],
        "gguf": ["ollama_modelfile", "to_gguf"],
        "hub": ["push"],
        "merging": ["merge"],
        "verification": ["check_export"],
        "vllm": ["vllm_command"],
    },
)
