"""The Forgetting Transformer (FoX): softmax attention with a forget gate."""
