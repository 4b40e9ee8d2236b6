"""Conversion between the public layouts: streaming, parallel, resumable, whole or absent."""

from ms4_train.weights.convert.plan import FolderPlan, plan_files
from ms4_train.weights.convert.report import ConversionReport
from ms4_train.weights.convert.run import convert

__all__ = ["ConversionReport", "FolderPlan", "convert", "plan_files"]
