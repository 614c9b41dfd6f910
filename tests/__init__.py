"""The tests of Sluice."""
