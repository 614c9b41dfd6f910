"""Tests of plain functions over bytes and values, without a socket."""
