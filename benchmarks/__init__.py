"""Measurements, one question a script; see README.md in this folder."""
