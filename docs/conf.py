"""How Sphinx builds Nova's documentation: ``sphinx-build -W docs docs/_build``."""

project = "Nova"
author = "the Nova authors"
extensions: list[str] = []
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "A cloud controller that speaks EC2 and S3", "page_width": "1100px"}
html_show_copyright = False
nitpicky = True
