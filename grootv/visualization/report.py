"""A page to read in a browser, without a network; all text in it is escaped."""

from jinja2 import Environment

PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font-family: sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; height: auto }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ text }}</p>
<table>
<tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% for heading, pictures in sections %}
{% if heading %}
<h2>{{ heading }}</h2>
{% endif %}
{% for path, text in pictures.items() %}
<p><img src="{{ path | urlencode }}" alt="{{ text }}"></p>
{% endfor %}
{% endfor %}
</body>
</html>
""")
