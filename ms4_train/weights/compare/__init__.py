"""Two checkpoints side by side: weight by weight, and by the logits they give."""
