"""Graph passes: rewrites of a piece's ATen graph at Inductor's post-grad hook.

``base`` and ``context`` are light; ``manager`` imports Inductor, so import it only where one is built.
"""
