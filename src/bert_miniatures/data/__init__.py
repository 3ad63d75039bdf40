"""Data: the GLUE table, readers for GLUE folders and for own files, checks of the labels."""
