"""Puts the page of every algorithm into the menu, so that a new algorithm needs no entry elsewhere."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Extends the menu's part `Algorithms`; a page is called by its heading."""
    (part,) = (entry["Algorithms"] for entry in config.nav or [] if "Algorithms" in entry)
    folder = Path(config.docs_dir) / "algorithms"
    part.extend(f"algorithms/{page.name}" for page in sorted(folder.glob("*.md")) if page.name != "README.md")
    return config
