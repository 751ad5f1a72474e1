"""Configurations that ship with the package: --config preset:NAME."""
