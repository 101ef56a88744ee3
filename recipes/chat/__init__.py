"""Chat formats: messages to text, to token ids with the loss mask, and back; and a chat program for the terminal.

Nothing here depends on one model family. A family's recipe describes its format as a `ChatFormat` (format.py); see
recipes/nano2/chat.py for an example.
"""
