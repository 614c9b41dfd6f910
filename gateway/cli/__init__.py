"""Commands for people: what the `sluice` command does besides serving."""
