from grootv.visualization.report import Page


def test_all_text_is_escaped(tmp_path):
    page = Page('a & b')
    page.heading('<i>')
    page.paragraph('1 < 2')
    page.table(['x', 'y'], [['<td>', 3]])
    page.picture('a b"#.png', 'a "picture"')
    text = page.write(tmp_path / 'index.html').read_text()
    assert '<title>a &amp; b</title>' in text and '<h1>a &amp; b</h1>' in text
    assert '<h2>&lt;i&gt;</h2>\n<p>1 &lt; 2</p>' in text
    assert '<tr><td>&lt;td&gt;</td><td>3</td></tr>' in text
    assert '<img src="a%20b%22%23.png" alt="a &quot;picture&quot;">' in text
