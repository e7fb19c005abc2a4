"""Workflow templates: loading, binding and checking graphs against the node schema."""
