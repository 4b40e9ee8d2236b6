"""Where code that a model wrote is run: bubblewrap, or, when asked for by name, no isolation at all."""
