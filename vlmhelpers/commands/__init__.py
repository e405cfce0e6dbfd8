"""What the command line and the panel do with a run: estimate it, evaluate it, talk to it, export it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "chatting": ["Conversation"],
        "evaluating": ["EvaluationResult", "evaluate_run"],
        "exporting": ["Exported", "export_run", "push_run"],
        "generating": ["generate_answers"],
        "planning": ["Plan", "preflight"],
        "settings": ["Answering", "Chatting", "Evaluating", "Exporting", "Generating", "Merging", "Pushing"],
        "tuned": ["Tuned", "load_tuned"],
    },
)
