"""Pages that open offline: blocks of content, as one HTML file or as Markdown."""
