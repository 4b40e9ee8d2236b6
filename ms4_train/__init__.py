"""ms4-train: fine-tune and evaluate Mistral Small 4."""
