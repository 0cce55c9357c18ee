"""The public release: check, convert, import its prompts."""
