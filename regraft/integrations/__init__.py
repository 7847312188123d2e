"""Other systems that regraft can work with. Each is imported only where it is asked for, and is an extra of the package."""
