"""What clients speak: decoding their requests, encoding errors and streams in their protocol."""
