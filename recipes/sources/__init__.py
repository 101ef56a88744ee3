"""Where raw data comes from: installed packages' text, users' files and URIs, procedural problems with verifiers."""

from nemotron.recipes.sources.documents import Document, Unreadable

__all__ = ["Document", "Unreadable"]
