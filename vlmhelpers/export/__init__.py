"""Adapters and their cards, merged models and their check, files and commands for servers, and the Hub."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "adapters": ["merge", "save_adapter"],
        "hub": ["push"],
        "onnx": ["to_onnx"],
        "onnx_check": ["check_onnx"],
        "onnx_runtime": ["OnnxModel"],
        "model_server": ["ModelServer", "serve_model"],
        "serving": ["ollama_modelfile", "serve_command", "to_gguf", "vllm_command"],
        "verification": ["check_export"],
    },
)
