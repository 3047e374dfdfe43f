"""Import paths that code written for `transformers` uses."""
