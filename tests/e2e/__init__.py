"""Tests of one layer; see CONTRIBUTING."""
