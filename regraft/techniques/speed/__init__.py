"""Speed: the same result in less time or less memory."""
