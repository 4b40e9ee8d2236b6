"""What the Triton kernels compile to, and what they move, without a GPU: registers, spills, tensor-core instructions, bytes, padded rows.

No time is measured here; a GPU is not needed and not looked for. ``make kernels-report`` writes the whole table.
Exercise it: ``pytest tests/kernels/ms4_kernels/report``.
"""
