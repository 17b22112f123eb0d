"""Sections of report pages: one function per kind of result."""
