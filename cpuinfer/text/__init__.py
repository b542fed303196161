"""Text: tokenizers, incremental detokenising and chat templates, all from GGUF metadata."""

from cpuinfer.text.chat import ChatTemplate, ChatTemplateError
from cpuinfer.text.detokenize import Detokenizer
from cpuinfer.text.tokenizer import Tokenizer
from cpuinfer.text.vocabulary import TokenizerError

__all__ = ["ChatTemplate", "ChatTemplateError", "Detokenizer", "Tokenizer", "TokenizerError"]
