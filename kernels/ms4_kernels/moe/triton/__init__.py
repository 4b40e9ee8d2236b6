"""The experts operation in Triton: one kernel per file, the launch code apart from them. Imported only where Triton runs."""
