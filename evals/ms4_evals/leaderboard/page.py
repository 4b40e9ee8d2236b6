"""The page of the leaderboard: a shell with style, script and the values of the overview; everything it shows is built by the script.

Nothing is loaded but the site's own data files, and nothing runs but the page's own script: a content security policy names both style and
script by their hashes, and lets only that script add others (``strict-dynamic``), which works from a folder (``file://``) as from a web
server. Outside texts are JSON in an element that is no script to the browser, and reach the page as text nodes. Exercise it:
``pytest tests/evals/ms4_evals/leaderboard/test_page.py``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from typing import Any

from ms4_evals.leaderboard.page_assets import script, style
from ms4_evals.leaderboard.shards import script_json
from ms4_evals.outside_text import one_line


def render_page(values: Mapping[str, Any], *, plot: str, json_file: str) -> str:
    """The whole page.

    Args:
        values: of ``site_values``.
        plot, json_file: names of the files beside the page that readers without scripts are sent to.
    """
    title = escape(one_line(values["title"]))
    without_script = (
        f'<p>This page needs JavaScript. The same numbers are in <a href="{plot}">{plot}</a> and <a href="{json_file}">{json_file}</a>.</p>'
    )
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy()}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">',
            '<link rel="icon" href="data:,">',
            f"<title>{title}</title><style>{style()}</style></head>",
            f'<body><main id="main"><h1>{title}</h1><noscript>{without_script}</noscript></main>',
            f'<script type="application/json" id="site">{script_json(values)}</script>',
            f"<script>{script()}</script></body></html>\n",
        )
    )


def policy() -> str:
    """The content security policy of the page."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script())}' 'strict-dynamic'",
            f"style-src '{_hash(style())}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
