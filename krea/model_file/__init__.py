"""Model files: what a file on disk is, told from its header, before any weights are read.

A question about a file starts at `model_set.check_model_set`; `catalogue` holds the published names, sizes and hashes.
"""
