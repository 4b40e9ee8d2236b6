"""The LiveCodeBench task: its data, its windows, its prompts, its tests."""
