"""Finished records become metrics and log lines here, in batches, off the request's path."""
