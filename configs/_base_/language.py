# A language model on GPT-2's tokens, by the recipe of nanoGPT. A leaf config sets the backbone.
_base_ = ["datasets/tokens.py", "schedules/language_adamw.py", "default_runtime.py"]

# The vocabulary of GPT-2's tokenizer, 50,257, rounded up. tokenizer=None: the tokenizer of the training data.
model = dict(type="LanguageModel", backbone=dict(vocab_size=50304, context_length=1024), tokenizer=None)
