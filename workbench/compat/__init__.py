"""The documented names of Hugging Face, on this package."""
