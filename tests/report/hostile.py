"""Names that a person or an enemy may give, and that must stay names."""

HOSTILE = (
    "<script>document.title='hacked'</script>",
    '"><img src=x onerror="document.title=\'hacked\'">',
    "</style></svg></title><iframe src='http://127.0.0.1:9/'></iframe>",
    "{{ 7 * 7 }}{% raw %}",
    "[bold red]markup[/] [link=http://127.0.0.1:9/]x[/link]",
    "\x1b[2J\x1b]8;;http://127.0.0.1:9/\x1b\\escape\x00\u202egnp.exe",
    "| a | b |\n\n# heading `code` ```\n![x](http://127.0.0.1:9/x.png) <b>bold</b> **strong**",
    "x" * 300,
)
