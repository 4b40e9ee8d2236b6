"""The one door for outside bytes: files, JSON, JSON lines, YAML, images, safetensors headers; bounded in size, depth and time.

Every parser here refuses what it does not understand with ``UntrustedInputError`` and lets no other exception escape.
Exercise it: ``pytest tests/ms4_train/untrusted``.

Not covered: archives; the values of tensors (a header can be sane over damaged data, which only a checksum finds).
"""

from ms4_train.untrusted.files import read_bytes, read_text
from ms4_train.untrusted.image_sources import ImageReader
from ms4_train.untrusted.images import DEFAULT_LIMITS, EncodedImage, ImageLimits, decode_image, inspect_image
from ms4_train.untrusted.json_text import iter_json_lines, parse_json
from ms4_train.untrusted.safetensors_header import TensorInfo, read_safetensors_header, read_safetensors_metadata
from ms4_train.untrusted.yaml_nodes import YamlMapping, YamlNode, YamlScalar, YamlSequence, parse_yaml

__all__ = [
    "DEFAULT_LIMITS",
    "EncodedImage",
    "ImageLimits",
    "ImageReader",
    "TensorInfo",
    "YamlMapping",
    "YamlNode",
    "YamlScalar",
    "YamlSequence",
    "decode_image",
    "inspect_image",
    "iter_json_lines",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_safetensors_header",
    "read_safetensors_metadata",
    "read_text",
]
