"""The model of the CUDA scan: heavy paths, chunks and the constants that it reads from the sources."""

import pytest
import scan_model


def test_a_drawn_tree_becomes_paths_and_chunks():
    # 0 - 1 - 2 - 3 is heavy, with the light children 4 of 1, and 5 and 6 of 2.
    paths = scan_model.heavy_paths([0, 1, 2, 4, 3, 5, 6], [0, 0, 1, 2, 1, 2, 2])
    assert paths == [(0, 5), (1, 1), (1, 1), (1, 1)]  # the second light child is an entry of the path
    scheme = scan_model.Scheme(length=2, window=2, longest=3, ahead=2, threads=64)
    assert scan_model.chunks(paths, 0, scheme) == ([2, 2, 1], [], [3])
    assert scan_model.chunks(paths, 1, scheme) == ([], [2, 1], [])
    counts = scan_model.count(paths, scheme, signals=1, tile_threads=1, vertices=7)
    assert (counts.batches, counts.carry_batches, counts.barriers) == (3, 1, 4)


def test_the_scheme_is_that_of_the_sources(monkeypatch, capsys):
    scheme = scan_model.Scheme.of_sources()
    assert scheme.window - 1 + scheme.longest <= scheme.length == scheme.ahead
    monkeypatch.setattr('sys.argv', ['scan_model.py', '--grid', '6', '7', '--trees', '2'])
    scan_model.main()
    assert capsys.readouterr().out.count('\n| ') == 1 + len(scan_model.PASSES)
    with pytest.raises(AssertionError, match='names no NOTHING'):
        scan_model.constant('scan/heavy_light.h', 'NOTHING')
