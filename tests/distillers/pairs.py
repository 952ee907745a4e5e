"""The pairs on which the field compares methods."""

import yaml

from edkd import CONF

FIELD: list[str] = yaml.safe_load((CONF / "pair" / "field.yaml").read_text())["pairs"]
