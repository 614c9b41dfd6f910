"""What tests share: a real gateway in processes of its own, and a scriptable upstream."""
