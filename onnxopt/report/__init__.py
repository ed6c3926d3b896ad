"""What a person or a script sees: terminal tables, JSON documents, progress."""
