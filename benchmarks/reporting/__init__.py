"""Reporting: the report, the pictures and the documents, made of JSON."""
