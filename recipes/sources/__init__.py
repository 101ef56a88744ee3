"""Where raw data comes from: installed packages, the user's files and URIs, generated problems and exercises."""

from nemotron.recipes.sources.documents import Document, Unreadable

__all__ = ["Document", "Unreadable"]
