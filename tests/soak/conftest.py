"""The data directory templates, as tests/cluster has them."""

from tests.cluster.conftest import template, templates

__all__ = ["template", "templates"]
