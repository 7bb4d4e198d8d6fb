"""Tokenizers: the vocabulary of the output, the rows of its embedding and head, and the files of its tokenizer."""

from .model_tokenizer import ModelTokenizer, Reader, tokenizer_files
from .output_tokenizer import Member, OutputTokenizer, output_tokenizer
from .places import vocabulary_tensors, with_vocabulary
from .rows import Input, Rows
from .templates import chosen, with_template

__all__ = [
    "Input",
    "Member",
    "ModelTokenizer",
    "OutputTokenizer",
    "Reader",
    "Rows",
    "chosen",
    "output_tokenizer",
    "tokenizer_files",
    "vocabulary_tensors",
    "with_template",
    "with_vocabulary",
]
